"""Report of a comparison as GitHub-flavored Markdown, with pictures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import harness
from harness.analysis.verdict import Comparison, Pair
from harness.report import content, provenance
from harness.report.plots import captions, figures
from harness.text import printable

# Markup of Markdown and of GitHub. An entity is never markup; a backslash reads better.
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}
BACKSLASHED = "\\`*_[]|~#"
LEFT, RIGHT = ":--", "--:"


def render_markdown(comparison: Comparison, commands: Sequence[str], pictures: Iterable[str] | None = None) -> str:
    """Return the report.

    Args:
        comparison: what is reported.
        commands: command lines that reproduce the runs and the report.
        pictures: names of the files NAME.svg beside the report; by default all that `figures` draws.
    """
    names = list(figures(comparison) if pictures is None else pictures)
    parts = [f"# {escape(content.title(comparison))}"]
    for pair in comparison.pairs:
        parts += [f"**{escape(text)}**" for text in (pair.summary, content.claim_sentence(comparison, pair)) if text]
    parts += [escape(text) for text in (content.claim_statement(comparison),) if text]
    parts.append(_sides(comparison))
    several = len(comparison.pairs) > 1
    if several:
        parts += ["## Summary", _summary(comparison)]
    for pair in comparison.pairs:
        if several:
            parts.append(f"## {escape(pair.other.label)} against {escape(comparison.reference.label)}")
        parts += _pair(pair, comparison.margin, "###" if several else "##")
    if names:
        parts.append("## Pictures")
        titled = [(name, *captions(comparison)[name]) for name in captions(comparison) if name in names]
        parts += [f"### {title}\n\n![{title}]({name}.svg)\n\n{text}" for name, title, text in titled]
    parts += ["## Cautions", _cautions(comparison)]
    parts += _reproduction(comparison, commands)
    parts.append(f"Report of harness {harness.__version__}; verdict.json has the same content for programs.")
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line, in a paragraph or in a cell of a table."""
    shown = "".join(ENTITIES.get(c, f"\\{c}" if c in BACKSLASHED else c) for c in printable(text).strip())
    # :emoji:, and what GitHub would turn into links.
    shown = re.sub(r":(?=\w+:|//)", "&#58;", shown)
    shown = re.sub(r"(?i)\b(www)\.", r"\1&#46;", shown)
    # At the beginning of a line: bullets, underlines of headings, numbered lists.
    return re.sub(r"^([-+=]|\d+[.)](?=\s|$))", lambda found: f"{found[0][:-1]}\\{found[0][-1]}", shown)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: int = 0) -> str:
    """Return a table; the first columns are text and the last `numeric` ones are numbers."""
    alignment = [LEFT] * (len(heads) - numeric) + [RIGHT] * numeric
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, alignment, *rows))


def _sides(comparison: Comparison) -> str:
    rows = [
        (content.OTHER if number else content.REFERENCE, escape(side.label), escape(content.describe(side)))
        for number, side in enumerate(content.all_sides(comparison))
    ]
    return _table(("side", "name", "device and runs"), rows)


def _summary(comparison: Comparison) -> str:
    rows = [
        (escape(row.label), row.verdict, row.ratio, row.interval, row.repeats) for row in content.side_rows(comparison)
    ]
    heads = ("side", "verdict", f"{comparison.headline_title} ratio", "95 % interval", "processes")
    return _table(heads, rows, numeric=3)


def _pair(pair: Pair, margin: float, level: str) -> list[str]:
    rows = content.gate_rows(pair)
    parts = [
        f"{level} Gates",
        _table(("gate", "result", "finding"), [(row.name, row.state, escape(row.summary)) for row in rows]),
    ]
    details = [f"- {escape(detail)}" for row in rows if row.state == content.FAIL for detail in row.details]
    if details:
        parts.append("\n".join(details))
    if any(row.state == content.FAIL for row in rows):
        parts.append(content.GATES_STOP)
    parts.append(f"{level} Numbers")
    numbers = content.number_rows(pair)
    if not numbers:
        return [*parts, "No speed is stated."]
    return [*parts, _numbers(numbers), _processes(pair, numbers), " ".join(content.notes(pair, margin))]


def _numbers(rows: Iterable[content.NumberRow]) -> str:
    heads = ("mean over processes", "evidence", "repeats", "reference", "other", "ratio", "95 % interval")
    cells = [
        (f"{row.title}, {row.unit}", row.strength, row.repeats, row.reference_mean, row.other_mean, row.ratio,
         row.interval) for row in rows
    ]  # fmt: skip
    return _table(heads, cells, numeric=4)


def _processes(pair: Pair, numbers: Sequence[content.NumberRow]) -> str:
    rows = []
    for role, side in ((content.REFERENCE, pair.reference), (content.OTHER, pair.other)):
        for place, name in enumerate(content.processes(side)):
            values = [(row.reference if role == content.REFERENCE else row.other)[place] for row in numbers]
            cells = [("**outlier** " if value.outlier else "") + value.text for value in values]
            rows.append((role, escape(name), *cells))
    heads = ("side", "process", *(f"{row.title}, {row.unit}" for row in numbers))
    return _table(heads, rows, numeric=len(numbers))


def _cautions(comparison: Comparison) -> str:
    lines = [
        f"- **{escape(caution.name)}**, {escape(caution.side)}: {escape(caution.text)}"
        for caution in content.cautions(comparison)
    ]
    return "\n".join(lines) or "None."


def _reproduction(comparison: Comparison, commands: Sequence[str]) -> list[str]:
    lines = [printable(command) for command in commands]
    # The fence must be longer than any run of backticks inside.
    fence = "`" * max(3, 1 + max((len(run) for line in lines for run in re.findall("`+", line)), default=0))
    labels = [escape(side.label) for side in content.all_sides(comparison)]
    rows = [(escape(name), *map(escape, cells)) for name, cells in provenance.provenance_rows(comparison)]
    records = [(escape(label), escape(path), digest) for label, path, digest in provenance.records(comparison)]
    return [
        "## How to reproduce",
        "\n".join((f"{fence}sh", *lines, fence)),
        _table(("of every process", *labels), rows),
        _table(("side", "record", "content_sha256"), records),
    ]
