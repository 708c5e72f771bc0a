"""Terminal tables of `project`: a projection, or the check against published trainings; 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from harness.analysis.chips import Chip
from harness.analysis.format import UNKNOWN, significant
from harness.analysis.projection.assumptions import Assumptions, Range
from harness.analysis.projection.model import Estimate, Projection, assumptions_of, to_dict
from harness.analysis.projection.plan import Plan
from harness.analysis.projection.published import Check
from harness.report.console import WIDTH, PlainConsole, key_value_table

# Smaller shares of the time are left out.
MIN_SHARE = 0.005


def print_projection(plan: Plan, chip: Chip, found: Projection, assumed: Assumptions, cautions: Sequence[str]) -> None:
    """Print a plan, its estimates, the shares of the time, and the assumptions."""
    console = PlainConsole(WIDTH)
    rows = [
        ("training", f"{_scaled(plan.parameters)} parameters, {_scaled(plan.tokens)} tokens, "
                     f"{plan.steps:,.0f} steps of {plan.global_batch_size} x {plan.seq_len}"),
        ("devices", f"{plan.devices:,} {chip.name}, {plan.precision}: data {plan.data} x tensor {plan.tensor} x "
                    f"pipeline {plan.pipeline}{', sharded' * plan.sharded}{', recomputing' * bool(plan.recompute)}"),
        ("speed from", found.source),
        ("days", _text(found.days)),
        ("device-hours", _text(found.device_hours)),
        ("energy, MWh", UNKNOWN if found.megawatt_hours is None else f"{_text(found.megawatt_hours)}, devices alone"),
        ("overall MFU", UNKNOWN if found.mfu is None else _text(found.mfu, percent=True)),
        ("step, s", _text(found.step_seconds)),
        ("memory", f"{plan.state_bytes / 1e9:.3g} GB a device for weights, gradients and moments, without activations"),
        ("time shares", ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items()
                                   if share >= MIN_SHARE)),
    ]  # fmt: skip
    rows += [("caution", caution) for caution in cautions]
    console.print(key_value_table(rows))
    console.print(
        Text(f"\nMedians {'without' if found.days.low is None else 'with 90 %'} intervals, under these assumptions:")
    )
    ranges = assumptions_of(found, assumed).items()
    console.print(key_value_table((f"  {name.replace('_', ' ')}", range_text(each)) for name, each in ranges))


def range_text(found: Range) -> str:
    """Return an assumed range for a screen."""
    if found.low == found.high:
        return f"{found.low:g}"
    return f"{found.low:g} to {found.high:g}, most likely {found.likely:g}"


def projection_to_dict(
    plan: Plan, chip: Chip, found: Projection, assumed: Assumptions, cautions: Sequence[str]
) -> dict[str, Any]:
    """Return a plan and its projection as JSON values."""
    return {
        "plan": {**asdict(plan), "data": plan.data, "steps": plan.steps, "state_bytes_per_device": plan.state_bytes},
        "chip": {"name": chip.name, "source": chip.source, "grade": chip.confidence},
        "cautions": list(cautions),
        **to_dict(found),
        "assumptions": {name: asdict(each) for name, each in assumptions_of(found, assumed).items()},
    }


def print_check(checks: Sequence[Check]) -> None:
    """Print every published training with its projection, and the misses with their reasons."""
    console = PlainConsole(WIDTH)
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("training", "left"), ("devices", "right"), ("days stated", "right"), ("MFU", "right"),
                             ("projected", "right"), ("90 % interval", "right"), ("error", "right"),
                             ("", "left")):  # fmt: skip
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    for check in checks:
        table.add_row(
            check.training.name,
            f"{check.training.plan.devices:,}",
            f"{check.training.days:.4g}",
            f"{check.training.mfu:.0%}",
            f"{check.days.median:.4g}",
            UNKNOWN if check.days.low is None else f"{check.days.low:.4g} to {check.days.high:.4g}",
            f"{check.error:+.0%}",
            "within" if check.hit else "MISSED",
        )
    console.print(table)
    hits = sum(check.hit for check in checks)
    console.print(Text(f"\n{hits} of {len(checks)} within the 90 % interval."))
    console.print(Text("Projected from the catalogue and the assumptions, without measured runs."))
    for check in checks:
        if not check.hit:
            console.print(Text(f"- {check.training.name}: {check.training.miss or 'reason unknown'}."))
    filled = [
        f"{check.training.name} ({', '.join(check.training.assumed)})" for check in checks if check.training.assumed
    ]
    console.print(Text(f"Not printed by the source, but filled in: {'; '.join(filled)}."))


def check_to_dict(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return the checks as JSON values."""
    return [
        {
            "name": check.training.name,
            "source": check.training.source,
            "stated_days": check.training.days,
            "stated_mfu": check.training.mfu,
            "of_steps": check.training.of_steps,
            "error": check.error,
            "within": check.hit,
            "miss": None if check.hit else check.training.miss,
            "assumed": list(check.training.assumed),
            "projection": to_dict(check.projection),
        }
        for check in checks
    ]


def _text(found: Estimate, *, percent: bool = False) -> str:
    shown = [None if value is None else f"{value:.1%}" if percent else significant(value)
             for value in (found.median, found.low, found.high)]  # fmt: skip
    return f"{shown[0]}" if shown[1] is None else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _scaled(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}"
