"""Result of an audit: findings by row, mean ratios of the sound rows, and their verdict on a claim."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from harness.analysis.audit.peak_checks import has_peak
from harness.analysis.audit.rows import NOTE, SEVERITIES, SIDES, UNPROVEN, AuditFinding, Row
from harness.analysis.audit.table import PublishedTable
from harness.analysis.chips import match_chips
from harness.analysis.claims import (
    ANY_DEVICE,
    INCONCLUSIVE,
    NOT_TESTED,
    Claim,
    ClaimVerdict,
    chips_of,
    judge_time_ratio,
)
from harness.analysis.format import ratio

AUDIT_SCHEMA_VERSION = 1
# Two rows that happen to agree would give a far too narrow interval.
MIN_ROWS_FOR_AN_INTERVAL = 3


@dataclass(frozen=True)
class AuditedRow:
    """A row with its findings."""

    row: Row
    findings: tuple[AuditFinding, ...]

    @property
    def grade(self) -> str | None:
        """Severity of the most severe finding, or None without findings and with notes alone."""
        return next((finding.severity for finding in self.findings if finding.severity != NOTE), None)

    @property
    def faulty(self) -> bool:
        """True if a finding is worse than unproven."""
        return self.grade not in (None, UNPROVEN)

    @property
    def tested(self) -> bool:
        """True if a speed was compared with a peak."""
        return any(self.row.flops_per_device(side) is not None and has_peak(self.row, side) for side in SIDES)

    @property
    def sound(self) -> bool:
        """True if a speed was compared with a peak, and no finding is worse than unproven."""
        return self.tested and not self.faulty

    @property
    def ratio(self) -> float | None:
        """The subject's time over the reference's."""
        return self.row.time_ratio


@dataclass(frozen=True)
class Mean:
    """Geometric mean of the time ratios of sound rows, as independent trials."""

    count: int
    estimate: float
    low: float | None
    """Of the 95 % interval by Student's t on logarithms; None for fewer rows than MIN_ROWS_FOR_AN_INTERVAL."""
    high: float | None
    smallest: float
    largest: float


@dataclass(frozen=True)
class PairMean:
    """Mean over the sound rows of one pair of chips, which have their names from the first row."""

    subject: str
    reference: str
    mean: Mean


@dataclass(frozen=True)
class Audit:
    """All audited rows of a table, and their means."""

    rows: tuple[AuditedRow, ...]
    means: tuple[PairMean, ...]
    """Of the sound rows with a ratio, one for each pair of chips."""
    unread: tuple[str, ...] = ()
    """A line about each row that was left out because of a mistake in it."""

    @property
    def one_sided(self) -> bool:
        """True if no row compares two chips."""
        return all(row.ratio is None and row.row.number("ratio") is None for row in self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by their grade, `sound` or `untested`, the most severe first; without zeros."""
        grades = [str(row.grade) if row.faulty else "sound" if row.tested else "untested" for row in self.rows]
        return {grade: grades.count(grade) for grade in (*SEVERITIES, "sound", "untested") if grade in grades}

    @property
    def shared(self) -> dict[AuditFinding, int]:
        """Findings no worse than unproven that more than half of the rows have, with the number of rows."""
        found = Counter(each for row in self.rows for each in row.findings if each.severity in (UNPROVEN, NOTE))
        return {each: count for each, count in found.items() if count > max(1, len(self.rows) / 2)}


def audit(rows: Sequence[Row], unread: Sequence[str] = ()) -> Audit:
    """Audit every row of a table, and take the means of the sound ones.

    Args:
        rows: the rows that could be read.
        unread: a line about each of the others.
    """
    audited = tuple(
        AuditedRow(row, tuple(found)) for row, found in zip(rows, PublishedTable(rows).findings(), strict=True)
    )
    return Audit(audited, tuple(_means(audited)), tuple(unread))


def _means(rows: Sequence[AuditedRow]) -> Iterator[PairMean]:
    pairs: dict[tuple[object, object], list[AuditedRow]] = {}
    for row in rows:
        names = [row.row.text(side) for side in SIDES]
        if None not in names:
            # Different names of the same chips belong together.
            key = [tuple(chip.name for chip in match_chips(name)) or name for name in names]
            pairs.setdefault((key[0], key[1]), []).append(row)
    for group in pairs.values():
        if (mean := mean_of(group)) is not None:
            subject, reference = (str(group[0].row.text(side)) for side in SIDES)
            yield PairMean(subject, reference, mean)


def mean_of(rows: Sequence[AuditedRow]) -> Mean | None:
    """Return the geometric mean of the time ratios of the sound rows, or None without any."""
    ratios = [row.ratio for row in rows if row.sound and row.ratio is not None]
    if not ratios:
        return None
    logarithms = [math.log(ratio) for ratio in ratios]
    middle, low, high = statistics.fmean(logarithms), None, None
    # Equal ratios are not independent.
    if len(logarithms) >= MIN_ROWS_FOR_AN_INTERVAL and max(logarithms) > min(logarithms):
        half = stats.sem(logarithms) * stats.t.ppf(0.975, len(logarithms) - 1)
        low, high = math.exp(middle - half), math.exp(middle + half)
    return Mean(len(ratios), math.exp(middle), low, high, min(ratios), max(ratios))


def rows_about(claim: Claim, table: Audit) -> list[AuditedRow]:
    """Return the rows with a ratio of the claim's chips that fulfil the claim's conditions."""
    return [row for row in table.rows if row.ratio is not None and _is_about(row.row, claim)]


def _independent_rows(rows: Sequence[AuditedRow], claim: Claim) -> list[AuditedRow]:
    """Return the rows that are evidence: not the claim's own source, and without filled-in columns."""
    return [row for row in rows if not _states(row.row, claim) and not row.row.assumed]


def _states(row: Row, claim: Claim) -> bool:
    """Return whether a row is the claim's own source."""
    return (row.text("states") or row.name) == claim.name


def _is_about(row: Row, claim: Claim) -> bool:
    for side, claimed in (("subject", claim.subject), ("reference", claim.reference)):
        chips = {chip.name for chip in row.chips(side)}
        if not chips or not chips <= {chip.name for chip in chips_of(claimed)}:
            return False
    # As with records, a condition that is not printed is not fulfilled.
    return (
        claim.parameters.holds(row.size)
        and claim.devices.holds(row.number("devices"))
        and claim.seq_len in (None, row.number("seq_len"))
        and claim.precision in (None, row.text("precision"))
    )


def judge_by_rows(claim: Claim, table: Audit) -> ClaimVerdict:
    """Return the verdict on a claim from the sound rows about its chips."""
    about = rows_about(claim, table)
    others = _independent_rows(about, claim)
    mean = mean_of(others)
    if mean is None:
        return ClaimVerdict(NOT_TESTED, _why_no_evidence(claim, about, others) + _own_grade(claim, table))
    if mean.count >= MIN_ROWS_FOR_AN_INTERVAL and mean.low is None:
        return ClaimVerdict(
            INCONCLUSIVE, f"all {mean.count} sound rows have the same ratio, so they are not independent"
        )
    if mean.low is None or mean.high is None:
        return ClaimVerdict(
            INCONCLUSIVE,
            f"{_rows(mean.count)} (without the claim's own and those with filled-in columns), expected "
            f"{MIN_ROWS_FOR_AN_INTERVAL} or more for an interval; geometric mean of the time ratios "
            f"{ratio(mean.estimate)}",
        )
    return judge_time_ratio(claim, mean.estimate, mean.low, mean.high)


def _why_no_evidence(claim: Claim, about: Sequence[AuditedRow], others: Sequence[AuditedRow]) -> str:
    if claim.subject == ANY_DEVICE:
        return "a rehearsal, not a published claim"
    if not about:
        return f"no published row compares {claim.subject} with {claim.reference}"
    if not others:
        return "all rows about it are its own source or have filled-in columns, which is no evidence"
    return f"none of the {len(others)} other rows about it is sound"


def _own_grade(claim: Claim, table: Audit) -> str:
    """Return the severity of the claim's own row, if it is not sound."""
    own = next((row for row in table.rows if _states(row.row, claim) and row.faulty), None)
    return "" if own is None else f"; the claim's own row is {own.grade}"


def _rows(count: int) -> str:
    return "one sound row" if count == 1 else f"{count} sound rows"


def to_dict(table: Audit, claim: Claim | None = None) -> dict[str, Any]:
    """Return the audit, with the verdict on a claim, as JSON values."""
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
        "unread": list(table.unread),
        "mean_time_ratios": [asdict(pair) for pair in table.means],
        "claim": None if claim is None or verdict is None else {"name": claim.name, **asdict(verdict)},
    }
