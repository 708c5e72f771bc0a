"""Roofline model of a training step (Williams, Waterman and Patterson 2009)."""

from __future__ import annotations

from typing import Any


def roofline(
    flops: float,
    bytes_accessed: float,
    step_seconds: float,
    peak_flops: float | None,
    memory_bytes_per_second: float | None,
) -> dict[str, Any]:
    """Return the position of a step under the roofline of its device.

    Fusion and caches save memory traffic, so that the true arithmetic intensity is usually higher than the one from
    `bytes_accessed`, and "bound by memory" is the worst case. A step that is faster than this intensity allows proves
    it; then `attainable_flops` and `bound_by` are None.

    Args:
        flops: model FLOPs of one step on one device.
        bytes_accessed: bytes that the step's operations read and write.
        step_seconds: duration of the step.
        peak_flops, memory_bytes_per_second: peaks of the device; None where unknown.

    Returns:
        `arithmetic_intensity`, FLOP per byte; `ridge_arithmetic_intensity`, above which a step is bound by compute;
        `attainable_flops`, FLOP/s at that intensity; `achieved_flops`, FLOP/s; `bound_by`, compute or memory. None
        where a peak is unknown.
    """
    intensity = flops / bytes_accessed
    position: dict[str, Any] = {
        "arithmetic_intensity": intensity,
        "achieved_flops": flops / step_seconds,
        "ridge_arithmetic_intensity": None,
        "attainable_flops": None,
        "bound_by": None,
    }
    if peak_flops is not None and memory_bytes_per_second is not None:
        ridge = peak_flops / memory_bytes_per_second
        attainable = min(peak_flops, intensity * memory_bytes_per_second)
        position["ridge_arithmetic_intensity"] = ridge
        if position["achieved_flops"] <= attainable:
            position["attainable_flops"] = attainable
            position["bound_by"] = "compute" if intensity >= ridge else "memory"
    return position
