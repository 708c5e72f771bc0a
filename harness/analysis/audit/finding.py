"""What is found about a row, how sure it is, and how numbers are told in it."""

from __future__ import annotations

from dataclasses import dataclass

IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN = "impossible", "inconsistent", "suspicious", "unproven"
GRADES = (IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN)


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    sure: str
    """One of GRADES: how sure it is that the row is wrong."""
    check: str
    what: str
    why: str


def tera(flops: float) -> str:
    """Return FLOP/s in words."""
    value = flops / 1e12
    return f"{value:,.0f} TFLOP/s" if value >= 10 else f"{value:.2g} TFLOP/s"


def number(value: float) -> str:
    """Return a speed in as many digits as say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
