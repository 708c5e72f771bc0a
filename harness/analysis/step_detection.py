"""Steps in a series of measurements: when its level changed, and by how much.

Binary segmentation (Scott and Knott 1974): the best split of a series is kept if its statistic is above what chance
gives, and each side is searched again. The statistic is that of the van der Waerden test, the difference of the normal
scores of ranks on both sides, at its largest over all splits. Ranks make it robust against bursts, and its
distribution under chance depends on the length of the series alone. Autocorrelation is no
evidence of a step: the series is prewhitened, as one autoregressive of order 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

# Probability of a step in a series without one.
STEP_ALPHA = 0.025
# A level that lasts for fewer measurements is a burst.
MIN_SEGMENT = 5
# A shorter series has no two levels.
MIN_RECORDS = 2 * MIN_SEGMENT
# Ranks show the place of a step only about.
REACH = 3
SHUFFLES = 4000
# A series of a few levels has an estimate near 1 too, and a larger correction would remove its steps.
MAX_AUTOCORRELATION = 0.9
# Added to the autocorrelation, in units of 1 / sqrt(n), about its standard error: with too small a value, noise looks
# like steps.
MARGIN_OF_ERROR = 0.6
SEED = 1979


@dataclass(frozen=True)
class Step:
    """A change of level."""

    place: int
    """Position of the first measurement of the new level."""
    before: float
    """Median of the level before, in the unit of the series."""
    after: float

    @property
    def ratio(self) -> float:
        """The new level over the old one."""
        return self.after / self.before


def find_steps(values: Sequence[float]) -> list[Step]:
    """Return the steps of a series of positive measurements, in order."""
    if len(values) < MIN_RECORDS:
        return []
    series = np.log(np.asarray(values, float))
    r = autocorrelation(series)
    # This keeps the edge of a step, and shrinks the level after it to 1 - r of its height.
    whitened = series if r == 0 else np.concatenate([series[:1] * (1 - r), series[1:] - r * series[:-1]])
    places = sorted(_splits(whitened, 0))
    edges = [0, *places, len(series)]
    levels = [float(np.median(series[first:last])) for first, last in pairwise(edges)]
    return [Step(place, math.exp(before), math.exp(after))
            for place, (before, after) in zip(places, pairwise(levels), strict=True)]  # fmt: skip


def _splits(series: np.ndarray, first: int) -> list[int]:
    """Return the places of all steps of a part of a series that starts at `first`."""
    if len(series) < 2 * MIN_SEGMENT:
        return []
    statistic = _statistic(series)
    place = int(np.argmax(statistic))
    if statistic[place] <= critical(len(series)):
        return []
    split = _nearest_edge(series, place + MIN_SEGMENT)
    return [*_splits(series[:split], first), first + split,
            *_splits(series[split:], first + split)]  # fmt: skip


def _nearest_edge(series: np.ndarray, place: int) -> int:
    """Return the split near a place whose two sides lie nearest to their medians, which is where a step is sharpest."""

    def distance(split: int) -> float:
        return sum(float(np.abs(side - np.median(side)).sum()) for side in (series[:split], series[split:]))

    near = range(max(MIN_SEGMENT, place - REACH), min(len(series) - MIN_SEGMENT, place + REACH) + 1)
    return min(near, key=distance)


def _scores(count: int) -> np.ndarray:
    from scipy import special

    scores = special.ndtri(np.arange(1, count + 1) / (count + 1))
    return scores / scores.std()


def _statistic(series: np.ndarray) -> np.ndarray:
    """Return the absolute statistic of each split that leaves MIN_SEGMENT on both sides; of each row of a matrix."""
    from scipy import stats

    count = series.shape[-1]
    if series.ndim == 1:
        # Equal values share their mean rank.
        ranks = stats.rankdata(series)
        scores = np.interp(ranks, np.arange(1, count + 1), _scores(count))
    else:
        scores = series
    sizes = np.arange(1, count)
    sums = np.cumsum(scores, axis=-1)[..., :-1]
    found = np.abs(sums) / np.sqrt(sizes * (count - sizes) / count)
    return found[..., MIN_SEGMENT - 1 : count - MIN_SEGMENT]


@cache
def critical(count: int) -> float:
    """Return the value that the largest statistic of a series without steps exceeds with STEP_ALPHA, by shuffles."""
    # Lengths in steps of a twelfth, since the value hardly changes with them.
    rounded = count if count < 24 else round(24 * 1.08 ** round(math.log(count / 24, 1.08)))
    if rounded != count:
        return critical(rounded)
    source = np.random.default_rng([SEED, count])
    largest = []
    scores = _scores(count)
    # In parts, so that long series need no more memory than short ones.
    each = max(1, min(SHUFFLES, 2_000_000 // count))
    for _ in range(-(-SHUFFLES // each)):
        shuffled = source.permuted(np.broadcast_to(scores, (each, count)), axis=1)
        largest.append(_statistic(shuffled).max(axis=1))
    return float(np.quantile(np.concatenate(largest), 1 - STEP_ALPHA))


def autocorrelation(series: np.ndarray) -> float:
    """Return the correlation of neighbors of an autoregressive series of order 1, from 0 to MAX_AUTOCORRELATION.

    From its differences, of which a step moves one alone: their own correlation is -(1 - r) / 2. Differences are
    clipped, since bursts would hide the rest.
    """
    differences = np.diff(series)
    reach = 3 * 1.4826 * float(np.median(np.abs(differences - np.median(differences))))
    clipped = np.clip(differences, -reach, reach)
    if not clipped.any():
        return 0.0
    correlation = float(np.mean(clipped[1:] * clipped[:-1]) / np.mean(clipped**2))
    found = 1 + 2 * correlation
    return 0.0 if found <= 0 else min(MAX_AUTOCORRELATION, found + MARGIN_OF_ERROR / math.sqrt(len(series)))
