"""Report of an audit as one HTML page, without scripts, network access or other files."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import harness
from harness.analysis.audit.rows import IMPOSSIBLE, INCONSISTENT, NOTE, SUSPICIOUS, UNPROVEN, AuditFinding
from harness.analysis.audit.summary import Audit, AuditedRow, judge_by_rows
from harness.analysis.claims import Claim
from harness.analysis.format import ratio, significant
from harness.report.audit_table import SHARED, conclusion, count_of, grade
from harness.report.page import CLAIM_TONES, template
from harness.text import printable

TEMPLATE = "audit.html.j2"
TONES = {IMPOSSIBLE: "bad", INCONSISTENT: "bad", SUSPICIOUS: "care", UNPROVEN: "news", NOTE: "good"}


def render_audit(table: Audit, claim: Claim | None) -> str:
    """Return the page. The template escapes everything that comes from the table."""
    verdict = None if claim is None else judge_by_rows(claim, table)
    shared = table.shared
    return template(TEMPLATE).render(
        title=f"Audit of {len(table.rows)} published rows",
        conclusion=[printable(line) for line in conclusion(table, claim)],
        statement=None if claim is None else claim.citation,
        claim_verdict=None if verdict is None else verdict.verdict,
        claim_tone=None if verdict is None else CLAIM_TONES[verdict.verdict],
        rows=[_row(row, shared) for row in table.rows],
        shared_heading=SHARED,
        shared=[(count_of(count, table), *_finding(each)) for each, count in shared.items()],
        unread=[printable(line) for line in table.unread],
        version=harness.__version__,
    )


def _row(row: AuditedRow, shared: Container[AuditFinding]) -> dict[str, Any]:
    printed = row.row
    return {
        "name": printable(printed.name),
        "chips": printable(" against ".join(filter(None, (printed.text("subject"), printed.text("reference"))))),
        "grade": grade(row),
        "tone": "good" if row.sound else TONES[row.findings[0].severity] if row.faulty else TONES[UNPROVEN],
        "ratio": "" if row.ratio is None else ratio(row.ratio),
        "subject": _teraflops(printed.flops_per_device("subject")),
        "reference": _teraflops(printed.flops_per_device("reference")),
        "findings": [_finding(finding) for finding in row.findings if finding not in shared],
        "source": printable(printed.text("source") or ""),
    }


def _finding(finding: AuditFinding) -> tuple[dict[str, str], str]:
    """Return a finding as text, and its tone."""
    shown = {"severity": finding.severity, "what": printable(finding.what), "why": printable(finding.why)}
    return shown, TONES[finding.severity]


def _teraflops(flops: float | None) -> str:
    return "" if flops is None else significant(flops / 1e12)
