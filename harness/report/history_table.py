"""Series of records over time and their steps, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from harness.analysis.format import amount
from harness.analysis.run_history import Change, ExplainedStep, Series
from harness.report.console import WIDTH, PlainConsole
from harness.text import counted, printable

MAX_CHANGES = 5


def print_history(series: Sequence[Series]) -> None:
    """Print every series with its steps, oldest first."""
    console = PlainConsole(WIDTH)
    for each in series:
        console.print(Text(printable(f"{each.title}, {each.device}"), style="bold"))
        days = [each.runs[place].record["started_at"][:10] for place in (0, -1)]
        steps = "no step" if not each.steps else counted(len(each.steps), "step")
        console.print(Text(printable(f"  {counted(len(each.runs), 'record')} from {days[0]} to {days[1]}: {steps}")))
        for found in each.steps:
            for line in step_lines(found):
                console.print(Text(f"  {line}"))


def step_lines(found: ExplainedStep) -> list[str]:
    """Return what is known of a step, a line each."""
    step = found.step
    word = "slower" if step.ratio > 1 else "faster"
    levels = f"from {amount(step.before, 's')} to {amount(step.after, 's')}"
    when, where = found.run.record["started_at"], found.run.path.parent
    lines = [f"{when}: {100 * abs(step.ratio - 1):.1f} % {word}, {levels} ({where})"]
    lines += [f"  changed: {_text(change)}" for change in found.changes[:MAX_CHANGES]]
    if len(found.changes) > MAX_CHANGES:
        lines.append(f"  and {len(found.changes) - MAX_CHANGES} more")
    if not found.changes:
        lines.append("  nothing that the records know changed there")
    return list(map(printable, lines))


def _text(change: Change) -> str:
    if change.offset == 0:
        return f"{change.what}: {change.before} -> {change.after}"
    distance = f"{counted(abs(change.offset), 'record')} {'later' if change.offset > 0 else 'earlier'}"
    return f"{change.what}: {change.before} -> {change.after} ({distance})"
