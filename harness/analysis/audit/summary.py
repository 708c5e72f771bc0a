"""What a table of published rows says as a whole, once those that cannot be trusted are left out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from harness.analysis.audit.checks import UNPROVEN, Finding, audit_row
from harness.analysis.audit.rows import Row
from harness.analysis.chips import chips_meant
from harness.analysis.claims import ANY, CANNOT_TELL, NOT_TESTED, TIME, Claim, ClaimVerdict, chips_of, within

AUDIT_SCHEMA_VERSION = 1
# Two rows that happen to agree have next to no spread, and say next to nothing of other trainings.
FEWEST_ROWS_FOR_AN_INTERVAL = 3


@dataclass(frozen=True)
class AuditedRow:
    """A row with what was found about it."""

    row: Row
    findings: tuple[Finding, ...]

    @property
    def grade(self) -> str | None:
        """The gravest finding's, or None if nothing at all was found."""
        return self.findings[0].sure if self.findings else None

    @property
    def sound(self) -> bool:
        """Nothing was found but what is unproven."""
        return self.grade in (None, UNPROVEN)

    @property
    def ratio(self) -> float | None:
        """The subject's time over the reference's."""
        return self.row.time_ratio


@dataclass(frozen=True)
class Mean:
    """The geometric mean of the time ratios of sound rows; the rows are taken for independent trials."""

    count: int
    estimate: float
    low: float | None
    """Of the 95 % interval by Student's t on logarithms; None for fewer rows than FEWEST_ROWS_FOR_AN_INTERVAL."""
    high: float | None
    smallest: float
    largest: float


@dataclass(frozen=True)
class Audit:
    """A table of rows, audited."""

    rows: tuple[AuditedRow, ...]
    mean: Mean | None
    """Of all sound rows that have a ratio; None if none has."""


def audit(rows: Sequence[Row]) -> Audit:
    """Audit every row of a table, and average the sound ones."""
    audited = tuple(AuditedRow(row, tuple(audit_row(row, rows))) for row in rows)
    return Audit(audited, mean_of(audited))


def mean_of(rows: Sequence[AuditedRow]) -> Mean | None:
    """Return the geometric mean of the time ratios of the sound rows."""
    ratios = [row.ratio for row in rows if row.sound and row.ratio is not None]
    if not ratios:
        return None
    logarithms = [math.log(ratio) for ratio in ratios]
    middle, low, high = statistics.fmean(logarithms), None, None
    if len(logarithms) >= FEWEST_ROWS_FOR_AN_INTERVAL:
        half = stats.sem(logarithms) * stats.t.ppf(0.975, len(logarithms) - 1)
        low, high = math.exp(middle - half), math.exp(middle + half)
    return Mean(len(ratios), math.exp(middle), low, high, min(ratios), max(ratios))


def rows_about(claim: Claim, table: Audit) -> list[AuditedRow]:
    """Return the rows that have a ratio of just the claim's chips, and that its conditions do not rule out."""
    return [row for row in table.rows if row.ratio is not None and _is_about(row.row, claim)]


def _other_than_its_own(rows: Sequence[AuditedRow], claim: Claim) -> list[AuditedRow]:
    """Return the rows that are not the claim itself: what is claimed is no evidence of it."""
    return [row for row in rows if row.row.name != claim.name]


def _is_about(row: Row, claim: Claim) -> bool:
    for written, claimed in ((row.text("subject"), claim.subject), (row.text("reference"), claim.reference)):
        meant = {chip.name for chip in chips_meant(written or "")}
        if not meant or not meant <= {chip.name for chip in chips_of(claimed)}:
            return False
    if claim.minimum_parameters is not None and (row.size or 0) < claim.minimum_parameters:
        # As with records: a model of unknown size is not shown to be one that the claim is of.
        return False
    if claim.minimum_devices is not None and (row.number("devices") or claim.minimum_devices) < claim.minimum_devices:
        return False
    return claim.precision is None or row.text("precision") in (None, claim.precision)


def judge_by_rows(claim: Claim, table: Audit) -> ClaimVerdict:
    """Return what the sound rows about the claim's chips say of it."""
    about = rows_about(claim, table)
    others = _other_than_its_own(about, claim)
    mean = mean_of(others)
    if mean is None:
        return ClaimVerdict(NOT_TESTED, _why_no_evidence(claim, about, others))
    if mean.low is None or mean.high is None:
        return ClaimVerdict(
            CANNOT_TELL,
            f"{mean.count} sound rows beside the claim's own, expected {FEWEST_ROWS_FOR_AN_INTERVAL} or more to tell "
            "how trainings differ",
        )
    if claim.quantity == TIME:
        return within(claim, mean.estimate, mean.low, mean.high)
    return within(claim, 1 / mean.estimate, 1 / mean.high, 1 / mean.low)


def _why_no_evidence(claim: Claim, about: Sequence[AuditedRow], others: Sequence[AuditedRow]) -> str:
    if claim.subject == ANY:
        return "a rehearsal, not a published claim"
    if not about:
        return f"no published row compares {claim.subject} with {claim.reference}"
    if not others:
        return "the only row about it is the claim itself, which is no evidence of it"
    return f"none of the {len(others)} other rows about it can be trusted"


def to_dict(table: Audit, claim: Claim | None = None) -> dict[str, Any]:
    """Return the audit as JSON values."""
    verdict = None if claim is None else judge_by_rows(claim, table)
    return {
        "schema_version": AUDIT_SCHEMA_VERSION,
        "rows": [
            {
                "id": row.row.name,
                "grade": row.grade,
                "sound": row.sound,
                "time_ratio": row.ratio,
                "subject_flops_per_device": row.row.flops_per_device("subject"),
                "reference_flops_per_device": row.row.flops_per_device("reference"),
                "findings": [asdict(finding) for finding in row.findings],
                "printed": dict(row.row.values),
            }
            for row in table.rows
        ],
        "mean_time_ratio": None if table.mean is None else asdict(table.mean),
        "claim": None if claim is None or verdict is None else {"name": claim.name, **asdict(verdict)},
    }
