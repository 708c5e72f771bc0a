"""Terminal table of `project --check RECORD`: the step time of a recorded run, predicted and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from harness.analysis.format import UNKNOWN, byte_size, scale, significant
from harness.analysis.projection.model import Estimate
from harness.analysis.projection.recorded import RunCheck
from harness.report.console import WIDTH, PlainConsole, key_value_table
from harness.report.projection_table import range_text


def print_run_check(found: RunCheck, cautions: Sequence[str]) -> None:
    """Print every part of the step, the payloads of the axes, and one sentence with the ratio."""
    console = PlainConsole(WIDTH)
    layout = " x ".join(f"{axis} {size}" for axis, size in found.layout.items())
    assumed = "; ".join(f"{name.replace('_', ' ')} {range_text(each)}" for name, each in found.assumptions.items())
    rows = [("layout", layout), ("compute from", found.speed_source), ("assumed", assumed or "nothing")]
    console.print(key_value_table(rows))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("\na step", "\npredicted", "\n90 % interval", "\nmeasured"):
        table.add_column(heading, justify="left" if heading.endswith("a step") else "right", no_wrap=True)
    for part in (*found.parts, found.step):
        table.add_row(Text(part.name), _seconds(part.predicted.median), _interval(part.predicted),
                      UNKNOWN if part.measured is None else _seconds(part.measured))  # fmt: skip
    for payload in found.payloads:
        table.add_row(f"payload of {payload.axis}", byte_size(payload.predicted), "",
                      UNKNOWN if payload.measured is None else byte_size(payload.measured))  # fmt: skip
    console.print(table)
    console.print(Text(f"\n{summary(found)}"))
    if cautions:
        console.print(key_value_table(("caution", caution) for caution in cautions))


def summary(found: RunCheck) -> str:
    """Return how far off the prediction is, in one sentence, and what else the reader has to know."""
    assert found.step.measured is not None
    ratio, median = found.ratio, found.step.predicted.median
    ends = "" if ratio.low is None else f" (90 % interval {ratio.low:.2f} to {ratio.high:.2f})"
    both = f"Predicted {_seconds(median)} a step, measured {_seconds(found.step.measured)}"
    text = f"{both}: ratio {ratio.median:.2f}{ends}."
    if "efficiency_of_products" in found.assumptions:
        text += " Its compute is assumed; --records of a run of the same model on one device replaces that."
    if all(payload.measured is None for payload in found.payloads):
        text += " The record has no axes: a run by this version of the harness has them."
    return text


def run_check_to_dict(found: RunCheck, cautions: Sequence[str]) -> dict[str, Any]:
    """Return the check as JSON values, in seconds and bytes."""
    return {
        "layout": found.layout,
        "speed_source": found.speed_source,
        "assumptions": {name: asdict(each) for name, each in found.assumptions.items()},
        "ratio": asdict(found.ratio),
        "step": asdict(found.step),
        "step_parts": [{**asdict(part), "name": part.name.strip()} for part in found.parts],
        "payloads": [asdict(payload) for payload in found.payloads],
        "summary": summary(found),
        "cautions": list(cautions),
    }


def _interval(found: Estimate) -> str:
    return UNKNOWN if found.low is None or found.high is None else f"{_seconds(found.low)} to {_seconds(found.high)}"


def _seconds(value: float) -> str:
    factor, unit = scale([value], "s")
    return f"{significant(factor * value)} {unit}"
