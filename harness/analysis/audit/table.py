"""Checks of a row against the other rows of its table: copied figures, and a baseline that is slower elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from harness.analysis.audit.checks import own_findings
from harness.analysis.audit.rows import (
    IMPOSSIBLE,
    MEASURED,
    NOTE,
    SEVERITIES,
    SIDES,
    SUSPICIOUS,
    UNPROVEN,
    AuditFinding,
    Row,
)
from harness.analysis.chips import PRECISIONS, Chip
from harness.analysis.format import tflops
from harness.text import normalized_name

# Ratio of model FLOP/s of one chip on one model: differences of software and shapes are smaller.
WEAKER_BASELINE = 1.25
# Sequences up to twice as long are nearly the same work, and no easier; 32K against 4K is other work.
MAX_LENGTH_RATIO = 2
# Figures with few possible values, which different trainings have in common.
COMMON = ("mfu", "accuracy", "final_loss")
# Two equal figures, or one of five digits, are no coincidence.
MIN_ALIKE, DIGITS_ALIKE = 2, 5


class PublishedTable:
    """All rows of a file, each with its own findings."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self._found = [own_findings(row) for row in rows]
        self._impossible = {number for number, found in enumerate(self._found)
                            if any(finding.severity == IMPOSSIBLE for finding in found)}  # fmt: skip
        self._by_figure: dict[tuple[str, float], list[int]] = defaultdict(list)
        self._by_model: dict[tuple[object, ...], list[tuple[int, float, tuple[Chip, ...]]]] = defaultdict(list)
        for number, row in enumerate(rows):
            for figure in _figures(row).items():
                self._by_figure[figure].append(number)
            for side in SIDES:
                flops, chips = row.flops_per_device(side), row.chips(side)
                # Only a sound row is a baseline for others.
                trusted = all(finding.severity in (UNPROVEN, NOTE) for finding in self._found[number])
                if trusted and flops is not None and chips and _model(row) is not None:
                    self._by_model[_same_work(row)].append((number, flops, chips))

    def findings(self) -> list[list[AuditFinding]]:
        """Return all findings about every row, the most severe first."""
        return [
            sorted(
                [*own, *self._copied(number), *self._weaker_baseline(number)],
                key=lambda finding: SEVERITIES.index(finding.severity),
            )
            for number, own in enumerate(self._found)
        ]

    def _copied(self, number: int) -> Iterator[AuditFinding]:
        """Yield findings about other rows with the same figures."""
        row, own = self.rows[number], _figures(self.rows[number])
        same, copies = [], []
        for other in sorted({each for figure in own.items() for each in self._by_figure[figure]} - {number}):
            theirs = _figures(self.rows[other])
            shared = own.keys() & theirs.keys()
            alike = [column for column in shared if own[column] == theirs[column]]
            telling = len(alike) >= MIN_ALIKE or any(_digits(own[column]) >= DIGITS_ALIKE for column in alike)
            if not telling or not _whole_sides(shared, alike):
                continue
            if _work(self.rows[other]) == _work(row):
                same.append(other)
            # If only the other row is impossible, this one is the original.
            elif other not in self._impossible or number in self._impossible:
                copies.append(other)
        if copies:
            yield AuditFinding(
                SUSPICIOUS,
                "identical",
                f"the same figures as {self._names(copies)}, to the last digit",
                "two trainings never agree to the last digit: one row was copied",
            )
        # The first of several equal rows counts.
        if same and same[0] < number:
            yield AuditFinding(SUSPICIOUS, "identical", f"the same row as {self._names(same)}", "a trial counts once")

    def _names(self, numbers: Sequence[int]) -> str:
        more = "" if len(numbers) == 1 else f" and {len(numbers) - 1} more"
        return f"{self.rows[numbers[0]].name}{more}"

    def _weaker_baseline(self, number: int) -> Iterator[AuditFinding]:
        """Yield a finding where another row has a faster run of the same work on the same reference chip."""
        row = self.rows[number]
        own, chips = row.flops_per_device("reference"), row.chips("reference")
        if own is None or row.time_ratio is None or not chips or _model(row) is None:
            return
        rivals = [
            (flops, self.rows[other])
            for key in _same_work_or_unknown(row)
            for other, flops, theirs in self._by_model.get(key, ())
            if other != number and theirs == chips and _as_hard(self.rows[other], row)
        ]
        best = max(rivals, key=lambda rival: rival[0], default=None)
        if best is None or best[0] <= WEAKER_BASELINE * own:
            return
        subject = row.flops_per_device("subject")
        against = ""
        longer = best[1].number("seq_len") != row.number("seq_len")
        length = f", in sequences of {best[1].number('seq_len'):,.0f} tokens" if longer else ""
        if subject is not None:
            against = f"; against that row the speed ratio is {subject / best[0]:.2f}, not {1 / row.time_ratio:.2f}"
        yield AuditFinding(
            SUSPICIOUS,
            "baseline",
            f"reference: {tflops(own)} a device",
            f"{best[1].name} has {tflops(best[0])} of the same model on the same chip{length}{against}",
        )


def _figures(row: Row) -> dict[str, float]:
    """Return the measured speeds and times, by column."""
    columns = (f"{side}_{name}" for side in SIDES for name in MEASURED if name not in COMMON)
    return {column: value for column in columns if (value := row.number(column)) is not None}


def _whole_sides(shared: set[str], alike: Sequence[str]) -> bool:
    """Return whether all shared figures of a side are equal, or none is."""
    return all(len({column in alike for column in shared if column.startswith(side)}) < 2 for side in SIDES)


def _digits(value: float) -> int:
    return len(f"{value:.12g}".replace(".", "").strip("0"))


def _work(row: Row) -> tuple[object, ...]:
    columns = (
        "subject",
        "reference",
        "stack",
        "model",
        "parameters",
        "active_parameters",
        "seq_len",
        "devices",
        "precision",
    )
    return tuple(normalized_name(str(row.values[column])) if column in row.values else None for column in columns)


def _model(row: Row) -> tuple[object, ...] | None:
    name = row.text("model")
    size = row.number("parameters")
    if name is None and size is None:
        return None
    return None if name is None else normalized_name(name), size, row.number("active_parameters")


def _same_work(row: Row) -> tuple[object, ...]:
    return _model(row), row.number("devices"), row.text("precision")


def _as_hard(rival: Row, row: Row) -> bool:
    """Return whether a rival has the row's work, or nearly: somewhat longer sequences, in no larger a batch."""
    length, own_length = rival.number("seq_len"), row.number("seq_len")
    if length is None or own_length is None or not own_length <= length <= MAX_LENGTH_RATIO * own_length:
        return False
    batch, own_batch = rival.sequences_per_step, row.sequences_per_step
    return batch is None or own_batch is None or batch <= own_batch


def _same_work_or_unknown(row: Row) -> list[tuple[object, ...]]:
    """Return the keys of rows that may be of the same work, where a precision that is not printed can be any."""
    model, devices, precision = _same_work(row)
    precisions = {None, *PRECISIONS} if precision is None else {None, precision}
    return [(model, devices, each) for each in precisions]
