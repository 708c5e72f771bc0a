"""Report of an audit as one HTML page, without scripts, network access or other files."""

from __future__ import annotations

from typing import Any

import harness
from harness.analysis.audit.rows import IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN
from harness.analysis.audit.summary import Audit, AuditedRow, judge_by_rows
from harness.analysis.claims import Claim
from harness.analysis.format import ratio, significant
from harness.report.audit_table import conclusion, grade
from harness.report.page import CLAIM_TONES, template
from harness.text import printable

TEMPLATE = "audit.html.j2"
TONES = {IMPOSSIBLE: "bad", INCONSISTENT: "bad", SUSPICIOUS: "care", UNPROVEN: "news"}


def render_audit(table: Audit, claim: Claim | None) -> str:
    """Return the page. The template escapes everything that comes from the table."""
    verdict = None if claim is None else judge_by_rows(claim, table)
    return template(TEMPLATE).render(
        title=f"Audit of {len(table.rows)} published rows",
        conclusion=[printable(line) for line in conclusion(table, claim)],
        statement=None if claim is None else claim.citation,
        claim_verdict=None if verdict is None else verdict.verdict,
        claim_tone=None if verdict is None else CLAIM_TONES[verdict.verdict],
        rows=[_row(row) for row in table.rows],
        version=harness.__version__,
    )


def _row(row: AuditedRow) -> dict[str, Any]:
    printed = row.row
    return {
        "name": printable(printed.name),
        "chips": printable(" against ".join(filter(None, (printed.text("subject"), printed.text("reference"))))),
        "grade": grade(row),
        "tone": ("good" if row.tested else TONES[UNPROVEN]) if row.sound else TONES[row.findings[0].severity],
        "ratio": "" if row.ratio is None else ratio(row.ratio),
        "subject": _teraflops(printed.flops_per_device("subject")),
        "reference": _teraflops(printed.flops_per_device("reference")),
        "findings": [
            (
                {"severity": finding.severity, "what": printable(finding.what), "why": printable(finding.why)},
                TONES[finding.severity],
            )
            for finding in row.findings
        ],
        "source": printable(printed.text("source") or ""),
    }


def _teraflops(flops: float | None) -> str:
    return "" if flops is None else significant(flops / 1e12)
