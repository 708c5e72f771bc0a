"""Page of the history of many records: a picture of each series with its levels, and what changed at each step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

import harness
from harness.analysis.format import amount
from harness.analysis.run_history import Series
from harness.records.files import write_with_folders
from harness.report.history_table import step_lines
from harness.report.page import template
from harness.report.svg import INK, color, downsample, points_per_line, render_svg
from harness.text import counted, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "history.html.j2"
HEIGHT_INCHES = 2.1
MAX_TICKS = 3
CAPTION = (
    "Dot: a record's mean step time, oldest first. Line: a level, the median of its records. Number: a step, as in the "
    "list below. The vertical axis does not begin at zero."
)


def write_history_page(series: Sequence[Series], left_out: Sequence[tuple[str, str]], file: Path) -> None:
    """Write the page; an earlier one is replaced.

    Args:
        left_out: path and reason of the runs without a speed.

    Raises:
        RunFailed: it cannot be written.
    """
    write_with_folders(file, render_history_page(series, left_out).encode(), "--out")


def render_history_page(series: Sequence[Series], left_out: Sequence[tuple[str, str]]) -> str:
    """Return the page, the series that end slower first. The template escapes everything from records."""
    ordered = sorted(series, key=lambda each: (not each.is_regression, not each.steps))
    slower = sum(each.is_regression for each in series)
    return template(TEMPLATE).render(
        title=f"{counted(slower, 'series', 'series')} of {len(series)} ended slower",
        tone="bad" if slower else "good",
        series=[_section(each, number, len(series)) for number, each in enumerate(ordered, 1)],
        caption=CAPTION,
        left_out=[printable(f"{path}: {reason}") for path, reason in left_out],
        version=harness.__version__,
    )


def _section(series: Series, number: int, total: int) -> dict[str, Any]:
    title = f"{series.title}, {series.device}"
    picture = render_svg(f"series-{number}", printable(title), HEIGHT_INCHES, partial(_draw, series, total))
    first, last = (series.runs[place].record["started_at"][:10] for place in (0, -1))
    return {
        "title": printable(title),
        "about": printable(f"{counted(len(series.runs), 'record')} from {first} to {last}"),
        "slower": series.is_regression,
        "picture": Markup(picture),
        "steps": [(heading, [line.strip() for line in changes]) for heading, *changes in map(step_lines, series.steps)],
    }


def levels_of(series: Series) -> list[tuple[int, int, float]]:
    """Return first and last place of each level, and its step time in seconds."""
    places = [0, *(found.step.place for found in series.steps), len(series.runs)]
    return [(begin, end - 1, statistics.median(series.seconds[begin:end])) for begin, end in pairwise(places)]


def _draw(series: Series, total: int, figure: Figure) -> str:
    axes = figure.add_subplot()
    shown, seconds = downsample(series.seconds, points_per_line(total))
    largest = max(series.seconds)
    unit, factor = ("s", 1.0) if largest >= 1 else ("ms", 1000.0)
    axes.plot(shown, [factor * value for value in seconds], ".", markersize=3.5, color=color(0), alpha=0.85)
    levels = levels_of(series)
    for first, last, median in levels:
        axes.plot([first - 0.5, last + 0.5], [factor * median] * 2, color=color(1), linewidth=2)
    for number, (first, _, _) in enumerate(levels[1:], 1):
        axes.axvline(first - 0.5, color=INK, linewidth=0.7, alpha=0.5)
        axes.annotate(str(number), (first - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(2, -1),
                      textcoords="offset points", va="top", fontsize=9, color=INK)  # fmt: skip
    days = [printable(run.record["started_at"][:10]) for run in series.runs]
    ticks = sorted({round(place * (len(days) - 1) / (MAX_TICKS - 1)) for place in range(MAX_TICKS)})
    axes.set_xticks(ticks, [days[place] for place in ticks])
    # At the edges, a date would stick out.
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right")
    axes.set_ylabel(f"step time, {unit}")
    described = "; ".join(f"from {days[first]} {amount(median, 's')}" for first, _, median in levels)
    return f"Step time of {counted(len(days), 'record')} over time: {described}."
