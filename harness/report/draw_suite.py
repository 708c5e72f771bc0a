"""Pictures of a comparison of suites: the ratio of each workload with the mean, and over the arithmetic intensity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.analysis.format import ratio
from harness.analysis.suite_verdict import SuiteComparison
from harness.report.draw_speed import WithInterval, draw_ratios, ratio_ticks
from harness.report.suite_content import MEAN, intensity
from harness.report.svg import INK, color, marker, render_svg, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS: Mapping[str, tuple[str, str]] = {
    "workloads": (
        "Each workload, as a ratio to the reference's",
        "Dot: ratio of means. Bar: 95 % interval, an arrow where it goes on. Square: the geometric mean of all, whose "
        "interval treats the workloads as a sample. Shaded: the same within the margin. The axis "
        "is logarithmic.",
    ),
    "intensity": (
        "Ratio against the arithmetic intensity of the work",
        "Horizontal: FLOP per byte of the matrix products and attention of a micro-batch, with each operand moved once "
        "a pass. Work on the left is bound by memory, on the right by compute. Both axes are logarithmic.",
    ),
}
COLOR_OF_ROWS, COLOR_OF_MEAN = 0, 1
POINTS_PER_INCH = 72
# Of a name: distances above and below its point, height of its line, and width of a letter.
SHIFTS_POINTS = (7, -14, 12, -19, 17, -24, 22, -29, 27, -34, 32, -39)
LINE_POINTS, LETTER_POINTS = 9, 4.6
AXES_SHARE = 0.85


def suite_figures(found: SuiteComparison) -> dict[str, str]:
    """Return every picture for which there are ratios, by name, in the order of CAPTIONS."""
    measured = found.measured
    if not measured:
        return {}
    rows: list[tuple[int, str, WithInterval]] = [
        (COLOR_OF_ROWS, row.workload.name, row.pair.headline.ratio)
        for row in measured
        if row.pair is not None and row.pair.headline is not None
    ]
    if found.mean is not None:
        rows.append((COLOR_OF_MEAN, MEAN, found.mean))
    pictures = {
        "workloads": (0.5 + 0.4 * len(rows), partial(draw_ratios, rows, found.margin, found.title)),
        "intensity": (3.4, partial(draw_intensity, found)),
    }
    return {name: render_svg(name, CAPTIONS[name][0], height, draw) for name, (height, draw) in pictures.items()}


def draw_intensity(found: SuiteComparison, figure: Figure) -> str:
    """Draw the ratio of each workload over its arithmetic intensity."""
    axes: Axes = figure.subplots()
    axes.axhspan(1 / (1 + found.margin), 1 + found.margin, color=INK, alpha=0.1, linewidth=0)
    axes.axhline(1, color=INK, linewidth=0.8)
    points = [(x, row.estimate, row.workload.name) for row in found.measured
              if row.estimate is not None and (x := intensity(row)) is not None]  # fmt: skip
    xs, ys = [x for x, _, _ in points], [1 / (1 + found.margin), 1 + found.margin, *(y for _, y, _ in points)]
    axes.set(xscale="log", yscale="log", xlim=_widened(min(xs), max(xs)), ylim=_widened(min(ys), max(ys)))
    _name_points(axes, figure, sorted(points))
    for axis, limits in ((axes.xaxis, (min(xs), max(xs))), (axes.yaxis, (min(ys), max(ys)))):
        ticks = ratio_ticks(*limits) if limits[1] > limits[0] else [limits[0]]
        axis.set_ticks(ticks, [f"{tick:,.4g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set_xlabel("FLOP per byte")
    axes.set_title(f"{found.title} ratio to the reference")
    return "; ".join(f"{name}: {x:,.0f} FLOP per byte, {ratio(y)}" for x, y, name in sorted(points))


def _name_points(axes: Axes, figure: Figure, points: Sequence[tuple[float, float, str]]) -> None:
    """Draw points with their names, each at the place nearest to its point where it covers nothing else."""
    size = [AXES_SHARE * POINTS_PER_INCH * float(inches) for inches in figure.get_size_inches()]
    # Left, bottom and width of what has its place, in points.
    places = [
        tuple(length * share for length, share in zip(size, _place(axes, x, y), strict=True)) for x, y, _ in points
    ]
    names: list[tuple[float, float, float]] = []
    for own, (x, y, name) in zip(places, points, strict=True):
        axes.plot([x], [y], marker(COLOR_OF_ROWS), color=color(COLOR_OF_ROWS), markersize=6)
        shown = truncate(name, 18)
        width = LETTER_POINTS * len(shown)
        taken = [*names, *((left, bottom, LINE_POINTS) for left, bottom in places if (left, bottom) != own)]
        shift = next(
            (each for each in SHIFTS_POINTS if _is_free(own[0], own[1] + each, width, taken)), SHIFTS_POINTS[0]
        )
        names.append((own[0], own[1] + shift, width))
        axes.annotate(shown, (x, y), textcoords="offset points", xytext=(0, shift), fontsize=8, ha="center")


def _is_free(left: float, bottom: float, width: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    return all(
        abs(left - other) > (width + wide) / 2 or abs(bottom - height) > LINE_POINTS for other, height, wide in taken
    )


def _place(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Return a point's place in the axes, from 0 to 1."""
    return tuple(  # pyright: ignore[reportReturnType]
        math.log(value / low) / math.log(high / low)
        for value, (low, high) in ((x, axes.get_xlim()), (y, axes.get_ylim()))
    )


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return limits of a logarithmic axis with room for names."""
    room = max((high / low) ** 0.15, 1.02)
    return low / room, high * room
