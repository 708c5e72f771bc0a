"""What is wrong with a published row, by itself: each finding with its reason and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.analysis.audit.rows import (
    IMPOSSIBLE,
    INCONSISTENT,
    SIDES,
    SUSPICIOUS,
    UNPROVEN,
    AuditFinding,
    Row,
)
from harness.analysis.chips import PRECISIONS, Chip, ambiguity, find_chip, largest_peak, match_chips
from harness.analysis.flops import MIN_WEIGHTS, parameters_of, parameters_of_layers
from harness.analysis.format import significant, tflops
from harness.analysis.named_models import model_preset

# "7B" is printed of models of 6.7 to 7.3 billion parameters.
PARAMETER_SLACK = 1.10
# RunningStats of three digits that belong together differ by rounding alone.
ROUNDING = 0.02
# Of MFUs: how FLOPs are counted differs by as much (attention, embeddings, recomputation).
COUNTING = 0.15
# Beyond this share of the sheet's peak no published dense training went.
HIGHEST_CREDIBLE_MFU = 0.75
# What a whole training takes beside its steps is less than this.
OVERHEAD = 1.5
# How far a peak may be off about which sources disagree (grade C): public figures of one Ascend part span as much.
DISPUTED_PEAK = 1.10
# A final loss or an accuracy that differs by more is of another computation, or of another evaluation.
LOSS_TOLERANCE = 0.02
ACCURACY_TOLERANCE = 0.02
# The peak that tools divide by when they do not know the chip.
DEFAULT_CHIP = "NVIDIA A100-SXM4-80GB"


def own_findings(row: Row) -> list[AuditFinding]:
    """Return everything that a row shows by itself."""
    return [
        *_precision(row),
        *_size(row),
        *_batch(row),
        *_speeds(row),
        *_ratios(row),
        *_utilization(row),
        *_implied_flops(row),
        *_outcome(row),
        *_missing(row),
    ]


def has_peak(row: Row, side: str) -> bool:
    """Return whether a side's speed can be held against a peak."""
    return _largest_peak(row, side)[0] is not None


def _peaks(row: Row, side: str) -> list[tuple[float, str, Chip]]:
    """Return every peak FLOP/s that a side's chip may have, with precision and chip: of all if none is printed."""
    precision = row.text("precision")
    return [
        (value, name, chip)
        for chip in match_chips(row.text(side) or "")
        for name in ((precision,) if precision is not None else PRECISIONS)
        if (value := chip.peak_flops.get(name)) is not None
    ]


def _largest_peak(row: Row, side: str) -> tuple[float | None, str, float]:
    """Return the largest peak FLOP/s that a side's chip may have, what it is, and by how much it may be off."""
    chips = match_chips(row.text(side) or "")
    precision = row.text("precision")
    if precision is not None:
        best, which = largest_peak(chips, precision), precision
    else:
        peaks = [(value, name) for name in PRECISIONS if (value := largest_peak(chips, name)) is not None]
        best, name = max(peaks, default=(None, ""))
        which = f"{name}, as no precision is printed" if best is not None else "any precision"
    grade = max((chip.confidence for chip in chips), default=None)
    if grade is not None:
        which = f"{which}; grade {grade}"
    return best, which, DISPUTED_PEAK if grade == "C" else 1.0


def _precision(row: Row) -> Iterator[AuditFinding]:
    precision = row.text("precision")
    for side in SIDES:
        chips = match_chips(row.text(side) or "")
        if precision is not None and chips and all(precision in chip.lacks for chip in chips):
            yield AuditFinding(
                IMPOSSIBLE,
                "precision",
                f"{precision} on {row.text(side)}",
                f"{' and '.join(chip.name for chip in chips)} has no {precision} arithmetic",
            )


def _size(row: Row) -> Iterator[AuditFinding]:
    stated, shape = row.number("parameters"), model_preset(row.text("model"))
    if stated is None:
        return
    layers, width = row.number("layers"), row.number("width")
    if shape is not None and abs(math.log(stated / parameters_of(shape))) > COUNTING:
        why = f"{row.text('model')} has {parameters_of(shape) / 1e9:.3g} billion"
    elif layers is not None and width is not None and stated < parameters_of_layers(layers, width, MIN_WEIGHTS):
        usual = parameters_of_layers(layers, width)
        why = f"{layers:g} layers of width {width:g} alone have some {usual / 1e9:.3g} billion"
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
        for unknown, told in row.speeds_by_what_is_unknown(side).items():
            (slow, slowest), (fast, fastest) = (each(told.items(), key=lambda item: item[1]) for each in (min, max))
            if fastest <= (1 + ROUNDING) * slowest:
                continue
            # Without a sequence length both are samples/s, without the number of devices a device's.
            unit = f"{'samples' if 'seq_len' in unknown else 'tokens'}/s{' a device' if 'devices' in unknown else ''}"
            yield AuditFinding(
                INCONSISTENT,
                "speed",
                f"{side}: {fast} says {significant(fastest)} {unit}, {slow} says {significant(slowest)}",
                f"both are one speed, and differ by {fastest / slowest - 1:.0%}",
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
                f"{by_column[low]:.4g} by {low}: both are of one training",
            )
    total = row.time_ratios.get("total_seconds")
    if by_column and total is not None and abs(math.log(total / by_column[low])) > math.log(OVERHEAD):
        yield AuditFinding(
            SUSPICIOUS,
            "ratio",
            f"a time ratio of {total:.4g} by total_seconds",
            f"{by_column[low]:.4g} by {low}: what there is beside steps does not take so long",
        )
    stated, time = row.number("ratio"), row.time_ratio
    if stated is None or time is None:
        return
    found = time if row.text("ratio_of") == "time" else 1 / time
    if not _rounds_to(found, stated):
        turned = ", which is its inverse" if _rounds_to(1 / found, stated) else ""
        yield AuditFinding(
            INCONSISTENT,
            "ratio",
            f"a {row.text('ratio_of')} ratio of {stated:.4g}",
            f"the row's own columns give {found:.4g}{turned}",
        )


def _rounds_to(found: float, stated: float) -> bool:
    """Return whether a ratio may be printed as `stated`: to within the rounding of its columns or of its last digit."""
    decimals = len(f"{stated:.12g}".partition(".")[2])
    return abs(found - stated) <= max(ROUNDING * stated, 0.5 * 10.0**-decimals) * (1 + 1e-9)


def _utilization(row: Row) -> Iterator[AuditFinding]:
    for side in SIDES:
        stated = row.of(side, "mfu")
        if stated is None:
            continue
        flops, peaks = row.flops_per_device(side), _peaks(row, side)
        if stated > 1:
            yield AuditFinding(IMPOSSIBLE, "MFU", f"{side}: MFU of {stated:.0%}", _why_above_one(row, side, stated))
        elif flops is not None and peaks:
            # By whichever peak comes nearest: the writer knew which chip and precision it was.
            expected = flops / stated
            most, precision, chip = min(peaks, key=lambda each: abs(math.log(each[0] / expected)))
            if abs(math.log(most / expected)) > COUNTING:
                yield AuditFinding(
                    INCONSISTENT,
                    "MFU",
                    f"{side}: MFU of {stated:.0%}",
                    f"the printed speed is {tflops(flops)}, {flops / most:.0%} of the {precision} peak of {chip.name}",
                )


def _why_above_one(row: Row, side: str, stated: float) -> str:
    """Say which wrong divisor would explain it: tools take the A100's for a chip that they do not know."""
    default = find_chip(DEFAULT_CHIP)
    assert default is not None
    divisor = default.peak_flops["bf16"]
    assert divisor is not None
    precision = row.text("precision") or "bf16"
    real, own = stated * divisor, largest_peak(match_chips(row.text(side) or ""), precision)
    said = "no chip does more than its peak"
    if own is None:
        chip = row.text(side)
        known = f"the peak of {chip!r} is unknown" if chip else "no chip is named"
        return f"{said}; {known}, and if the A100's {tflops(divisor)} were taken for it, the speed was {tflops(real)}"
    if own > divisor:
        return (
            f"{said}; divided by the A100's {tflops(divisor)}, as tools do by default, the speed was {tflops(real)}, "
            f"which is {real / own:.0%} of the peak of {row.text(side)}"
        )
    return said


def _implied_flops(row: Row) -> Iterator[AuditFinding]:
    for side in SIDES:
        flops, (most, what, dispute) = row.flops_per_device(side), _largest_peak(row, side)
        chips = match_chips(row.text(side) or "")
        lacking = [chip for chip in chips if row.text("precision") in chip.lacks]
        if flops is not None and most is None and len(lacking) < len(chips):
            yield AuditFinding(
                UNPROVEN,
                "peak",
                f"{side}: {tflops(flops)} a device",
                f"the {row.text('precision') or 'largest'} peak of {row.text(side)} is unknown: whether that is "
                "possible was not checked",
            )
        if flops is None or most is None:
            continue
        slack = dispute * (1.0 if model_preset(row.text("model")) else PARAMETER_SLACK)
        said = f"{side}: {tflops(flops)} a device"
        of = f"the largest peak of {row.text(side)} is {tflops(most)} ({what})"
        measured = _best_product(chips, row.text("precision"))
        if flops > slack * most:
            yield AuditFinding(IMPOSSIBLE, "peak", said, f"{of}: {flops / most:.1f} times as much as the chip can do")
        elif flops > HIGHEST_CREDIBLE_MFU * most:
            yield AuditFinding(
                SUSPICIOUS, "peak", said, f"{of}; no dense training is known at {flops / most:.0%} of it"
            )
        elif measured is not None and flops > measured:
            yield AuditFinding(
                SUSPICIOUS,
                "peak",
                said,
                f"bare matrix products on {row.text(side)} were measured at {tflops(measured)}",
            )


def _best_product(chips: Sequence[Chip], precision: str | None) -> float | None:
    found = [chip.measured_flops.get(precision or "bf16") for chip in chips]
    return None if not found or None in found else max(value for value in found if value is not None)


def _outcome(row: Row) -> Iterator[AuditFinding]:
    losses = [row.of(side, "final_loss") for side in SIDES]
    if losses[0] is not None and losses[1] is not None and abs(math.log(losses[0] / losses[1])) > LOSS_TOLERANCE:
        yield AuditFinding(
            SUSPICIOUS,
            "outcome",
            f"final losses {losses[0]:g} and {losses[1]:g}",
            f"they differ by more than {LOSS_TOLERANCE:.0%}: the two did not compute the same",
        )
    accuracies = [row.of(side, "accuracy") for side in SIDES]
    if accuracies[0] is not None and accuracies[1] is not None:
        one, two = (value for value in accuracies if value is not None)
        samples = row.number("evaluation_samples")
        allowed, why = ACCURACY_TOLERANCE, "a tolerance, since it is not printed how many samples they are of"
        if samples is not None:
            allowed, why = _chance(one, two, samples), f"which is what chance explains of {samples:,.0f} samples"
        if abs(one - two) > allowed:
            yield AuditFinding(
                SUSPICIOUS,
                "outcome",
                f"accuracies {one:.2%} and {two:.2%}",
                f"they differ by more than {allowed:.2%}, {why}: the two did not compute the same",
            )


def _chance(one: float, two: float, samples: float) -> float:
    """Return how far two accuracies of one model may lie apart: 1.96 standard errors of the difference."""
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
        missing.append("what makes tokens/s a device of the figures (devices, batch, sequence length)")
    if missing:
        yield AuditFinding(
            UNPROVEN, "missing", f"not printed: {', '.join(missing)}", "what hangs on it was not checked"
        )
    if row.assumed:
        yield AuditFinding(
            UNPROVEN,
            "assumed",
            f"not printed, and filled in by whoever made the table: {', '.join(row.assumed)}",
            "the row is no evidence of a claim",
        )
    for side in SIDES:
        written = row.text(side)
        if written is not None and not match_chips(written):
            yield AuditFinding(
                UNPROVEN, "chip", f"{side}: {written!r}", "no chip of the catalogue is called so: its peak is unknown"
            )
        elif unclear := ambiguity(written):
            yield AuditFinding(UNPROVEN, "chip", f"{side}: {unclear}", "the largest of their peaks is taken")
    both = all(row.has(side) for side in SIDES)
    alike = any(all(row.of(side, what) is not None for side in SIDES) for what in ("final_loss", "accuracy"))
    if both and not alike:
        yield AuditFinding(
            UNPROVEN,
            "outcome",
            "neither losses nor accuracies of both sides",
            "nothing shows that they computed the same",
        )
