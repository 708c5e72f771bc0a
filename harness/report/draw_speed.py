"""Pictures of speed: the ratio with its interval, step times inside processes, tokens/s of each process."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.analysis.cautions import interval_step_seconds
from harness.analysis.format import amount, interval, ratio, scale, scaled
from harness.analysis.ratio_statistics import Ratio
from harness.analysis.run_group import RunGroup
from harness.analysis.verdict import Comparison, Pair
from harness.report.content import measured_sides
from harness.report.svg import INK, color, dashes, downsample, marker, truncate
from harness.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_DOTS = 900  # a side in the picture of step times
# Dots that are shifted by multiples of the golden ratio do not cover each other.
GOLDEN_SHARE = 0.618034


def draw_ratios(comparison: Comparison, figure: Figure) -> str:
    axes: Axes = figure.subplots()
    margin = (1 / (1 + comparison.margin), 1 + comparison.margin)
    axes.axvspan(*margin, color=INK, alpha=0.1, linewidth=0)
    axes.axvline(1, color=INK, linewidth=0.8)
    edges, words, names = [*margin], [], []
    for number, pair in enumerate(comparison.pairs, 1):
        if pair.headline is None:
            continue
        edges += _bar(axes, len(names), number, pair.headline.ratio)
        names.append(truncate(pair.other.label, 22))
        words.append(f"{printable(pair.other.label)}: {_ratio_text(pair.headline.ratio)}")
    room = 0.45 * (max(edges) - min(edges))
    axes.set(xlim=(min(edges) - room, max(edges) + room), ylim=(len(names) - 0.5, -0.8))
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("step time ratio to the reference")
    return f"the same time: {interval(*margin)}; " + "; ".join(words)


def _bar(axes: Axes, place: int, number: int, found: Ratio) -> list[float]:
    """Draw one side's interval, and return its ends."""
    ends = [found.estimate] if found.low is None or found.high is None else [found.low, found.high]
    axes.plot(ends, [place] * len(ends), color=color(number), linewidth=2.5, solid_capstyle="round")
    axes.plot([found.estimate], [place], marker(number), color=color(number), markersize=7)
    axes.annotate(
        _ratio_text(found), (found.estimate, place), (0, 7), textcoords="offset points", ha="center", fontsize=9
    )
    return ends


def _ratio_text(found: Ratio) -> str:
    return f"{ratio(found.estimate)} ({interval(found.low, found.high)})"


def draw_step_times(sides: Mapping[int, RunGroup], figure: Figure) -> str:
    axes: Axes = figure.subplots()
    intervals = {number: [interval_step_seconds(run.record) for run in side.runs] for number, side in sides.items()}
    factor, unit = scale([value for runs in intervals.values() for run in runs for value in run], "s")
    columns = _columns(list(sides.values()))
    words = []
    for (number, side), places in zip(sides.items(), columns, strict=True):
        for place, values in zip(places, intervals[number], strict=True):
            shown = [factor * value for value in downsample(values, MAX_DOTS // len(places))[1]]
            spread = [place + 0.5 * ((GOLDEN_SHARE * index) % 1 - 0.5) for index in range(len(shown))]
            axes.plot(spread, shown, marker(number), color=color(number), markersize=3, alpha=0.6, markeredgewidth=0)
        means = [factor * value for value in side.values("timing", "mean_step_seconds")]
        axes.hlines(means, [x - 0.36 for x in places], [x + 0.36 for x in places], color=INK, linewidth=1.4)
        known = [value for run in intervals[number] for value in run]
        words.append(f"{printable(side.label)}: intervals from {amount(min(known), 's')} to {amount(max(known), 's')}")
    _side_ticks(axes, list(sides.values()), columns)
    axes.set_title(f"step time, {unit}")
    return "; ".join(words)


def draw_speeds(comparison: Comparison, figure: Figure) -> str:
    axes: Axes = figure.subplots()
    sides = measured_sides(comparison)
    columns = _columns(list(sides.values()))
    mean = statistics.geometric_mean(comparison.reference.values("timing", "tokens_per_second"))
    axes.axhspan(mean / (1 + comparison.margin), mean * (1 + comparison.margin), color=INK, alpha=0.08, linewidth=0)
    axes.axhline(mean, color=color(0), linestyle=dashes(1), linewidth=1)
    words = []
    for (number, side), places in zip(sides.items(), columns, strict=True):
        values = side.values("timing", "tokens_per_second")
        axes.plot(places, values, marker(number), color=color(number), markersize=6)
        for low, high in _speed_intervals(comparison.pairs[number - 1]) if number else ():
            axes.vlines(places[-1] + 0.6, mean * low, mean * high, color=color(number), linewidth=3)
        words.append(f"{printable(side.label)}: {', '.join(scaled(values, 'tokens/s')[0])} tokens/s")
    _side_ticks(axes, list(sides.values()), columns)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_title("tokens/s")
    return "; ".join(words)


def _speed_intervals(pair: Pair) -> list[tuple[float, float]]:
    found = [quantity.ratio for quantity in pair.quantities if quantity.key == "tokens_per_second"]
    return [(known.low, known.high) for known in found if known.low is not None and known.high is not None]


def _columns(sides: Sequence[RunGroup]) -> list[list[float]]:
    """Return the horizontal position of each process of each side, with a gap between sides."""
    found, start = [], 0.0
    for side in sides:
        found.append([start + index for index in range(len(side.runs))])
        start += len(side.runs) + 0.8
    return found


def _side_ticks(axes: Axes, sides: Sequence[RunGroup], columns: Sequence[Sequence[float]]) -> None:
    most = max(8, 52 // len(sides))
    axes.set_xticks([statistics.fmean(places) for places in columns], [truncate(side.label, most) for side in sides])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(columns[0][0] - 0.9, columns[-1][-1] + 0.9)
