"""Report of a comparison as one HTML page, without scripts, network access or other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

import harness
from harness.analysis import claims, verdict
from harness.analysis.verdict import Comparison, Pair
from harness.report import content, provenance
from harness.report.plots import captions, figures
from harness.text import capitalized, printable

TEMPLATE = "page.html.j2"
# Tone, and so color, of a verdict; any other is "bad".
TONES = {
    verdict.EQUIVALENT: "good",
    verdict.SAME_COMPUTATION: "good",
    verdict.FASTER: "news",
    verdict.SLOWER: "news",
    verdict.LESS: "news",
    verdict.MORE: "news",
    verdict.INCONCLUSIVE: "care",
}
CLAIM_TONES = {
    claims.SUPPORTED: "good",
    claims.REFUTED: "bad",
    claims.INCONCLUSIVE: "care",
    claims.NOT_TESTED: "care",
}
STATE_TONES = {content.PASS: "good", content.FAIL: "bad", content.NOT_CHECKED: "care"}


def render_page(comparison: Comparison, commands: Sequence[str], pictures: Mapping[str, str] | None = None) -> str:
    """Return the page.

    The template escapes everything from records and from the command line, except the pictures, whose text matplotlib
    has escaped.

    Args:
        comparison: what is reported.
        commands: command lines that reproduce the runs and the report.
        pictures: result of `figures`, if there is one already.
    """
    pictures = figures(comparison) if pictures is None else pictures
    return template(TEMPLATE).render(
        title=content.title(comparison),
        reference=printable(comparison.reference.label),
        ratio_title=capitalized(comparison.headline_title),
        sides=[(printable(side.label), content.describe(side)) for side in content.all_sides(comparison)],
        work=content.work(comparison),
        claim_statement=content.claim_statement(comparison),
        summary=content.side_rows(comparison) if len(comparison.pairs) > 1 else [],
        pairs=[_pair(comparison, pair) for pair in comparison.pairs],
        pictures=[(name, *captions(comparison)[name], Markup(svg)) for name, svg in pictures.items()],
        cautions=content.cautions(comparison),
        commands=[printable(command) for command in commands],
        provenance=provenance.provenance_rows(comparison),
        digests=provenance.DIGESTS,
        records=provenance.records(comparison),
        tones=STATE_TONES,
        gates_stop=content.GATES_STOP,
        version=harness.__version__,
        schema_version=verdict.VERDICT_SCHEMA_VERSION,
    )


def template(name: str) -> Template:
    """Return a template of this folder, which escapes all its variables."""
    environment = Environment(
        loader=FunctionLoader(lambda file: files("harness.report").joinpath(file).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def _pair(comparison: Comparison, pair: Pair) -> dict[str, Any]:
    """Return the template's variables for one verdict."""
    rows = content.gate_rows(pair)
    return {
        "verdict": pair.verdict,
        "tone": TONES.get(pair.verdict, "bad"),
        # In a headline, the sign stays with its number.
        "summary": printable(pair.summary).replace(" %", "\N{NO-BREAK SPACE}%"),
        "claim": content.claim_sentence(comparison, pair),
        "claim_verdict": pair.claim.verdict if pair.claim else "",
        "claim_tone": CLAIM_TONES[pair.claim.verdict] if pair.claim else "",
        "label": printable(pair.other.label),
        "gates": [(row, content.details_beyond_tests(pair, row)) for row in rows],
        "failed": any(row.state == content.FAIL for row in rows),
        "tests": content.tests(pair),
        "numbers": content.number_rows(pair),
        "notes": content.notes(pair, comparison.margin),
        "processes": [content.processes(side) for side in (pair.reference, pair.other)],
    }
