"""Checks of a published row by itself: its figures against each other, and what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from harness.analysis.audit.peak_checks import check_implied_flops, check_mfu, check_precision
from harness.analysis.audit.rows import (
    INCONSISTENT,
    SIDES,
    SUSPICIOUS,
    UNPROVEN,
    AuditFinding,
    Figure,
    Row,
    exactly,
)
from harness.analysis.chips import ambiguity
from harness.analysis.flops import MIN_WEIGHTS, parameters_of, parameters_of_layers
from harness.analysis.format import significant
from harness.analysis.named_models import model_preset

# Figures of three digits that belong together differ by rounding alone.
ROUNDING = 0.02
# Ratio of a printed size to the named model's, on the log scale.
SIZE_TOLERANCE = 0.15
# Ratio of a whole training's time to its steps' time.
MAX_OVERHEAD = 1.5
# A final loss or an accuracy that differs by more is of another computation, or of another evaluation.
LOSS_TOLERANCE = 0.02
ACCURACY_TOLERANCE = 0.02


def own_findings(row: Row) -> list[AuditFinding]:
    """Return all findings about a row that follow from the row alone."""
    return [
        *check_precision(row),
        *_size(row),
        *_batch(row),
        *_speeds(row),
        *_ratios(row),
        *check_mfu(row),
        *check_implied_flops(row),
        *_outcome(row),
        *_missing(row),
    ]


def _size(row: Row) -> Iterator[AuditFinding]:
    stated, shape = row.number("parameters"), model_preset(row.text("model"))
    active = row.number("active_parameters")
    if stated is None:
        return
    if active is not None and active > stated:
        why = f"the whole model has {stated / 1e9:.3g} billion"
        yield AuditFinding(INCONSISTENT, "size", f"{active / 1e9:.3g} billion active parameters", why)
    layers, width = row.number("layers"), row.number("width")
    if shape is not None and abs(math.log(stated / parameters_of(shape))) > SIZE_TOLERANCE:
        why = f"{row.text('model')} has {parameters_of(shape) / 1e9:.3g} billion"
    elif layers is not None and width is not None and stated < parameters_of_layers(layers, width, MIN_WEIGHTS):
        usual = parameters_of_layers(layers, width)
        why = f"{layers:g} layers of width {width:g} alone have about {usual / 1e9:.3g} billion"
    else:
        return
    yield AuditFinding(INCONSISTENT, "size", f"{stated / 1e9:.3g} billion parameters", why)


def _batch(row: Row) -> Iterator[AuditFinding]:
    stated, most = row.number("global_batch_size"), row.largest_batch_from_parts
    if stated is None or most is None or stated == most:
        return
    what, why = f"a global batch of {stated:g}", f"micro-batch x accumulation x devices is {most:g}"
    shared, devices = most / stated, row.number("devices") or 1
    if not row.copies_are_known and shared.is_integer() and (devices / shared).is_integer():
        yield AuditFinding(UNPROVEN, "batch", what, f"{why}: right if {shared:g} devices share a copy of the model")
    else:
        yield AuditFinding(INCONSISTENT, "batch", what, why)


def _speeds(row: Row) -> Iterator[AuditFinding]:
    for side in SIDES:
        for unknown, speeds in row.speeds_by_unknown_factors(side).items():
            slow, fast = _extremes(speeds)
            if speeds[fast].low <= (1 + ROUNDING) * speeds[slow].high:
                continue
            slowest, fastest = speeds[slow].value, speeds[fast].value
            # In samples without a sequence length, of one device without their number.
            unit = f"{'samples' if 'seq_len' in unknown else 'tokens'}/s{' a device' if 'devices' in unknown else ''}"
            yield AuditFinding(
                INCONSISTENT,
                "speed",
                f"{side}: {fast} says {significant(fastest)} {unit}, {slow} says {significant(slowest)}",
                f"they should be equal, and differ by {fastest / slowest - 1:.0%}",
            )


def _extremes(figures: Mapping[str, Figure]) -> tuple[str, str]:
    """Return the columns of the smallest and of the largest figure, as far as rounding lets them be told."""
    low = min(figures, key=lambda column: figures[column].high)
    return low, max(figures, key=lambda column: figures[column].low)


def _ratios(row: Row) -> Iterator[AuditFinding]:
    by_column = {column: ratio for column, ratio in row.time_ratios.items() if column != "total_seconds"}
    low = ""
    if by_column:
        low, high = _extremes(by_column)
        if by_column[high].low > (1 + 2 * ROUNDING) * by_column[low].high:
            yield AuditFinding(
                INCONSISTENT,
                "ratio",
                f"a time ratio of {by_column[high].value:.4g} by {high}",
                f"{by_column[low].value:.4g} by {low}, of the same training",
            )
    total = row.time_ratios.get("total_seconds")
    if by_column and total is not None and _times_apart(total, by_column[low]) > MAX_OVERHEAD:
        yield AuditFinding(
            SUSPICIOUS,
            "ratio",
            f"a time ratio of {total.value:.4g} by total_seconds",
            f"{by_column[low].value:.4g} by {low}: a training does not take that long beside its steps",
        )
    stated, time = row.printed("ratio"), next(iter(row.time_ratios.values()), None)
    if stated is None or time is None:
        return
    inverse = exactly(1).over(time)
    found, other = (time, inverse) if row.text("ratio_of") == "time" else (inverse, time)
    if not _rounds_to(found, stated):
        turned = ", its inverse" if _rounds_to(other, stated) else ""
        yield AuditFinding(
            INCONSISTENT,
            "ratio",
            f"a {row.text('ratio_of')} ratio of {stated.value:.4g}",
            f"the row's own columns give {found.value:.4g}{turned}",
        )


def _times_apart(one: Figure, two: Figure) -> float:
    """Return the smallest factor between two figures that their rounding allows."""
    return max(one.low / two.high, two.low / one.high)


def _rounds_to(found: Figure, stated: Figure) -> bool:
    """Return whether a ratio rounds to the stated one, by the rounding of its columns or of its last digit."""
    # A stated ratio is rounded, not cut off: half a unit both ways.
    half = max(ROUNDING * stated.value, stated.value - stated.low) * (1 + 1e-9)
    return found.low <= stated.value + half and found.high >= stated.value - half


def _outcome(row: Row) -> Iterator[AuditFinding]:
    losses = [row.of(side, "final_loss") for side in SIDES]
    if losses[0] is not None and losses[1] is not None and abs(math.log(losses[0] / losses[1])) > LOSS_TOLERANCE:
        yield AuditFinding(
            SUSPICIOUS,
            "outcome",
            f"final losses {losses[0]:g} and {losses[1]:g}",
            f"they differ by more than {LOSS_TOLERANCE:.0%}: not the same computation",
        )
    accuracies = [row.of(side, "accuracy") for side in SIDES]
    if accuracies[0] is not None and accuracies[1] is not None:
        one, two = (value for value in accuracies if value is not None)
        samples = row.number("evaluation_samples")
        allowed, why = ACCURACY_TOLERANCE, "the tolerance where evaluation_samples is not printed"
        if samples is not None:
            allowed, why = _chance(one, two, samples), f"which chance explains for {samples:,.0f} samples"
        if abs(one - two) > allowed:
            yield AuditFinding(
                SUSPICIOUS,
                "outcome",
                f"accuracies {one:.2%} and {two:.2%}",
                f"they differ by more than {allowed:.2%}, {why}: not the same computation",
            )


def _chance(one: float, two: float, samples: float) -> float:
    """Return 1.96 standard errors of the difference of two accuracies of one model."""
    mean = (one + two) / 2
    return 1.96 * math.sqrt(2 * mean * (1 - mean) / samples)


def _not_printed(row: Row) -> Iterator[tuple[str, str]]:
    """Yield what a row does not print, and what that leaves unchecked."""
    for side in SIDES:
        if not row.has(side):
            yield f"the {side}'s speed", "there is no ratio to check"
        elif row.text(side) is None:
            yield f"the {side}'s chip", "its peak is unknown"
    if row.flops_per_token is None:
        what = "the active parameters of the mixture" if row.is_mixture else "the model's size"
        yield what, "no speed was compared with a peak"
    if row.number("seq_len") is None:
        yield "the sequence length", "attention is not counted"
    if row.text("precision") is None:
        yield "the precision", "the largest peak of any precision is used"
    if row.flops_per_token is not None and all(row.speed_per_device(side) is None for side in SIDES):
        why = "no speed was compared with a peak"
        yield "what tokens/s a device follow from (devices, batch, sequence length)", why


def _missing(row: Row) -> Iterator[AuditFinding]:
    for what, why in _not_printed(row):
        yield AuditFinding(UNPROVEN, "missing", f"not printed: {what}", why)
    if row.assumed:
        yield AuditFinding(
            UNPROVEN,
            "assumed",
            f"not printed, but filled in by the author of the table: {', '.join(row.assumed)}",
            "the row is no evidence for a claim",
        )
    for side in SIDES:
        name = row.text(side)
        if name is not None and not row.chips(side):
            yield AuditFinding(UNPROVEN, "chip", f"{side}: {name!r}", "not in the catalogue, so its peak is unknown")
        elif unclear := ambiguity(name):
            yield AuditFinding(UNPROVEN, "chip", f"{side}: {unclear}", "the largest of their peaks is used")
    outcomes = [all(row.of(side, name) is not None for side in SIDES) for name in ("final_loss", "accuracy")]
    if all(row.has(side) for side in SIDES) and not any(outcomes):
        reason = "nothing shows that they computed the same"
        yield AuditFinding(UNPROVEN, "outcome", "neither losses nor accuracies of both sides", reason)
