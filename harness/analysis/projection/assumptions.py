"""Assumptions about every quantity that neither plan nor records give, each a range from which values are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.errors import UserError
from harness.text import did_you_mean

DRAWS = 20_000
# Assumptions between 0 and 1, and those that may be 0.
SHARES = frozenset(
    {"efficiency_of_products", "product_share_of_peak", "link_efficiency", "hiding_compute", "power_share"}
)
MAY_BE_ZERO = frozenset({"latency_seconds", "hiding_compute", "restart_hours"})

Draws = np.ndarray


@dataclass(frozen=True)
class Range:
    """Assumed range of a quantity, with its most likely value."""

    low: float
    likely: float
    high: float

    def draw(self, random: np.random.Generator) -> Draws:
        """Return DRAWS values of the triangular distribution."""
        if self.low == self.high:
            return np.full(DRAWS, self.low)
        return random.triangular(self.low, self.likely, self.high, DRAWS)

    @classmethod
    def parse(cls, text: str) -> Range:
        """Return the range of a text such as `0.5` or `0.4:0.5:0.7` (lowest, likeliest, highest).

        Raises:
            ValueError: the text is neither, or out of order.
        """
        numbers = [float(part) for part in text.split(":")]
        low, likely, high = numbers * 3 if len(numbers) == 1 else numbers
        if not 0 <= low <= likely <= high < math.inf:
            raise ValueError(text)
        return cls(low, likely, high)


@dataclass(frozen=True)
class Assumptions:
    """Ranges of the quantities that neither plan nor records give.

    The defaults are not independent of the published trainings of configs/trainings.yaml: interruptions are those of
    two of them, and the likeliest `efficiency_of_products` was raised from 0.45 after a first comparison.
    """

    efficiency_of_products: Range = Range(0.45, 0.65, 0.80)
    """Model FLOP/s of a device by itself over its best matrix product; attention, norms and the rest are slower."""
    product_share_of_peak: Range = Range(0.65, 0.80, 0.90)
    """Best matrix product over the data sheet's peak, where no measurement is known."""
    link_efficiency: Range = Range(0.6, 0.75, 0.9)
    """Bandwidth of large collectives over the data sheet's."""
    latency_seconds: Range = Range(5e-6, 10e-6, 30e-6)
    """Of one hop of a collective."""
    hiding_compute: Range = Range(0.3, 0.7, 0.95)
    """Share of the compute that data-parallel collectives can overlap with."""
    checkpoint_seconds: Range = Range(10, 60, 300)
    device_hours_between_interruptions: Range = Range(20_000, 45_000, 100_000)
    """OPT-175B: 54 in 56 days of 992 devices; Llama 3 405B: 466 in 54 days of 16 384."""
    restart_hours: Range = Range(0.05, 0.1, 0.5)
    """Llama 3 405B: more than 90 % of the time was effective: 0.28 h an interruption, lost work included."""
    power_share: Range = Range(0.7, 0.85, 1.0)
    """Mean power of a device in training over the data sheet's."""

    def replaced(self, overrides: Sequence[str]) -> Assumptions:
        """Return the assumptions with overrides, each NAME=RANGE (`Range.parse`).

        Raises:
            UserError: a name is unknown or given twice, or a range is invalid.
        """
        given: dict[str, Range] = {}
        for override in overrides:
            name, _, text = override.partition("=")
            key = name.replace("-", "_")
            if key in given:
                raise UserError(f"assume: {name}: found twice, expected once")
            if key not in vars(self):
                known = [each.replace("_", "-") for each in vars(self)]
                raise UserError(
                    f"assume: found {name!r}, expected one of: {', '.join(known)}{did_you_mean(name, known)}"
                )
            most = 1.0 if key in SHARES else math.inf
            try:
                found = Range.parse(text)
            except ValueError:
                found = None
            if found is None or found.high > most or (found.low == 0 and key not in MAY_BE_ZERO):
                limit = "between 0 and 1" if key in SHARES else "of at least 0" if key in MAY_BE_ZERO else "above 0"
                raise UserError(
                    f"assume: {name}: found {text!r}, expected a number {limit}, or three as lowest:likeliest:highest"
                )
            given[key] = found
        return replace(self, **given)
