"""Formats of numbers and intervals, shared by messages, screens, pages and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

SIGNIFICANT_DIGITS = 5
# Units that get a prefix where the numbers are small, and the prefixes.
PREFIXED_UNITS = ("s", "J/token")
PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
BINARY_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
UNKNOWN = "unknown"


def scaled(values: Sequence[float], unit: str) -> tuple[list[str], str]:
    """Return the values as text with one unit and one number of decimals, so that they can stand in a column.

    Seconds become ms or µs where they are small; thousands are separated.
    """
    factor, shown = scale(values, unit)
    digits = decimals(factor * max(values))
    return [f"{factor * value:,.{digits}f}" for value in values], shown


def scale(values: Sequence[float], unit: str) -> tuple[float, str]:
    """Return the factor that makes the values readable, and the unit that they then have."""
    largest = max(values)
    if unit not in PREFIXED_UNITS or not largest > 0:
        return 1.0, unit
    size, prefix = next((pair for pair in PREFIXES if largest >= pair[0]), PREFIXES[-1])
    return 1 / size, prefix + unit


def decimals(largest: float) -> int:
    """Return the number of decimals that show SIGNIFICANT_DIGITS of a value."""
    if not largest > 0:
        return 0
    return max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(largest)))


def amount(value: float, unit: str) -> str:
    """Return one value with its unit."""
    texts, shown = scaled([value], unit)
    return f"{texts[0]} {shown}"


def significant(value: float) -> str:
    """Return a value with three significant digits, from 100 on as a whole number with separated thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def tflops(flops: float) -> str:
    """Return FLOP/s in TFLOP/s, with the unit."""
    return f"{significant(flops / 1e12)} TFLOP/s"


def ratio(value: float) -> str:
    """Return a ratio of two measured quantities. One far from 1 has three significant digits: none is 0."""
    if 0 < abs(value) < 0.01:
        return f"{value:.3g}"
    return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def interval(low: float | None, high: float | None) -> str:
    """Return a confidence interval of a ratio."""
    return UNKNOWN if low is None or high is None else f"{ratio(low)} to {ratio(high)}"


def ratio_with_interval(value: float, low: float | None, high: float | None) -> str:
    """Return a ratio with its 95 % interval, where there is one."""
    return ratio(value) if low is None or high is None else f"{ratio(value)}, 95 % interval {interval(low, high)}"


def percent(fraction: float) -> str:
    """Return a fraction as per cent, without trailing zeros."""
    return f"{100 * fraction:g} %"


def gibibytes(count: float, digits: int = 2) -> str:
    """Return bytes as GiB."""
    return f"{count / 2**30:.{digits}f} GiB"


def byte_size(count: float) -> str:
    """Return bytes in the largest binary unit of which there is one, with three significant digits."""
    size, unit = next(((size, unit) for size, unit in BINARY_UNITS if count >= size), (1, "B"))
    return f"{significant(count / size)} {unit}"


def tokens_per_second(value: float) -> str:
    """Return a speed in whole tokens."""
    return f"{value:,.0f} tokens/s"
