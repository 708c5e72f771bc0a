"""Pictures of speed against sequence length and model size, with the measured peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.analysis.format import tokens_per_second
from harness.report.svg import INK, color, dashes, legend, marker, render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
HEIGHT_INCHES = 3.1


def draw_growth(records: Sequence[Record]) -> dict[str, str]:
    """Return the pictures `sequence_length` and `model_size` as SVG.

    `sequence_length` shows the model with the most sequence lengths, `model_size` the sequence length with the most
    models; a picture with a single point is left out.
    """
    found: dict[str, str] = {}
    for name, title, axis, x, group in (
        ("sequence_length", "Speed against the length of sequences", "tokens in a sequence", _length, _model),
        ("model_size", "Speed against the size of the model", "parameters", _parameters, _length),
    ):
        groups: dict[Any, list[Record]] = {}
        for record in records:
            groups.setdefault(group(record), []).append(record)
        widest = max(groups.values(), key=lambda each: len({x(record) for record in each}), default=[])
        if len({x(record) for record in widest}) > 1:
            found[name] = render_svg(name, title, HEIGHT_INCHES, partial(_draw, widest, x, axis))
    return found


def ceiling(record: Record) -> float | None:
    """Return the tokens/s at the device's measured peak, or None if that is unknown."""
    used = record["utilization"]
    if used is None or used["measured_peak_flops"] is None:
        return None
    return record["world_size"] * used["measured_peak_flops"] / used["flops_per_token"]


def _length(record: Record) -> int:
    return record["config"]["workload"]["seq_len"]


def _model(record: Record) -> str:
    return record["config"]["model"]["name"]


def _parameters(record: Record) -> int:
    return record["model"]["parameters"]


def _track(record: Record) -> str:
    return record["config"]["track"]["name"]


def _draw(records: Sequence[Record], x: Callable[[Record], int], axis: str, figure: Figure) -> str:
    from matplotlib.ticker import LogLocator

    axes: Axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel=axis)
    axes.set_title("tokens/s")
    handles, names, words = [], [], []
    limits = {x(record): limit for record in records if (limit := ceiling(record)) is not None}
    if limits:
        places = sorted(limits)
        [line] = axes.plot(places, [limits[place] for place in places], color=INK, linestyle=dashes(1), linewidth=1)
        handles.append(line)
        names.append("measured peak")
        words.append("measured peak: " + _speeds_text(places, [limits[place] for place in places]))
    for number, track in enumerate(sorted({_track(record) for record in records}, reverse=True)):
        speeds: dict[int, list[float]] = {}
        for record in records:
            if _track(record) == track:
                speeds.setdefault(x(record), []).append(record["timing"]["tokens_per_second"])
        places = sorted(speeds)
        best = [max(speeds[place]) for place in places]
        [line] = axes.plot(places, best, marker=marker(number), color=color(number), linestyle=dashes(number))
        handles.append(line)
        names.append(f"track={track}")
        words.append(f"track={track}: " + _speeds_text(places, best))
    ticks = sorted({x(record) for record in records})
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    shown = [record["timing"]["tokens_per_second"] for record in records] + list(limits.values())
    within_a_decade = max(shown) < 10 * min(shown)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if within_a_decade else (1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_yticks([], minor=True)
    legend(figure, names, handles)
    return "; ".join(words)


def _speeds_text(places: Sequence[int], speeds: Sequence[float]) -> str:
    return ", ".join(
        f"{_short(place)}: {tokens_per_second(speed)}" for place, speed in zip(places, speeds, strict=True)
    )


def _short(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count}"
