"""Checks of a record's timing against itself: two clocks, the gaps between intervals, single steps, device events.

Medians over the intervals are judged, so that a moment in which another program ran accuses nobody.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.text import counted

Record = Mapping[str, Any]
# Two clocks of a host differ by 0.05 % at most (the limit of NTP's corrections), and are read within microseconds.
MAX_CLOCK_DIFFERENCE, MIN_DIFFERENCE_SECONDS = 0.003, 0.0003
# A process that is paused in the microseconds between the readings of two clocks makes an interval differ: 8 of 4 050
# on a busy host, by 4 to 8 ms each. They must be several, and make up a part of the whole time.
MAX_OFF_SECONDS, MAX_OFF_SHARE, MIN_OFF, MAX_OFF_TIME = 0.0005, 0.005, 2, 0.005
# Of one or two intervals each is judged by itself, so that such a pause has to be allowed.
MAX_PAUSE_SECONDS = 0.02
# Reading the losses of an interval takes a fraction of a millisecond.
MAX_GAP_SECONDS, MAX_GAP_SHARE = 0.002, 0.01
# The first and the last step of an interval are steps like the others.
STEP_RANGE = (0.5, 2.0)
MIN_STEPS = 4
# Single steps make up their interval, and the device's events cover what the host's clock covers, less a launch.
SUM_RANGE, DEVICE_RANGE = (0.95, 1.02), (0.9, 1.02)
MIN_INTERVALS = 3


def timing_problems(record: Record) -> Iterator[str]:
    """Yield what contradicts the record's step time."""
    intervals = record["timing"]["intervals"]
    if len(intervals) < MIN_INTERVALS:
        yield from _clock_problems_of_few(intervals)
        return
    ratio = _median(intervals, "raw_seconds")
    typical = statistics.median(interval["seconds"] for interval in intervals)
    # In intervals of milliseconds the reading of the clocks shows.
    if ratio is not None and abs(ratio - 1) > max(MAX_CLOCK_DIFFERENCE, MIN_DIFFERENCE_SECONDS / max(typical, 1e-9)):
        yield f"a second clock measures {ratio:.3f} times the intervals' seconds: a clock is wrong, or starts late"
    pairs = [(interval.get("raw_seconds"), interval["seconds"]) for interval in intervals]
    apart = [(abs(raw - seconds), seconds) for raw, seconds in pairs if raw is not None]
    off = [found for found, seconds in apart if found > max(MAX_OFF_SECONDS, MAX_OFF_SHARE * seconds)]
    if len(off) >= MIN_OFF and sum(off) > MAX_OFF_TIME * sum(seconds for _, seconds in apart):
        yield f"a second clock disagrees with the seconds of {len(off)} of {counted(len(intervals), 'interval')}"
    yield from _gap_problems(intervals)
    ratio = _median(intervals, "device_seconds")
    if ratio is not None and not DEVICE_RANGE[0] <= ratio <= DEVICE_RANGE[1]:
        yield f"the device's events cover {ratio:.3f} of the intervals' seconds: a synchronization or a step is missing"
    yield from _step_problems(record, intervals)


def unchecked(record: Record) -> str | None:
    """Return why a record's timing cannot be checked, as "fewer than 3 intervals"; None if it can be."""
    intervals = record["timing"]["intervals"]
    if len(intervals) < MIN_INTERVALS:
        return f"fewer than {MIN_INTERVALS} intervals"
    if any(interval.get("raw_seconds") is None for interval in intervals):
        return "no second clock"
    # Nothing comes before the first interval of a process.
    starts = {attempt["from_step"] + 1 for attempt in record.get("attempts") or ()}
    known = (interval.get("gap_seconds") is not None or interval["first_step"] in starts for interval in intervals)
    return None if all(known) else "no gaps between intervals"


def _clock_problems_of_few(intervals: Sequence[Record]) -> Iterator[str]:
    for interval in intervals:
        raw, seconds = interval.get("raw_seconds"), interval["seconds"]
        if raw is not None and abs(raw - seconds) > MAX_CLOCK_DIFFERENCE * seconds + MAX_PAUSE_SECONDS:
            yield f"a second clock measures {raw / seconds:.3f} times an interval's seconds: a clock is wrong"


def _gap_problems(intervals: Sequence[Record]) -> Iterator[str]:
    gaps = [(gap, interval["seconds"]) for interval in intervals if (gap := interval.get("gap_seconds")) is not None]
    if len(gaps) < MIN_INTERVALS:
        return
    gap = statistics.median(gap for gap, _ in gaps)
    share = statistics.median(gap / seconds for gap, seconds in gaps if seconds > 0)
    if gap > MAX_GAP_SECONDS and share > MAX_GAP_SHARE:
        yield f"{1000 * gap:.3g} ms before each interval ({share:.1%} of it) are unaccounted for: work off the clock"


def _step_problems(record: Record, intervals: Sequence[Record]) -> Iterator[str]:
    times = record["timing"]["step_seconds"]
    if record["timing"]["step_seconds_method"] == "interval_mean" or len(times) != record["timing"]["measured_steps"]:
        return
    sums, firsts, lasts, done = [], [], [], 0
    for interval in intervals:
        steps = interval["last_step"] - interval["first_step"] + 1
        own, done = times[done : done + steps], done + steps
        whole = interval["device_seconds"] or interval["seconds"]
        if any(value is None for value in own) or not whole > 0:
            return
        sums.append(sum(own) / whole)
        middle = statistics.median(own[1:-1]) if steps >= MIN_STEPS else 0.0
        if middle > 0:
            firsts.append(own[0] / middle)
            lasts.append(own[-1] / middle)
    found = statistics.median(sums)
    if not SUM_RANGE[0] <= found <= SUM_RANGE[1]:
        yield f"the steps' own seconds make up {found:.3f} of their intervals"
    for name, ratios in (("first", firsts), ("last", lasts)):
        ratio = statistics.median(ratios) if len(ratios) >= MIN_INTERVALS else 1.0
        if not STEP_RANGE[0] <= ratio <= STEP_RANGE[1]:
            yield f"the {name} step of an interval takes {ratio:.2g} times as long as the others: it is not timed whole"


def _median(intervals: Sequence[Record], key: str) -> float | None:
    """Return the median ratio of another measurement of the intervals to their seconds; None if there is none."""
    known = [(interval.get(key), interval["seconds"]) for interval in intervals]
    ratios = [value / seconds for value, seconds in known if value is not None and seconds > 0]
    return statistics.median(ratios) if len(ratios) >= MIN_INTERVALS else None
