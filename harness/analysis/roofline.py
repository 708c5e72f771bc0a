"""Where a step lies under the roofline of its device (Williams, Waterman and Patterson 2009). No torch."""

from __future__ import annotations

from typing import Any


def roofline(
    flops: float,
    bytes_accessed: float,
    step_seconds: float,
    peak_flops: float | None,
    memory_bytes_per_second: float | None,
) -> dict[str, Any]:
    """Return the position of a step.

    Fusion and caches lessen the traffic that operand bytes stand for: as a rule the true intensity is higher than the
    one stated, so that "bound by memory" is the worst case. A step that is faster than the stated intensity allows
    shows that it was; then nothing is said of the bound.

    Args:
        flops: model FLOPs of one step on one device.
        bytes_accessed: what its operations read and write.
        step_seconds: what it takes.
        peak_flops, memory_bytes_per_second: the device's ceilings; None where unknown.

    Returns:
        `arithmetic_intensity`, FLOP a byte; `ridge_arithmetic_intensity`, from which on a device is bound by compute;
        `attainable_flops` a second at that intensity; `achieved_flops` a second; `bound_by`: compute or memory. None
        for what needs a peak that is not known, and where more was achieved than was attainable.
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
