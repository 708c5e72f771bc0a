"""The report as one page: HTML that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import harness
from harness.analysis import verdict
from harness.analysis.verdict import Comparison, Pair
from harness.report import content, provenance
from harness.report.format import printable
from harness.report.plots import CAPTIONS, figures

TEMPLATE = "page.html.j2"
# The colour of a verdict says how to take it: as good news, as news, with care, or as a refusal.
TONES = {
    verdict.EQUIVALENT: "good",
    verdict.SAME_COMPUTATION: "good",
    verdict.FASTER: "news",
    verdict.SLOWER: "news",
    verdict.CANNOT_TELL: "care",
}
STATE_TONES = {content.PASS: "good", content.FAIL: "bad", content.NOT_CHECKED: "care"}


def render_page(comparison: Comparison, commands: Sequence[str], pictures: Mapping[str, str] | None = None) -> str:
    """Return the page.

    Everything that comes from records or from the command line is escaped by the template; only the pictures, whose
    text matplotlib has escaped, are put in as they are.

    Args:
        comparison: what is reported.
        commands: command lines that make the runs and the report again.
        pictures: what `figures` drew, if it was asked already.
    """
    drawn = figures(comparison) if pictures is None else pictures
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(files("harness.report").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        title=content.title(comparison),
        reference=printable(comparison.reference.label),
        sides=[(printable(side.label), content.describe(side)) for side in content.all_sides(comparison)],
        work=content.work(comparison),
        summary=content.side_rows(comparison) if len(comparison.pairs) > 1 else [],
        pairs=[_pair(pair, comparison.margin) for pair in comparison.pairs],
        pictures=[(name, *CAPTIONS[name], Markup(svg)) for name, svg in drawn.items()],
        cautions=content.cautions(comparison),
        commands=[printable(command) for command in commands],
        facts=provenance.facts(comparison),
        digests=provenance.DIGESTS,
        records=provenance.records(comparison),
        tones=STATE_TONES,
        gates_stop=content.GATES_STOP,
        version=harness.__version__,
        schema_version=verdict.VERDICT_SCHEMA_VERSION,
    )


def _pair(pair: Pair, margin: float) -> dict[str, Any]:
    """Return what the template shows of one verdict."""
    rows = content.gate_rows(pair)
    return {
        "word": pair.word,
        "tone": TONES.get(pair.word, "bad"),
        "sentence": printable(pair.sentence),
        "label": printable(pair.other.label),
        "gates": [(row, content.details_beyond_tests(pair, row)) for row in rows],
        "failed": any(row.state == content.FAIL for row in rows),
        "tests": content.tests(pair),
        "numbers": content.number_rows(pair),
        "notes": content.notes(pair, margin),
        "processes": [content.processes(side) for side in (pair.reference, pair.other)],
    }
