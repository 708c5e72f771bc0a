"""Where a step lies under the roofline of its device (Williams, Waterman and Patterson 2009). No torch."""

from __future__ import annotations

from typing import Any


def roofline(
    flops: float,
    operand_bytes: float,
    step_seconds: float,
    peak_flops: float | None,
    memory_bytes_per_second: float | None,
) -> dict[str, Any]:
    """Return the position of a step.

    Operand bytes are an upper bound of the traffic, which fusion and caches lessen: the true intensity is at least the
    one stated, so "bound by arithmetic" is certain and "bound by memory" is the worst case.

    Args:
        flops: model FLOPs of one step on one device.
        operand_bytes: what its operations read and write.
        step_seconds: what it takes.
        peak_flops, memory_bytes_per_second: the device's ceilings; None where unknown.

    Returns:
        `flops_per_byte`; `ridge_flops_per_byte`, from which on a device is bound by arithmetic; `attainable_flops` a
        second at that intensity; `achieved_flops` a second; `bound_by`: arithmetic or memory. None for what needs a
        ceiling that is not known.
    """
    intensity = flops / operand_bytes
    position: dict[str, Any] = {
        "flops_per_byte": intensity,
        "achieved_flops": flops / step_seconds,
        "ridge_flops_per_byte": None,
        "attainable_flops": None,
        "bound_by": None,
    }
    if peak_flops is not None and memory_bytes_per_second is not None:
        ridge = peak_flops / memory_bytes_per_second
        position |= {
            "ridge_flops_per_byte": ridge,
            "attainable_flops": min(peak_flops, intensity * memory_bytes_per_second),
            "bound_by": "arithmetic" if intensity >= ridge else "memory",
        }
    return position
