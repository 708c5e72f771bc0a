"""Pictures of runs: losses, phases of a step, memory and power."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.analysis.format import amount, gibibytes, scale
from harness.analysis.run_group import RunGroup
from harness.analysis.verdict import Comparison
from harness.records.load import LoadedRecord, get_path
from harness.report.content import all_sides
from harness.report.svg import COLORS, INK, color, dashes, downsample, legend, points_per_line, truncate
from harness.text import counted, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA_WAIT, REST = "data wait", "rest"


def train_losses(run: LoadedRecord) -> list[float]:
    """Return the training loss of every step, NaN where it is not finite."""
    return [math.nan if value is None else value for value in get_path(run.record, "losses", "train") or ()]


def draw_losses(comparison: Comparison, figure: Figure) -> str:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    handles, words, names = [], [], []
    for number, side in enumerate(all_sides(comparison)):
        curve = train_losses(side.runs[0])
        if not curve:
            continue
        places, values = downsample(curve)
        style: dict[str, Any] = {"color": color(number), "linestyle": dashes(number)}
        handles += upper.plot([place + 1 for place in places], values, **style)
        names.append(side.label)
        words.append(f"{printable(side.label)}: {_range_text(curve)}")
    _all_differences(lower, comparison)
    legend(figure, names, handles)
    upper.set_title("loss, nats/token")
    lower.set_title("difference from the reference's first process, %")
    lower.axhline(0, color=INK, linewidth=0.6)
    lower.set_xlabel("step")
    return "; ".join(words)


def _range_text(curve: Sequence[float]) -> str:
    known = [value for value in curve if math.isfinite(value)]
    ends = f"{known[0]:.4f} to {known[-1]:.4f}" if known else "no finite loss"
    missing = len(curve) - len(known)
    return f"{ends} in {counted(len(curve), 'step')}" + (
        f", {missing} of them without a finite loss" if missing else ""
    )


def _all_differences(axes: Axes, comparison: Comparison) -> None:
    """Draw the reference's repeats and the sides of the same work, relative to the reference's first process."""
    reference = comparison.reference.runs[0]
    _differences(axes, reference, comparison.reference.runs[1:], 0)
    for number, pair in enumerate(comparison.pairs, 1):
        if pair.findings:
            _differences(axes, reference, pair.other.runs, number)


def _differences(axes: Axes, reference: LoadedRecord, runs: Sequence[LoadedRecord], number: int) -> None:
    first = train_losses(reference)
    for run in runs:
        both = zip(first, train_losses(run), strict=False)
        places, values = downsample(
            [100 * (two / one - 1) if one else math.nan for one, two in both], points_per_line(len(runs))
        )
        axes.plot([place + 1 for place in places], values, color=color(number), linewidth=0.7, alpha=0.6)


def draw_phases(sides: Mapping[int, RunGroup], figure: Figure) -> str:
    axes: Axes = figure.subplots()
    parts = [mean_phases(side) for side in sides.values()]
    totals = [math.fsum(found.values()) for found in parts]
    factor, unit = scale(totals, "s")
    names = phase_names(sides)[:-1]
    handles = []
    for place, name in enumerate([*names, REST]):
        widths = [factor * found.get(name, 0.0) for found in parts]
        starts = [factor * math.fsum(found.get(other, 0.0) for other in names[:place]) for found in parts]
        # Colors from the end, so that a phase does not look like a side; the rest is gray.
        paint = COLORS[-1] if name == REST else COLORS[-2 - place % (len(COLORS) - 1)]
        handles.append(axes.barh(range(len(parts)), widths, left=starts, height=0.42, color=paint, linewidth=0))
    for place, found in enumerate(parts):
        _note(axes, place, f"{amount(totals[place], 's')}{_waited(found, totals[place])}")
    _bars(axes, list(sides.values()))
    axes.set_xlabel(f"{unit} a step")
    legend(figure, [*names, REST], handles)
    words = [", ".join(f"{printable(name)} {amount(value, 's')}" for name, value in found.items()) for found in parts]
    return "; ".join(f"{printable(side.label)}: {text}" for side, text in zip(sides.values(), words, strict=True))


def phase_names(sides: Mapping[int, RunGroup]) -> list[str]:
    """Return the names of all phases of any side, the rest last."""
    known = [name for side in sides.values() for name in mean_phases(side) if name != REST]
    return [*dict.fromkeys(known), REST]


def mean_phases(side: RunGroup) -> dict[str, float]:
    """Return the mean seconds of each phase of a step over a side's processes: those of `profile=true`, which
    synchronizes at both ends of each; without it, of the data wait.
    """
    found: dict[str, list[float]] = {}
    for run in side.runs:
        timing = run.record["timing"]
        mean = timing["mean_step_seconds"]
        phases = get_path(run.record, "profile", "phases") or {}
        known = {name.replace("_", " "): seconds for name, seconds in phases.items() if seconds}
        known = known or {DATA_WAIT: mean * (timing.get("data_wait_fraction") or 0.0)}
        for name, seconds in {**known, REST: max(0.0, mean - math.fsum(known.values()))}.items():
            found.setdefault(name, []).append(seconds)
    return {name: math.fsum(values) / len(side.runs) for name, values in found.items()}


def _waited(found: Mapping[str, float], total: float) -> str:
    return f", {found[DATA_WAIT] / total:.2%} waiting for data" if DATA_WAIT in found and total > 0 else ""


def peak_memory(side: RunGroup) -> int | None:
    """Return the highest peak memory of a side's processes in bytes, or None where none is known."""
    known = [value for value in side.values("memory", "peak_allocated_bytes") if value is not None]
    return max(known, default=None)


def draw_memory(sides: Mapping[int, RunGroup], figure: Figure) -> str:
    axes: Axes = figure.subplots()
    words = []
    for place, (number, side) in enumerate(sides.items()):
        peak = peak_memory(side)
        total = get_path(side.first, "memory", "total_bytes")
        text = "unknown" if peak is None else gibibytes(peak) + (f" of {gibibytes(total, 1)}" if total else "")
        axes.barh([place], [(peak or 0) / 2**30], height=0.42, color=color(number), linewidth=0)
        _note(axes, place, text)
        words.append(f"{printable(side.label)}: {text}")
    _bars(axes, list(sides.values()))
    axes.set_xlabel("GiB")
    return "; ".join(words)


def _note(axes: Axes, place: int, text: str) -> None:
    """Write a bar's number above it, since a long bar leaves no room beside it."""
    axes.annotate(text, (0, place - 0.21), (1, 2), textcoords="offset points", va="bottom", fontsize=9)


def _bars(axes: Axes, sides: Sequence[RunGroup]) -> None:
    axes.set_yticks(range(len(sides)), [truncate(side.label, 22) for side in sides])
    axes.set_ylim(len(sides) - 0.6, -0.75)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def power_samples(run: LoadedRecord) -> list[tuple[float, float]]:
    """Return (seconds, watts) of every sample; empty where power was not measured."""
    return [(seconds, watts) for seconds, watts in get_path(run.record, "telemetry", "samples") or ()]


def draw_power(sides: Mapping[int, RunGroup], figure: Figure) -> str:
    axes: Axes = figure.subplots()
    handles, names, words = [], [], []
    for number, side in sides.items():
        lines, watts = [], []
        for run in side.runs:
            samples = power_samples(run)
            places, values = downsample([value for _, value in samples], points_per_line(len(side.runs)))
            style: dict[str, Any] = {"color": color(number), "linestyle": dashes(number), "alpha": 0.8}
            lines += axes.plot([samples[place][0] for place in places], values, linewidth=1, **style)
            watts += values
        if watts:
            handles.append(lines[0])
            names.append(side.label)
            words.append(f"{printable(side.label)}: {min(watts):,.0f} to {max(watts):,.0f} W, "
                         f"mean {statistics.fmean(watts):,.0f} W")  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_title("power, W")
    axes.set_xlabel("seconds")
    legend(figure, names, handles)
    return "; ".join(words)
