"""Where the time of a step goes, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.analysis.format import UNKNOWN, tflops
from harness.text import printable

PART_NAMES = {
    "host_to_device": "host to device",
    "forward": "forward",
    "backward": "backward",
    "communication": "communication",
    "optimizer": "clipping and optimizer",
}
MAX_NAME = 56


def print_profile(record: Mapping[str, Any], console: Console) -> None:
    """Print the profile of a record that has one: the parts of a step, its operations, its place under the roofline."""
    profile, step = record["profile"], record["timing"]["mean_step_seconds"]
    console.print()
    console.print(_parts(profile, step))
    console.print()
    if profile["operations"]:
        console.print(_operations(profile))
        console.print()
    for line in _lines(profile):
        console.print(line)


def _parts(profile: Mapping[str, Any], step: float | None) -> Table:
    table = _table(f"a step in parts, each waited for ({profile['steps']} steps)")
    table.add_column("part", no_wrap=True)
    table.add_column("ms", justify="right")
    table.add_column("of a measured step", justify="right")

    def row(name: str, seconds: float | None) -> None:
        share = UNKNOWN if seconds is None or not step else f"{100 * seconds / step:.1f} %"
        table.add_row(name, _milliseconds(seconds), share)

    row("data wait (measured steps)", profile["data_wait_seconds"])
    if profile["phases"] is None:
        table.add_row("(the backend's step is one piece)", UNKNOWN, UNKNOWN)
    else:
        for part, name in PART_NAMES.items():
            row(name, profile["phases"][part])
        row("between these, on the host", profile["host_overhead_seconds"])
        row("sum", _sum(profile))
    row("measured step", step)
    return table


def _sum(profile: Mapping[str, Any]) -> float:
    parts = [profile["data_wait_seconds"], profile["host_overhead_seconds"], *profile["phases"].values()]
    return sum(part for part in parts if part is not None)


def _operations(profile: Mapping[str, Any]) -> Table:
    traced = profile["traced_step_seconds"]
    table = _table("operations that take longest (their own time, traced steps)")
    table.add_column("operation", no_wrap=True, max_width=MAX_NAME)
    table.add_column("calls a step", justify="right")
    table.add_column("ms a step", justify="right")
    table.add_column("of a traced step", justify="right")
    for operation in profile["operations"]:
        table.add_row(
            printable(operation["name"]),
            f"{operation['calls']:,.0f}",
            _milliseconds(operation["seconds"]),
            f"{100 * operation['seconds'] / traced:.1f} %",
        )
    return table


def _lines(profile: Mapping[str, Any]) -> list[str]:
    idle = profile["idle_fraction"]
    said = UNKNOWN + " (the profiler does not see this device)" if idle is None else f"{100 * idle:.1f} %"
    lines = [
        f"idle      {said} of a traced step, in which no operation was under way; traced steps take "
        f"{_milliseconds(profile['traced_step_seconds'])} ms, the profiler's own work included",
    ]
    position = profile["roofline"]
    if position is not None:
        lines.append(f"roofline  {_roofline(position)}")
    lines.append(f"trace     {printable(profile['trace'])} in the run's folder (open in Perfetto or chrome://tracing)")
    return lines


def _roofline(position: Mapping[str, Any]) -> str:
    said = f"{position['arithmetic_intensity']:,.1f} FLOP for a byte of operands, were no two operations fused"
    if position["ridge_arithmetic_intensity"] is None:
        return f"{said}; where the ridge lies python -m harness peak would tell"
    if position["bound_by"] is None:
        return f"{said}; the step is faster than that allows, so fusion or caches save traffic"
    share = position["achieved_flops"] / position["attainable_flops"]
    worst = " at worst" if position["bound_by"] == "memory" else ""
    return (
        f"{said}; the ridge is at {position['ridge_arithmetic_intensity']:,.1f}, so a step is bound by "
        f"{position['bound_by']}{worst}; it reaches {tflops(position['achieved_flops'])}, {share:.2f} of "
        f"the {tflops(position['attainable_flops'])} attainable there"
    )


def _milliseconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{1000 * seconds:,.2f}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
