"""What a table of published rows says as a whole, once those that cannot be trusted are left out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from harness.analysis.audit.checks import has_peak
from harness.analysis.audit.rows import SIDES, UNPROVEN, AuditFinding, Row
from harness.analysis.audit.table import PublishedTable
from harness.analysis.chips import match_chips
from harness.analysis.claims import ANY_DEVICE, INCONCLUSIVE, NOT_TESTED, TIME, Claim, ClaimVerdict, chips_of, within
from harness.analysis.format import ratio

AUDIT_SCHEMA_VERSION = 1
# Two rows that happen to agree have next to no spread, and say next to nothing of other trainings.
MIN_ROWS_FOR_AN_INTERVAL = 3


@dataclass(frozen=True)
class AuditedRow:
    """A row with what was found about it."""

    row: Row
    findings: tuple[AuditFinding, ...]

    @property
    def grade(self) -> str | None:
        """The gravest finding's, or None if nothing at all was found."""
        return self.findings[0].sure if self.findings else None

    @property
    def sound(self) -> bool:
        """Nothing was found but what is unproven."""
        return self.grade in (None, UNPROVEN)

    @property
    def tested(self) -> bool:
        """A speed or an MFU could be held against a peak."""
        return any(
            self.row.of(side, "mfu") is not None
            or (self.row.flops_per_device(side) is not None and has_peak(self.row, side))
            for side in SIDES
        )

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
    """Of the 95 % interval by Student's t on logarithms; None for fewer rows than MIN_ROWS_FOR_AN_INTERVAL."""
    high: float | None
    smallest: float
    largest: float


@dataclass(frozen=True)
class PairMean:
    """The mean over the sound rows of one pair of chips, as the first of them writes it."""

    subject: str
    reference: str
    mean: Mean


@dataclass(frozen=True)
class Audit:
    """A table of rows, audited."""

    rows: tuple[AuditedRow, ...]
    means: tuple[PairMean, ...]
    """Of the sound rows that have a ratio, by pair of chips: ratios of other chips have no common mean."""


def audit(rows: Sequence[Row]) -> Audit:
    """Audit every row of a table, and average the sound ones."""
    audited = tuple(
        AuditedRow(row, tuple(found)) for row, found in zip(rows, PublishedTable(rows).findings(), strict=True)
    )
    return Audit(audited, tuple(_means(audited)))


def _means(rows: Sequence[AuditedRow]) -> Iterator[PairMean]:
    pairs: dict[tuple[object, object], list[AuditedRow]] = {}
    for row in rows:
        written = [row.row.text(side) for side in SIDES]
        if None not in written:
            # By what is meant, however it is written.
            subject, reference = (tuple(chip.name for chip in match_chips(text or "")) or text for text in written)
            pairs.setdefault((subject, reference), []).append(row)
    for group in pairs.values():
        if (mean := mean_of(group)) is not None:
            subject, reference = (str(group[0].row.text(side)) for side in SIDES)
            yield PairMean(subject, reference, mean)


def mean_of(rows: Sequence[AuditedRow]) -> Mean | None:
    """Return the geometric mean of the time ratios of the sound rows."""
    ratios = [row.ratio for row in rows if row.sound and row.ratio is not None]
    if not ratios:
        return None
    logarithms = [math.log(ratio) for ratio in ratios]
    middle, low, high = statistics.fmean(logarithms), None, None
    # Rows that agree to the last digit are no trials of one another.
    if len(logarithms) >= MIN_ROWS_FOR_AN_INTERVAL and max(logarithms) > min(logarithms):
        half = stats.sem(logarithms) * stats.t.ppf(0.975, len(logarithms) - 1)
        low, high = math.exp(middle - half), math.exp(middle + half)
    return Mean(len(ratios), math.exp(middle), low, high, min(ratios), max(ratios))


def rows_about(claim: Claim, table: Audit) -> list[AuditedRow]:
    """Return the rows that have a ratio of just the claim's chips, and that its conditions do not rule out."""
    return [row for row in table.rows if row.ratio is not None and _is_about(row.row, claim)]


def _other_than_its_own(rows: Sequence[AuditedRow], claim: Claim) -> list[AuditedRow]:
    """Return the rows that are not the claim itself: what is claimed is no evidence of it.

    Nor are rows of which the table's author had to guess something.
    """
    return [row for row in rows if not _states(row.row, claim) and not row.row.assumed]


def _states(row: Row, claim: Claim) -> bool:
    """Return whether a row is the claim's own source."""
    return (row.text("states") or row.name) == claim.name


def _is_about(row: Row, claim: Claim) -> bool:
    for written, claimed in ((row.text("subject"), claim.subject), (row.text("reference"), claim.reference)):
        meant = {chip.name for chip in match_chips(written or "")}
        if not meant or not meant <= {chip.name for chip in chips_of(claimed)}:
            return False
    # As with records: what is not printed is not shown to be what the claim is of.
    return (
        claim.parameters.holds(row.size)
        and claim.devices.holds(row.number("devices"))
        and claim.seq_len in (None, row.number("seq_len"))
        and claim.precision in (None, row.text("precision"))
    )


def judge_by_rows(claim: Claim, table: Audit) -> ClaimVerdict:
    """Return what the sound rows about the claim's chips say of it."""
    about = rows_about(claim, table)
    others = _other_than_its_own(about, claim)
    mean = mean_of(others)
    if mean is None:
        return ClaimVerdict(NOT_TESTED, _why_no_evidence(claim, about, others) + _own_grade(claim, table))
    if mean.count >= MIN_ROWS_FOR_AN_INTERVAL and mean.low is None:
        return ClaimVerdict(INCONCLUSIVE, f"all {mean.count} sound rows have the very same ratio: they are no trials")
    if mean.low is None or mean.high is None:
        return ClaimVerdict(
            INCONCLUSIVE,
            f"{_rows(mean.count)} (beside the claim's own and any with something guessed), where "
            f"{MIN_ROWS_FOR_AN_INTERVAL} or more could tell how trainings differ; geometric mean of the time ratios "
            f"{ratio(mean.estimate)}",
        )
    if claim.quantity == TIME:
        return within(claim, mean.estimate, mean.low, mean.high)
    return within(claim, 1 / mean.estimate, 1 / mean.high, 1 / mean.low)


def _why_no_evidence(claim: Claim, about: Sequence[AuditedRow], others: Sequence[AuditedRow]) -> str:
    if claim.subject == ANY_DEVICE:
        return "a rehearsal, not a published claim"
    if not about:
        return f"no published row compares {claim.subject} with {claim.reference}"
    if not others:
        return "the only rows about it are the claim itself, which is no evidence, or have something that was guessed"
    return f"none of the {len(others)} other rows about it can be trusted"


def _own_grade(claim: Claim, table: Audit) -> str:
    """Return what is wrong with the row that states the claim, if something is."""
    own = next((row for row in table.rows if _states(row.row, claim) and not row.sound), None)
    return "" if own is None else f"; and that row is {own.grade}"


def _rows(count: int) -> str:
    return "one sound row" if count == 1 else f"{count} sound rows"


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
                "tested": row.tested,
                "time_ratio": row.ratio,
                "subject_flops_per_device": row.row.flops_per_device("subject"),
                "reference_flops_per_device": row.row.flops_per_device("reference"),
                "findings": [asdict(finding) for finding in row.findings],
                "printed": dict(row.row.values),
            }
            for row in table.rows
        ],
        "mean_time_ratios": [asdict(pair) for pair in table.means],
        "claim": None if claim is None or verdict is None else {"name": claim.name, **asdict(verdict)},
    }
