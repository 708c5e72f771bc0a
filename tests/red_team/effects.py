"""Effects of sabotages: how far the results of two runs lie apart, and by which test."""

from __future__ import annotations

import math
from pathlib import Path

from harness.analysis.parity import TESTS, ParityResult
from harness.records.load import load_runs

RESULTS = ("loss_step", "loss_curve", "gradient_step", "gradient_curve", "evaluation", "weights")
# Half a unit in the last place of float32: results without any honest difference.
SMALLEST = 2.0**-24
MULTIPLE = {test.key: test.multiple for test in TESTS}


def results(reference: Path, other: Path) -> dict[tuple[str, int], float]:
    """Return how far the results of two runs lie apart, by test and segment."""
    [one], [two] = load_runs(reference), load_runs(other)
    largest: dict[tuple[str, int], float] = {}
    for test in TESTS:
        for found in test.differences(one.record, two.record) if test.key in RESULTS else ():
            key = (test.key, found.segment)
            largest[key] = max(largest.get(key, 0.0), abs(found.value or 0.0))
    return largest


def exceeded(finding: ParityResult) -> str:
    """Return a test and the difference, as a multiple of the largest honest one."""
    multiple = finding.share * MULTIPLE[finding.key]
    return f"{finding.key} {'inf' if math.isinf(multiple) else f'{multiple:.3g}'}"
