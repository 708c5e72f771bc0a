"""Terminal tables of a profile: phases of a step, slowest operations, idle time, roofline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.analysis.format import UNKNOWN, tflops
from harness.report.console import key_value_table
from harness.text import printable

PHASE_NAMES = {
    "host_to_device": "host to device",
    "forward": "forward",
    "backward": "backward",
    "communication": "communication",
    "optimizer": "clipping and optimizer",
}
MAX_NAME = 56


def print_profile(record: Mapping[str, Any], console: Console) -> None:
    """Print the profile of a record that has one."""
    profile, step = record["profile"], record["timing"]["mean_step_seconds"]
    console.print()
    console.print(_phases(profile, step))
    console.print()
    if profile["operations"]:
        console.print(_operations(profile))
        console.print()
    console.print(key_value_table(_notes(profile)))


def _phases(profile: Mapping[str, Any], step: float | None) -> Table:
    table = _table(f"phases of a step, each synchronized ({profile['steps']} steps)")
    table.add_column("phase", no_wrap=True)
    table.add_column("ms", justify="right")
    table.add_column("of a measured step", justify="right")

    def row(name: str, seconds: float | None) -> None:
        share = UNKNOWN if seconds is None or not step else f"{100 * seconds / step:.1f} %"
        table.add_row(name, _milliseconds(seconds), share)

    row("data wait (measured steps)", profile["data_wait_seconds"])
    if profile["phases"] is None:
        table.add_row("(the backend's step has no phases)", UNKNOWN, UNKNOWN)
    else:
        for phase, name in PHASE_NAMES.items():
            row(name, profile["phases"][phase])
        row("host overhead between phases", profile["host_overhead_seconds"])
        row("sum", _sum(profile))
    row("measured step", step)
    return table


def _sum(profile: Mapping[str, Any]) -> float:
    seconds = [profile["data_wait_seconds"], profile["host_overhead_seconds"], *profile["phases"].values()]
    return sum(each for each in seconds if each is not None)


def _operations(profile: Mapping[str, Any]) -> Table:
    traced = profile["traced_step_seconds"]
    table = _table("slowest operations (self time, traced steps)")
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


def _notes(profile: Mapping[str, Any]) -> list[tuple[str, str]]:
    idle = profile["idle_fraction"]
    share = f"{UNKNOWN} share (the profiler does not see this device)" if idle is None else f"{100 * idle:.1f} %"
    traced = f"traced steps take {_milliseconds(profile['traced_step_seconds'])} ms, the profiler's overhead included"
    rows = [("idle", f"{share} of a traced step without a running operation; {traced}")]
    if profile["roofline"] is not None:
        rows.append(("roofline", _roofline(profile["roofline"])))
    trace = f"{profile['trace']} in the run's folder (open in Perfetto or chrome://tracing)"
    return [*rows, ("trace", trace)]


def _roofline(position: Mapping[str, Any]) -> str:
    intensity = f"arithmetic intensity {position['arithmetic_intensity']:,.1f} FLOP/byte without fusion"
    if position["ridge_arithmetic_intensity"] is None:
        return f"{intensity}; ridge unknown, run `python -m harness peak` to measure it"
    if position["bound_by"] is None:
        return f"{intensity}; the step is faster than that allows, so fusion or caches save traffic"
    share = position["achieved_flops"] / position["attainable_flops"]
    worst = " at worst" if position["bound_by"] == "memory" else ""
    return (
        f"{intensity}, ridge {position['ridge_arithmetic_intensity']:,.1f}: bound by {position['bound_by']}{worst}; "
        f"{tflops(position['achieved_flops'])}, {share:.2f} of the {tflops(position['attainable_flops'])} attainable"
    )


def _milliseconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{1000 * seconds:,.2f}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
