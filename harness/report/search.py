"""Tables of a search for the fastest settings, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.analysis.cautions import MAX_OTHER_CPU_FRACTION
from harness.analysis.format import gibibytes, tokens_per_second
from harness.analysis.search import NOISE, Question
from harness.report.console import WIDTH, PlainConsole


def print_search(questions: Sequence[Question], folder: Path) -> None:
    """Print the results of every candidate, also of an unfinished search."""
    console = PlainConsole(WIDTH)
    console.print(f"autotune {folder}", soft_wrap=True)
    for question in questions:
        console.print(_table(question))
        _print_doubts(question, console)


def _table(question: Question) -> Table:
    most = max((each.speed for each in question.candidates if each.speed is not None), default=0.0)
    table = Table(title=question.key, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in (question.name, "median speed", "slowest to fastest run", "of the best", "memory"):
        table.add_column(name, justify="right")
    for each in question.candidates:
        if each.speed is None:
            reason = f"exit code {each.exit_code}" if each.exit_code is not None else "not run"
            table.add_row(str(each.value), reason if each.fits else "out of memory", "", "", "")
            continue
        peak = "unknown" if each.peak_allocated_bytes is None else gibibytes(each.peak_allocated_bytes)
        spread = f"{min(each.tokens_per_second):,.0f} to {max(each.tokens_per_second):,.0f}"
        spread = "one run" if len(each.tokens_per_second) == 1 else spread
        table.add_row(str(each.value), tokens_per_second(each.speed), spread, f"{each.speed / most:.3f}", peak)
    return table


def _print_doubts(question: Question, console: Console) -> None:
    """Print between which values the question is inconclusive, and whether other processes took part of the host."""
    if not question.measured:
        return
    best, close = question.fastest(), question.close()
    if close:
        values = ", ".join(str(each.value) for each in close)
        reason = f"their runs overlap, or are within {100 * NOISE:.0f} %"
        if any(len(each.tokens_per_second) < 2 for each in (best, *close)):
            reason = "one run cannot estimate run-to-run variance"
        kept = f"; keeping {question.answer().value}" if question.has_default else ""
        console.print(f"inconclusive between {best.value} and {values}: {reason}; try repeats=5 on an idle host{kept}")
    busy = max(each.other_processes_cpu_fraction for each in question.measured)
    if busy > MAX_OTHER_CPU_FRACTION:
        console.print(f"caution: other processes used up to {busy:.0%} of the CPU cores during the runs")
