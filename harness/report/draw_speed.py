"""Pictures of speed: the ratio with its interval, step times inside processes, tokens/s of each process."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from harness.analysis.cautions import interval_step_seconds
from harness.analysis.format import amount, interval, ratio, scale, scaled
from harness.analysis.run_group import RunGroup
from harness.analysis.verdict import Comparison, Pair
from harness.report.content import measured_sides
from harness.report.svg import INK, color, dashes, downsample, marker, truncate
from harness.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_DOTS = 900  # a side in the picture of step times
# An interval is drawn up to this factor from the estimates: beyond, an arrow stands for it.
MAX_RATIO = 10
MAX_TICKS = 8
# Dots that are shifted by multiples of the golden ratio do not cover each other.
GOLDEN_SHARE = 0.618034


class WithInterval(Protocol):
    """A ratio with its 95 % interval, which is None where it cannot be estimated."""

    @property
    def estimate(self) -> float: ...

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


def ratios_of(comparison: Comparison) -> list[tuple[int, str, WithInterval]]:
    """Return color, name and step time ratio of each side that has one."""
    return [(number, pair.other.label, pair.headline.ratio)
            for number, pair in enumerate(comparison.pairs, 1) if pair.headline is not None]  # fmt: skip


def draw_ratios(measured: Sequence[tuple[int, str, WithInterval]], half: float, title: str, figure: Figure) -> str:
    """Draw ratios with their intervals in rows.

    Args:
        measured: color, name and ratio of each row.
        half: the margin, as a fraction.
        title: what the ratios are of.
    """
    axes: Axes = figure.subplots()
    margin = (1 / (1 + half), 1 + half)
    limits = _ratio_limits(margin, [found for _, _, found in measured])
    axes.axvspan(*margin, color=INK, alpha=0.1, linewidth=0)
    axes.axvline(1, color=INK, linewidth=0.8)
    for place, (number, _, found) in enumerate(measured):
        low, high = _ends(found)
        axes.hlines(place, max(low, limits[0]), min(high, limits[1]), color=color(number), linewidth=2.5)
        cut = [(limits[0], "<")] * (low < limits[0]) + [(limits[1], ">")] * (high > limits[1])
        for end, arrow in cut:
            axes.plot([end], [place], arrow, color=color(number), markersize=8)
        axes.plot([found.estimate], [place], marker(number), color=color(number), markersize=7)
    axes.set(xscale="log", xlim=_widened(limits), ylim=(len(measured) - 0.5, -0.5))
    ticks = ratio_ticks(*limits)
    axes.set_xticks(ticks, [f"{tick:.6g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    # Beside the drawing, where neither bars nor lines cross the numbers.
    names = [f"{truncate(label, 22)}\n{_ratio_text(found)}" for _, label, found in measured]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{title} ratio to the reference")
    words = [f"{printable(label)}: {_ratio_text(found)}" for _, label, found in measured]
    return f"the same {title}: {interval(*margin)}; " + "; ".join(words)


def _ends(found: WithInterval) -> tuple[float, float]:
    """Return the ends of a ratio's interval, or twice the estimate where there is none."""
    return (found.estimate, found.estimate) if found.low is None or found.high is None else (found.low, found.high)


def _ratio_limits(margin: tuple[float, float], ratios: Sequence[WithInterval]) -> tuple[float, float]:
    """Return the lowest and the highest ratio to draw: all estimates, and no interval beyond MAX_RATIO of them."""
    estimates = [found.estimate for found in ratios]
    ends = [_ends(found) for found in ratios]
    low = max(min(margin[0], *(low for low, _ in ends)), min(margin[0], *estimates) / MAX_RATIO)
    high = min(max(margin[1], *(high for _, high in ends)), max(margin[1], *estimates) * MAX_RATIO)
    return low, high


def _widened(limits: tuple[float, float]) -> tuple[float, float]:
    """Return limits of a logarithmic axis with room for a marker at both ends."""
    room = (limits[1] / limits[0]) ** 0.06
    return limits[0] / room, limits[1] * room


def ratio_ticks(low: float, high: float) -> list[float]:
    """Return at most eight round ratios from `low` to `high`: 1, 2, 5 and their decades where the range is wide."""
    from matplotlib.ticker import MaxNLocator

    if high < 3 * low:
        return [float(tick) for tick in MaxNLocator(nbins=5).tick_values(low, high) if low <= tick <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) <= MAX_TICKS:
            return shown
    return shown[:: math.ceil(len(shown) / MAX_TICKS)]


def _ratio_text(found: WithInterval) -> str:
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
    limits = _speed_limits(list(sides.values()), mean * comparison.margin)
    for (number, side), places in zip(sides.items(), columns, strict=True):
        values = side.values("timing", "tokens_per_second")
        axes.plot(places, values, marker(number), color=color(number), markersize=6)
        for low, high in _speed_intervals(comparison.pairs[number - 1]) if number else ():
            x, ends = places[-1] + 0.6, (max(mean * low, limits[0]), min(mean * high, limits[1]))
            axes.vlines(x, *ends, color=color(number), linewidth=3)
            for end, arrow in [(ends[0], "v")] * (mean * low < ends[0]) + [(ends[1], "^")] * (mean * high > ends[1]):
                axes.plot([x], [end], arrow, color=color(number), markersize=8)
        words.append(f"{printable(side.label)}: {', '.join(scaled(values, 'tokens/s')[0])} tokens/s")
    _side_ticks(axes, list(sides.values()), columns)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_title("tokens/s")
    return "; ".join(words)


def _speed_limits(sides: Sequence[RunGroup], least: float) -> tuple[float, float]:
    """Return the lowest and the highest speed to draw: an interval may reach as far again as the processes do."""
    values = [value for side in sides for value in side.values("timing", "tokens_per_second")]
    low, high = min(values), max(values)
    room = max(high - low, least)
    return max(0.0, low - room), high + room


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
