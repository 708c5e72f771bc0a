"""Calibration of the tests for the same computation: differences of honest runs, measured, and limits from them.

configs/parity_noise.yaml holds one entry for each set of measurements. A limit is a multiple of the largest difference
that any entry has; scripts/bench_parity.py makes such entries on any device, and `--calibration FILE` adds a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from harness.config import PRECISIONS, config_directory
from harness.errors import ConfigError
from harness.regular_files import read_file

FILE = "parity_noise.yaml"
# Last steps of the segments of a curve, in which differences are measured and judged together.
SEGMENT_ENDS = (1, 20, 60, 240, 600)
# Beyond them, each segment is this many times as long as all before it.
SEGMENT_GROWTH = 3


@dataclass(frozen=True)
class Calibration:
    """The largest honest difference of each test, by precision; of a curve's tests, by segment too."""

    noise: Mapping[str, Mapping[str, Sequence[float]]]
    """By test and precision: one value for each segment of a curve, or the only one."""

    def honest(self, test: str, precision: str, segment: int = 0) -> float:
        """Return the largest honest difference of a test, in a segment if it is of a curve.

        Beyond the last measured segment it grows in proportion to the step, a little faster than in all measurements.
        """
        values = self.noise[test][precision]
        measured = min(segment, len(values) - 1)
        return values[measured] * segment_end(segment) / segment_end(measured)


def segments(steps: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, first step, last step) of the segments of a curve, the last one cut where the curve ends."""
    number, first = 0, 1
    while first <= steps:
        last = min(segment_end(number), steps)
        yield number, first, last
        number, first = number + 1, last + 1


def segment_of(step: int) -> int:
    """Return the number of the segment that a step is in; step 0, before the first, is in the first segment."""
    step = max(1, step)
    return next(number for number, first, last in segments(step) if first <= step <= last)


@cache
def segment_end(number: int) -> int:
    """Return the last step of a segment."""
    beyond = max(0, number - len(SEGMENT_ENDS) + 1)
    return SEGMENT_ENDS[min(number, len(SEGMENT_ENDS) - 1)] * SEGMENT_GROWTH**beyond


def segment_length(number: int) -> int:
    """Return the number of steps of a whole segment."""
    return segment_end(number) - (segment_end(number - 1) if number else 0)


@cache
def load_calibration(*more: Path) -> Calibration:
    """Return the calibration in configs/, extended by files of the user.

    Raises:
        ConfigError: it cannot be read, or an entry is not of the form that configs/parity_noise.yaml has.
    """
    entries = _read_entries(config_directory() / FILE)
    known = {test for entry in entries for test in entry["noise"]}
    for path in more:
        for entry in (own := _read_entries(path)):
            for test in entry["noise"].keys() - known:
                raise ConfigError(f"{path}: noise.{test}: no such test, expected one of: {', '.join(sorted(known))}")
        entries += own
    return _merged(entry["noise"] for entry in entries)


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = yaml.safe_load(read_file(path).decode("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: found no entries, expected a list of measurements as in configs/{FILE}")
    for number, entry in enumerate(entries, 1):
        _check_entry(f"{path}: entry {number}", entry)
    return entries


def _check_entry(where: str, entry: Any) -> None:
    noise = entry.get("noise") if isinstance(entry, dict) else None
    if not isinstance(noise, dict) or not isinstance(entry.get("source"), str):
        raise ConfigError(f"{where}: expected the keys source (text) and noise (differences by test)")
    for test, by_precision in noise.items():
        if not isinstance(by_precision, dict) or not by_precision.keys() <= set(PRECISIONS):
            raise ConfigError(f"{where}: noise.{test}: found {by_precision!r}, expected values by precision")
        for precision, found in by_precision.items():
            values = found if isinstance(found, list) else [found]
            if len(values) not in range(1, len(SEGMENT_ENDS) + 1) or not all(map(_is_difference, values)):
                raise ConfigError(
                    f"{where}: noise.{test}.{precision}: found {found!r}, expected a number of 0 or more, or a list of "
                    f"up to {len(SEGMENT_ENDS)}"
                )


def _is_difference(value: Any) -> bool:
    # YAML takes 1e-7, without a point, for text.
    try:
        return not isinstance(value, bool) and 0 <= float(value) < math.inf
    except (TypeError, ValueError):
        return False


def _merged(several: Iterable[Mapping[str, Mapping[str, Any]]]) -> Calibration:
    largest: dict[str, dict[str, list[float]]] = {}
    for noise in several:
        for test, by_precision in noise.items():
            known = largest.setdefault(test, {})
            for precision, found in by_precision.items():
                values = found if isinstance(found, list) else [found]
                pairs = zip_longest(known.get(precision, []), values, fillvalue=0.0)
                known[precision] = [max(map(float, pair)) for pair in pairs]
    return Calibration(largest)
