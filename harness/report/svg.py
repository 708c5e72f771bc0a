"""SVG pictures from matplotlib, for embedding in a page of either color scheme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree

from harness.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A function that draws on a figure and returns a description of the data in words.
Draw = Callable[["Figure"], str]

# Placeholder for currentColor, which matplotlib cannot write.
INK = "#010203"
# Blue, vermilion, green, purple as in Okabe and Ito's set, then brown and gray; shifted until each has a contrast of
# 3 on white and on the dark page (WCAG 1.4.11) and the first five stay apart for every kind of color vision.
# Markers and dashes make the same distinctions without color.
COLORS = ("#2068e8", "#d5661a", "#2f9a78", "#bb5cc0", "#8d6e35", "#7f8892")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MAX_POINTS = 2000
MAX_POINTS_OF_LINES = 10_000  # of all lines of a side together
LEGEND_LETTERS = 64  # in a row of a legend
LEGEND_HANDLE = 7  # width of the line before a name, in letters
MAX_NAME = 40  # in a legend: leaves room where letters are wide
WIDTH_INCHES = 5.0
PIXELS_PER_INCH = 96
FILE_STYLE = "svg{color:#1c2128}@media (prefers-color-scheme:dark){svg{color:#e6e9ee}}"

SVG_SPACE, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "harness",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    # A label between dollar signs is not a formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.formatter.useoffset": False,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "figure.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.07,
    "savefig.facecolor": "none",
    "savefig.pad_inches": 0.02,
}


def render_svg(name: str, title: str, height_inches: float, draw: Draw) -> str:
    """Return a picture as an SVG string that starts with its <svg> element.

    Args:
        name: prefix of the ids inside, so that pictures on one page do not share any.
        title: accessible title of the picture.
        height_inches: at a width of WIDTH_INCHES.
        draw: draws on the figure and returns a description of the data in words.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A user's own style sheet must not change a report.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, STYLE))
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        FigureCanvasSVG(figure)
        # matplotlib warns of scripts that its font lacks; browsers have fonts for them.
        warnings.simplefilter("ignore", UserWarning)
        description = draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return embeddable_svg(stream.getvalue(), name, title, description)


def embeddable_svg(text: str, name: str, title: str, description: str) -> str:
    """Return matplotlib's SVG with unique ids, a title, the page's text color, and without metadata and styles."""
    root = ElementTree.fromstring(text)
    view_box = root.attrib["viewBox"]
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG_SPACE}}}")
    for parent in list(root.iter()):
        for child in list(parent):
            # A <style> would apply to the whole page; its rule is set on the root below.
            if child.tag in ("metadata", "style"):
                parent.remove(child)
    used = set(_references(root))
    for element in root.iter():
        _clean(element, name, used)
    root.attrib = {
        "xmlns": SVG_SPACE,
        "xmlns:xlink": XLINK,
        "viewBox": view_box,
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-description",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    for place, (tag, key, words) in enumerate((("title", "title", title), ("desc", "description", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{key}"})
        element.text = words
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _references(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == f"{{{XLINK}}}href":
                yield value.removeprefix("#")
            yield from re.findall(r"url\(#([^)]+)\)", value)


def _clean(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Prefix the ids that are referred to, drop the others, and set the page's color and fonts."""
    attributes = dict(element.attrib)
    element.attrib.clear()
    for key, value in attributes.items():
        if key == "id":
            if value in used:
                element.set("id", f"{name}-{value}")
        elif key == f"{{{XLINK}}}href":
            element.set("xlink:href", f"#{name}-{value.removeprefix('#')}")
        else:
            changed = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", value)
            changed = changed.replace("'DejaVu Sans', sans-serif", FONTS).replace("'DejaVu Sans'", FONTS)
            element.set(key, changed.replace(INK, "currentColor"))


def standalone(svg: str) -> str:
    """Return a picture as a file of its own, whose color follows the reader's color scheme."""
    head, rest = svg.split(">", 1)
    width, height = (float(number) for number in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)[0])
    shown = WIDTH_INCHES * PIXELS_PER_INCH
    size = f'width="{shown:.0f}" height="{shown * height / width:.0f}"'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head} {size}><style>{FILE_STYLE}</style>{rest}'


def downsample(values: Sequence[float], most: int = MAX_POINTS) -> tuple[list[int], list[float]]:
    """Return positions and values of a curve with at most `most` points.

    Of each section the lowest, the highest and the first missing point (NaN) are kept, so that spikes and gaps stay.
    """
    if len(values) <= most:
        return list(range(len(values))), list(values)
    sections = max(1, most // 3)
    kept: set[int] = set()
    for number in range(sections):
        places = range(number * len(values) // sections, (number + 1) * len(values) // sections)
        known = [place for place in places if values[place] == values[place]]
        if known:
            kept |= {min(known, key=values.__getitem__), max(known, key=values.__getitem__)}
        kept |= set([place for place in places if values[place] != values[place]][:1])
    order = sorted(kept)
    return order, [values[place] for place in order]


def points_per_line(count: int) -> int:
    """Return the largest number of points of each of `count` lines, which limits the size of a page."""
    return min(MAX_POINTS, max(150, MAX_POINTS_OF_LINES // max(1, count)))


def color(index: int) -> str:
    """Return the color of a side, the reference being number 0."""
    return COLORS[index % len(COLORS)]


def marker(index: int) -> str:
    """Return the marker of a side."""
    return MARKERS[index % len(MARKERS)]


def dashes(index: int) -> Any:
    """Return the line style of a side."""
    return DASHES[index % len(DASHES)]


def truncate(text: str, most: int) -> str:
    """Return a printable label of at most `most` characters."""
    shown = printable(text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def legend_columns(names: Sequence[str]) -> int:
    """Return the number of columns of a legend."""
    widest = max((len(name) for name in names), default=0) + LEGEND_HANDLE
    return max(1, min(len(names), LEGEND_LETTERS // widest))


def legend(figure: Figure, labels: Sequence[str], handles: Sequence[Any]) -> None:
    """Put a legend above the drawing."""
    names = [truncate(label, MAX_NAME) for label in labels]
    columns = legend_columns(names)
    figure.legend(handles, names, loc="outside upper left", ncols=columns, borderpad=0.1, columnspacing=1.4)
