"""Checks of a published row by itself: its figures against each other, and what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Iterator

from harness.analysis.audit.peak_checks import check_implied_flops, check_mfu, check_precision
from harness.analysis.audit.rows import INCONSISTENT, SIDES, SUSPICIOUS, UNPROVEN, AuditFinding, Row
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
    if stated is None:
        return
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
            (slow, slowest), (fast, fastest) = (each(speeds.items(), key=lambda item: item[1]) for each in (min, max))
            if fastest <= (1 + ROUNDING) * slowest:
                continue
            # In samples without a sequence length, of one device without their number.
            unit = f"{'samples' if 'seq_len' in unknown else 'tokens'}/s{' a device' if 'devices' in unknown else ''}"
            yield AuditFinding(
                INCONSISTENT,
                "speed",
                f"{side}: {fast} says {significant(fastest)} {unit}, {slow} says {significant(slowest)}",
                f"they should be equal, and differ by {fastest / slowest - 1:.0%}",
            )


def _ratios(row: Row) -> Iterator[AuditFinding]:
    by_column = {column: ratio for column, ratio in row.time_ratios.items() if column != "total_seconds"}
    low = ""
    if by_column:
        low, high = min(by_column, key=lambda key: by_column[key]), max(by_column, key=lambda key: by_column[key])
        if by_column[high] > (1 + 2 * ROUNDING) * by_column[low]:
            yield AuditFinding(
                INCONSISTENT,
                "ratio",
                f"a time ratio of {by_column[high]:.4g} by {high}",
                f"{by_column[low]:.4g} by {low}, of the same training",
            )
    total = row.time_ratios.get("total_seconds")
    if by_column and total is not None and abs(math.log(total / by_column[low])) > math.log(MAX_OVERHEAD):
        yield AuditFinding(
            SUSPICIOUS,
            "ratio",
            f"a time ratio of {total:.4g} by total_seconds",
            f"{by_column[low]:.4g} by {low}: a training does not take that long beside its steps",
        )
    stated, time = row.number("ratio"), row.time_ratio
    if stated is None or time is None:
        return
    found = time if row.text("ratio_of") == "time" else 1 / time
    if not _rounds_to(found, stated):
        inverse = ", its inverse" if _rounds_to(1 / found, stated) else ""
        yield AuditFinding(
            INCONSISTENT,
            "ratio",
            f"a {row.text('ratio_of')} ratio of {stated:.4g}",
            f"the row's own columns give {found:.4g}{inverse}",
        )


def _rounds_to(found: float, stated: float) -> bool:
    """Return whether a ratio rounds to `stated`, by the rounding of its columns or of its last digit."""
    decimals = len(f"{stated:.12g}".partition(".")[2])
    return abs(found - stated) <= max(ROUNDING * stated, 0.5 * 10.0**-decimals) * (1 + 1e-9)


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


def _missing(row: Row) -> Iterator[AuditFinding]:
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
        missing.append("what tokens/s a device follow from (devices, batch, sequence length)")
    if missing:
        yield AuditFinding(
            UNPROVEN, "missing", f"not printed: {', '.join(missing)}", "checks that need it were skipped"
        )
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
