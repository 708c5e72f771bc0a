"""Pictures of a comparison as SVG: losses of every side, speed only where a speed may be stated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from harness.analysis.verdict import Comparison
from harness.records.load import get_path
from harness.report import draw_runs, draw_speed
from harness.report.content import all_sides, measured_sides
from harness.report.svg import Draw, legend_columns, render_svg
from harness.text import capitalized

# Name of a picture: its title and its caption.
CAPTIONS: Mapping[str, tuple[str, str]] = {
    "ratio": (
        "Step time, as a ratio to the reference's",
        "Dot: ratio of means. Bar: 95 % interval, an arrow where it goes on. Shaded: the same within the margin. "
        "Left is faster, or less. The axis is logarithmic.",
    ),
    "loss": (
        "Training loss, and its difference from the reference's",
        "Above: the first process of each side. Below: every process against the reference's first; the reference's "
        "own repeats show the run-to-run variance.",
    ),
    "step_time": (
        "Step time within each process",
        "One column for each process: a dot is the mean step of one interval, the bar is the process's mean. The axis "
        "does not start at zero.",
    ),
    "tokens_per_second": (
        "Speed of each process",
        "One dot for each process. Dashed: the reference's mean. Shaded: the margin around it. Bars: the other side by "
        "the 95 % interval of the ratio, an arrow where it goes on. The axis does not start at zero.",
    ),
    "phases": ("Time of a step by phase", "Mean over all processes of a side."),
    "memory": ("Peak memory of the device", "The highest peak of a side's processes, by the device's allocator."),
    "power": ("Power of the device over the run", "One line for each process."),
}


def captions(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Return CAPTIONS, with what the ratios of a comparison are of."""
    _, text = CAPTIONS["ratio"]
    return {**CAPTIONS, "ratio": (f"{capitalized(comparison.headline_title)}, as a ratio to the reference's", text)}


def figures(comparison: Comparison) -> dict[str, str]:
    """Return every picture for which the records have data, by name, in the order of CAPTIONS."""
    return {
        name: render_svg(name, captions(comparison)[name][0], height_inches, draw)
        for name, (height_inches, draw) in _pictures(comparison).items()
    }


def _pictures(comparison: Comparison) -> dict[str, tuple[float, Draw]]:
    """Return the height in inches and the drawing function of each picture."""
    sides, measured = all_sides(comparison), measured_sides(comparison)
    bars = 0.45 + 0.5 * len(measured)
    found: dict[str, tuple[float, Draw]] = {}
    if measured:
        ratios, title = draw_speed.ratios_of(comparison), comparison.headline_title
        found["ratio"] = (0.4 + 0.5 * len(measured), partial(draw_speed.draw_ratios, ratios, comparison.margin, title))
    if any(get_path(side.first, "losses", "train") for side in sides):
        found["loss"] = (3.9, partial(draw_runs.draw_losses, comparison))
    if measured:
        found["step_time"] = (2.9, partial(draw_speed.draw_step_times, measured))
        found["tokens_per_second"] = (2.9, partial(draw_speed.draw_speeds, comparison))
        names = draw_runs.phase_names(measured)
        rows = math.ceil(len(names) / legend_columns(names))
        found["phases"] = (bars + 0.22 * rows, partial(draw_runs.draw_phases, measured))
    if any(draw_runs.peak_memory(side) for side in measured.values()):
        found["memory"] = (bars, partial(draw_runs.draw_memory, measured))
    if any(draw_runs.power_samples(run) for side in measured.values() for run in side.runs):
        found["power"] = (2.9, partial(draw_runs.draw_power, measured))
    return found
