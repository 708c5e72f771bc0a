"""Checks of a published row against the peaks of its chips: precision, MFU and implied FLOP/s."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.analysis.audit.rows import IMPOSSIBLE, INCONSISTENT, SIDES, SUSPICIOUS, UNPROVEN, AuditFinding, Row
from harness.analysis.chips import PRECISIONS, Chip, find_chip, largest_peak
from harness.analysis.format import tflops
from harness.analysis.named_models import model_preset

# "7B" stands for 6.7 to 7.3 billion parameters.
PARAMETER_SLACK = 1.10
# Ratio of two MFUs, whose FLOPs differ by attention, embeddings and recomputation. On the log scale.
MFU_TOLERANCE = 0.15
# No published dense training reached a larger share of the data sheet's peak.
MAX_CREDIBLE_MFU = 0.75
# Factor by which a peak of grade C may be too small: public figures of one Ascend part differ by as much.
DISPUTED_PEAK = 1.10
# Tools divide by this chip's peak when they do not know the chip.
DEFAULT_CHIP = "NVIDIA A100-SXM4-80GB"


def has_peak(row: Row, side: str) -> bool:
    """Return whether the largest peak of a side's chips is known."""
    return _largest_peak(row, side)[0] is not None


def _peaks(row: Row, side: str) -> list[tuple[float, str, Chip]]:
    """Return (FLOP/s, precision, chip) of every peak that a side may have: of all precisions if none is printed."""
    precision = row.text("precision")
    return [
        (value, name, chip)
        for chip in row.chips(side)
        for name in ((precision,) if precision is not None else PRECISIONS)
        if (value := chip.peak_flops.get(name)) is not None
    ]


def _largest_peak(row: Row, side: str) -> tuple[float | None, str, float]:
    """Return the largest peak FLOP/s that a side may have, its description, and the factor by which it may be off."""
    chips = row.chips(side)
    precision = row.text("precision")
    if precision is not None:
        best, description = largest_peak(chips, precision), precision
    else:
        peaks = [(value, name) for name in PRECISIONS if (value := largest_peak(chips, name)) is not None]
        best, name = max(peaks, default=(None, ""))
        description = f"{name}, as no precision is printed" if best is not None else "any precision"
    grade = max((chip.confidence for chip in chips), default=None)
    if grade is not None:
        description = f"{description}; grade {grade}"
    return best, description, DISPUTED_PEAK if grade == "C" else 1.0


def check_precision(row: Row) -> Iterator[AuditFinding]:
    """Yield a finding for each side whose chips all lack the printed precision."""
    precision = row.text("precision")
    for side in SIDES:
        chips = row.chips(side)
        if precision is not None and chips and all(precision in chip.lacks for chip in chips):
            yield AuditFinding(
                IMPOSSIBLE,
                "precision",
                f"{precision} on {row.text(side)}",
                f"{' and '.join(chip.name for chip in chips)} has no {precision} arithmetic",
            )


def check_mfu(row: Row) -> Iterator[AuditFinding]:
    """Yield a finding for each side whose MFU is above one, or does not fit its speed."""
    for side in SIDES:
        stated = row.of(side, "mfu")
        if stated is None:
            continue
        flops, peaks = row.flops_per_device(side), _peaks(row, side)
        if stated > 1:
            yield AuditFinding(IMPOSSIBLE, "MFU", f"{side}: MFU of {stated:.0%}", _why_above_one(row, side, stated))
        elif flops is not None and peaks:
            # Of all peaks, the author of the row meant the one that fits best.
            expected = flops / stated
            peak, precision, chip = min(peaks, key=lambda each: abs(math.log(each[0] / expected)))
            if abs(math.log(peak / expected)) > MFU_TOLERANCE:
                yield AuditFinding(
                    INCONSISTENT,
                    "MFU",
                    f"{side}: MFU of {stated:.0%}",
                    f"the printed speed is {tflops(flops)}, {flops / peak:.0%} of the {precision} peak of {chip.name}",
                )


def _why_above_one(row: Row, side: str, stated: float) -> str:
    """Return the wrong divisor that explains an MFU above one: the A100's peak, as tools use for unknown chips."""
    default = find_chip(DEFAULT_CHIP)
    assert default is not None
    divisor = default.peak_flops["bf16"]
    assert divisor is not None
    speed, chip = stated * divisor, row.text(side)
    peak = largest_peak(row.chips(side), row.text("precision") or "bf16")
    if peak is None:
        known = f"the peak of {chip!r} is unknown" if chip else "no chip is named"
        return f"no chip exceeds its peak; {known}; if divided by the A100's {tflops(divisor)}, it is {tflops(speed)}"
    if peak > divisor:
        return (
            f"no chip exceeds its peak; if divided by the A100's {tflops(divisor)}, as tools do by default, it is "
            f"{tflops(speed)}, {speed / peak:.0%} of the peak of {chip}"
        )
    return "no chip exceeds its peak"


def check_implied_flops(row: Row) -> Iterator[AuditFinding]:
    """Yield a finding for each side whose FLOP/s are above a peak, near it, or not to be checked."""
    precision = row.text("precision")
    for side in SIDES:
        flops, (peak, description, dispute) = row.flops_per_device(side), _largest_peak(row, side)
        if flops is None:
            continue
        chips, name, found = row.chips(side), row.text(side), f"{side}: {tflops(flops)} a device"
        if peak is None:
            if not all(precision in chip.lacks for chip in chips):
                reason = f"not checked, since the {precision or 'largest'} peak of {name} is unknown"
                yield AuditFinding(UNPROVEN, "peak", found, reason)
            continue
        slack = dispute * (1.0 if model_preset(row.text("model")) else PARAMETER_SLACK)
        reason = f"the largest peak of {name} is {tflops(peak)} ({description})"
        measured = _best_product(chips, precision)
        if flops > slack * peak:
            yield AuditFinding(IMPOSSIBLE, "peak", found, f"{reason}: {flops / peak:.1f} times that peak")
        elif flops > MAX_CREDIBLE_MFU * peak:
            reason += f"; no published dense training reached {flops / peak:.0%} of it"
            yield AuditFinding(SUSPICIOUS, "peak", found, reason)
        elif measured is not None and flops > measured:
            reason = f"matrix products alone were measured at {tflops(measured)} on {name}"
            yield AuditFinding(SUSPICIOUS, "peak", found, reason)


def _best_product(chips: Sequence[Chip], precision: str | None) -> float | None:
    """Return the best measured FLOP/s of matrix products, or None where a chip has no measurement."""
    found = [chip.measured_flops.get(precision or "bf16") for chip in chips]
    return None if not found or None in found else max(value for value in found if value is not None)
