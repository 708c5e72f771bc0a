"""What is wrong with a published row: each finding with its reason and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.analysis.audit.rows import SIDES, Row
from harness.analysis.chips import PRECISIONS, Chip, ambiguity, chips_meant, find_chip, largest_peak
from harness.analysis.named_models import named_model

IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN = "impossible", "inconsistent", "suspicious", "unproven"
GRADES = (IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN)
# "7B" is printed of models of 6.7 to 7.3 billion parameters.
PARAMETER_SLACK = 1.10
# Figures of three digits that belong together differ by rounding alone.
ROUNDING = 0.02
# Of MFUs: how FLOPs are counted differs by as much (attention, embeddings, recomputation).
COUNTING = 0.15
# Beyond this share of the sheet's peak no published dense training went.
HIGHEST_CREDIBLE_MFU = 0.75
# Model FLOP/s of one chip on one model by one source: software and shapes explain less than this.
WEAKER_BASELINE = 1.25
# A final loss or an accuracy that differs by more is of another computation, or of another evaluation.
LOSS_TOLERANCE = 0.02
ACCURACY_TOLERANCE = 0.02
# The peak that tools divide by when they do not know the chip.
DEFAULT_CHIP = "NVIDIA A100-SXM4-80GB"


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    sure: str
    """One of GRADES: how sure it is that the row is wrong."""
    check: str
    what: str
    why: str


def audit_row(row: Row, table: Sequence[Row]) -> list[Finding]:
    """Return everything found about a row, the gravest first.

    Args:
        row: the row.
        table: all rows of the file, this one included.
    """
    found = [
        *_precision(row),
        *_batch(row),
        *_speeds(row),
        *_stated_ratio(row),
        *_utilization(row),
        *_implied_flops(row),
        *_identical(row, table),
        *_weaker_baseline(row, table),
        *_outcome(row),
        *_missing(row),
    ]
    return sorted(found, key=lambda finding: GRADES.index(finding.sure))


def peak(row: Row, side: str) -> tuple[float | None, str]:
    """Return the largest peak FLOP/s that a side's chip may have, and of which precision: of any if none is printed."""
    chips = chips_meant(row.text(side) or "")
    precision = row.text("precision")
    if precision is not None:
        return largest_peak(chips, precision), precision
    peaks = [(value, name) for name in PRECISIONS if (value := largest_peak(chips, name)) is not None]
    best = max(peaks, default=None)
    return (None, "any precision") if best is None else (best[0], f"{best[1]}, as no precision is printed")


def _precision(row: Row) -> Iterator[Finding]:
    precision = row.text("precision")
    for side in SIDES:
        chips = chips_meant(row.text(side) or "")
        if precision is not None and chips and all(precision in chip.lacks for chip in chips):
            yield Finding(
                IMPOSSIBLE,
                "precision",
                f"{precision} on {row.text(side)}",
                f"{' and '.join(chip.name for chip in chips)} has no {precision} arithmetic",
            )


def _batch(row: Row) -> Iterator[Finding]:
    stated, parts = row.number("global_batch_size"), row.batch_from_parts
    if stated is not None and parts is not None and stated != parts:
        yield Finding(
            INCONSISTENT,
            "batch",
            f"a global batch of {stated:g}",
            f"micro-batch x accumulation x devices is {parts:g}",
        )


def _speeds(row: Row) -> Iterator[Finding]:
    for side in SIDES:
        told = row.speeds(side)
        if len(told) < 2:
            continue
        slowest, fastest = min(told, key=lambda key: told[key]), max(told, key=lambda key: told[key])
        if told[fastest] > (1 + ROUNDING) * told[slowest]:
            yield Finding(
                INCONSISTENT,
                "speed",
                f"{side}: {fastest} says {_number(told[fastest])} tokens/s, {slowest} says {_number(told[slowest])}",
                f"both are one speed, and differ by {told[fastest] / told[slowest] - 1:.0%}",
            )


def _stated_ratio(row: Row) -> Iterator[Finding]:
    stated, time = row.number("ratio"), row.time_ratio
    if stated is None or time is None:
        return
    found = time if row.text("ratio_of") == "time" else 1 / time
    if abs(math.log(stated / found)) > ROUNDING:
        turned = ", which is its inverse" if abs(math.log(stated * found)) <= ROUNDING else ""
        yield Finding(
            INCONSISTENT,
            "ratio",
            f"a {row.text('ratio_of')} ratio of {stated:.4g}",
            f"the row's own columns give {found:.4g}{turned}",
        )


def _utilization(row: Row) -> Iterator[Finding]:
    for side in SIDES:
        stated = row.of(side, "mfu")
        if stated is None:
            continue
        flops, (most, what) = row.flops_per_device(side), peak(row, side)
        if stated > 1:
            yield Finding(IMPOSSIBLE, "MFU", f"{side}: MFU of {stated:.0%}", _why_above_one(row, side, stated))
        elif flops is not None and most is not None and abs(math.log(stated / (flops / most))) > COUNTING:
            yield Finding(
                INCONSISTENT,
                "MFU",
                f"{side}: MFU of {stated:.0%}",
                f"the printed speed is {_tera(flops)}, {flops / most:.0%} of the peak of {row.text(side)} ({what})",
            )


def _why_above_one(row: Row, side: str, stated: float) -> str:
    """Say which wrong divisor would explain it: tools take the A100's for a chip that they do not know."""
    default = find_chip(DEFAULT_CHIP)
    assert default is not None
    divisor = default.peak_flops["bf16"]
    assert divisor is not None
    precision = row.text("precision") or "bf16"
    real, own = stated * divisor, largest_peak(chips_meant(row.text(side) or ""), precision)
    said = "no chip does more than its peak"
    if own is None:
        chip = row.text(side)
        known = f"the peak of {chip!r} is unknown" if chip else "no chip is named"
        return f"{said}; {known}, and if the A100's {_tera(divisor)} were taken for it, the speed was {_tera(real)}"
    if own > divisor:
        return (
            f"{said}; divided by the A100's {_tera(divisor)}, as tools do by default, the speed was {_tera(real)}, "
            f"which is {real / own:.0%} of the peak of {row.text(side)}"
        )
    return said


def _implied_flops(row: Row) -> Iterator[Finding]:
    for side in SIDES:
        flops, (most, what) = row.flops_per_device(side), peak(row, side)
        chips = chips_meant(row.text(side) or "")
        lacking = [chip for chip in chips if row.text("precision") in chip.lacks]
        if flops is not None and most is None and len(lacking) < len(chips):
            yield Finding(
                UNPROVEN,
                "peak",
                f"{side}: {_tera(flops)} a device",
                f"the {what} peak of {row.text(side)} is unknown: whether that is possible was not checked",
            )
        if flops is None or most is None:
            continue
        slack = 1.0 if named_model(row.text("model")) else PARAMETER_SLACK
        said = f"{side}: {_tera(flops)} a device"
        of = f"the largest peak of {row.text(side)} is {_tera(most)} ({what})"
        measured = _best_product(chips_meant(row.text(side) or ""), row.text("precision"))
        if flops > slack * most:
            yield Finding(IMPOSSIBLE, "peak", said, f"{of}: {flops / most:.1f} times as much as the chip can do")
        elif flops > HIGHEST_CREDIBLE_MFU * most:
            yield Finding(SUSPICIOUS, "peak", said, f"{of}; no dense training is known at {flops / most:.0%} of it")
        elif measured is not None and flops > measured:
            yield Finding(
                SUSPICIOUS, "peak", said, f"bare matrix products on {row.text(side)} were measured at {_tera(measured)}"
            )


def _best_product(chips: Sequence[Chip], precision: str | None) -> float | None:
    found = [chip.measured_flops.get(precision or "bf16") for chip in chips]
    return None if not found or None in found else max(value for value in found if value is not None)


def _identical(row: Row, table: Sequence[Row]) -> Iterator[Finding]:
    own = _figures(row)
    if len(own) < 2:
        return
    for other in table:
        # Of two that are alike, one may be the original: where the other one alone cannot be, this is the original.
        if _beyond_peak(other) and not _beyond_peak(row):
            continue
        if other is not row and _figures(other) == own and _work(other) != _work(row):
            yield Finding(
                SUSPICIOUS,
                "identical",
                f"the same figures as {other.name}, to the last digit",
                "two different trainings do not measure alike: one row was copied",
            )


def _beyond_peak(row: Row) -> bool:
    return any(finding.sure == IMPOSSIBLE for finding in _implied_flops(row))


def _figures(row: Row) -> dict[str, float]:
    return {column: value for column, value in row.values.items() if column.startswith(("subject_", "reference_"))}


def _work(row: Row) -> tuple[object, ...]:
    return tuple(row.values.get(column) for column in ("model", "parameters", "seq_len", "devices", "precision"))


def _weaker_baseline(row: Row, table: Sequence[Row]) -> Iterator[Finding]:
    """Another row of the table has the same model on the same reference chip, and that runs it faster."""
    own = row.flops_per_device("reference")
    if own is None or row.time_ratio is None:
        return
    rivals = []
    for other in table:
        precisions = {each.text("precision") for each in (row, other)} - {None}
        same = (
            other is not row
            and _model(other) == _model(row)
            and other.number("devices") == row.number("devices")
            and len(precisions) < 2
            and not _beyond_peak(other)
        )
        for side in SIDES:
            flops = other.flops_per_device(side)
            if same and flops is not None and _same_chip(other.text(side), row.text("reference")):
                rivals.append((flops, other.name))
    best = max(rivals, default=None)
    if best is None or best[0] <= WEAKER_BASELINE * own:
        return
    subject = row.flops_per_device("subject")
    against = ""
    if subject is not None:
        against = f"; against that one the speed ratio is {subject / best[0]:.2f}, not {1 / row.time_ratio:.2f}"
    yield Finding(
        SUSPICIOUS,
        "baseline",
        f"reference: {_tera(own)} a device",
        f"{best[1]} has {_tera(best[0])} of the same model on the same chip{against}",
    )


def _model(row: Row) -> tuple[object, ...] | None:
    key = (row.text("model"), row.number("parameters"))
    return None if key == (None, None) else key


def _same_chip(one: str | None, two: str | None) -> bool:
    meant = chips_meant(one or "")
    return bool(meant) and meant == chips_meant(two or "")


def _outcome(row: Row) -> Iterator[Finding]:
    losses = [row.of(side, "final_loss") for side in SIDES]
    if losses[0] is not None and losses[1] is not None and abs(math.log(losses[0] / losses[1])) > LOSS_TOLERANCE:
        yield Finding(
            SUSPICIOUS,
            "outcome",
            f"final losses {losses[0]:g} and {losses[1]:g}",
            f"they differ by more than {LOSS_TOLERANCE:.0%}: the two did not compute the same",
        )
    accuracies = [row.of(side, "accuracy") for side in SIDES]
    if accuracies[0] is not None and accuracies[1] is not None:
        one, two = (value for value in accuracies if value is not None)
        chance = _chance(one, two, row.number("evaluation_samples"))
        if abs(one - two) > chance:
            yield Finding(
                SUSPICIOUS,
                "outcome",
                f"accuracies {one:.2%} and {two:.2%}",
                f"they differ by more than {chance:.1%}, which chance explains: the two did not compute the same",
            )


def _chance(one: float, two: float, samples: float | None) -> float:
    """Return how far two accuracies of one model may lie apart: two standard errors of the difference, if known."""
    if samples is None:
        return ACCURACY_TOLERANCE
    mean = (one + two) / 2
    return max(ACCURACY_TOLERANCE, 1.96 * math.sqrt(2 * mean * (1 - mean) / samples))


def _missing(row: Row) -> Iterator[Finding]:
    missing = [
        *(f"the {side}'s speed" for side in SIDES if not row.has(side)),
        *(f"the {side}'s chip" for side in SIDES if row.has(side) and row.text(side) is None),
    ]
    if row.flops_per_token is None:
        missing.append("the model's size")
    if row.number("seq_len") is None:
        missing.append("the sequence length")
    if row.text("precision") is None:
        missing.append("the precision")
    if row.flops_per_token is not None and all(row.speed_per_device(side) is None for side in SIDES):
        missing.append("what makes tokens/s a device of the figures (devices, batch, sequence length)")
    if missing:
        yield Finding(UNPROVEN, "missing", f"not printed: {', '.join(missing)}", "without it the row cannot be tested")
    for side in SIDES:
        written = row.text(side)
        if written is not None and not chips_meant(written):
            yield Finding(
                UNPROVEN, "chip", f"{side}: {written!r}", "no chip of the catalogue is called so: its peak is unknown"
            )
        elif unclear := ambiguity(written):
            yield Finding(UNPROVEN, "chip", f"{side}: {unclear}", "the largest of their peaks is taken")
    both = all(row.has(side) for side in SIDES)
    alike = any(all(row.of(side, what) is not None for side in SIDES) for what in ("final_loss", "accuracy"))
    if both and not alike:
        yield Finding(
            UNPROVEN,
            "outcome",
            "neither losses nor accuracies of both sides",
            "nothing shows that they computed the same",
        )


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.0f} TFLOP/s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
