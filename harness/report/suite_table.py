"""Tables of suites and of a suite's runs, on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from harness.analysis.format import UNKNOWN, amount, gibibytes
from harness.records.load import LoadedRecord, get_path, load_runs, shown_speed
from harness.records.suite_folder import SuiteFolder
from harness.report.console import PlainConsole, key_value_table
from harness.suites import Suite
from harness.text import counted, printable


def print_suites(suites: Sequence[Suite]) -> None:
    """Print every suite with its workloads and their reasons."""
    console = PlainConsole()
    for suite in suites:
        console.print(Text(printable(f"{suite.name}: {suite.description}")))
        rows = [(f"  {each.name}", each.reason + _weight(each.weight)) for each in suite.workloads]
        console.print(key_value_table(rows))


def _weight(weight: float) -> str:
    return "" if weight == 1 else f" (weight {weight:g})"


def print_suite_folder(folder: SuiteFolder) -> None:
    """Print what each workload of a suite has yielded, or why it has no result."""
    console = PlainConsole()
    console.print(f"suite {folder.suite.name}, {counted(folder.repeats, 'repeat')}, in {folder.path}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("workload", "step time", "speed", "peak memory"):
        table.add_column(name, justify="left" if name == "workload" else "right", no_wrap=True)
    table.add_column("", overflow="fold")
    for each in folder.suite.workloads:
        missing = folder.not_run.get(each.name)
        if missing is not None:
            table.add_row(each.name, "", "", "", Text(printable(f"{missing.status}: {missing.reason}")))
        else:
            table.add_row(each.name, *_figures(load_runs(folder.path / each.name)), "")
    console.print(table)
    console.print(f"to judge: python -m harness compare REFERENCE {folder.path}", soft_wrap=True)


def _figures(runs: Sequence[LoadedRecord]) -> tuple[str, str, str]:
    """Return step time, speed and memory of the repeats of a workload: medians."""
    shown = [run.record for run in runs if shown_speed(run.record) is not None]
    seconds, speeds = (
        [record["timing"][key] for record in shown] for key in ("mean_step_seconds", "tokens_per_second")
    )
    peaks = [peak for run in runs if (peak := get_path(run.record, "memory", "peak_allocated_bytes")) is not None]
    return (
        amount(statistics.median(seconds), "s") if seconds else UNKNOWN,
        f"{statistics.median(speeds):,.0f} tokens/s" if speeds else UNKNOWN,
        gibibytes(max(peaks)) if peaks else UNKNOWN,
    )
