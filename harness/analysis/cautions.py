"""Cautions of a verdict: drift, rests, shared hosts and devices, throttling, other harnesses, outliers, and more."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis.fingerprint import missing_evidence
from harness.analysis.ratio_statistics import outliers, trend
from harness.analysis.run_group import RunGroup
from harness.records.load import get_path
from harness.text import counted

Record = Mapping[str, Any]
Check = Callable[[RunGroup], str | None]
"""Returns the text of a caution about a side, or None."""
# A relative change of the step time over the run, which must also lie outside its own 99 % interval.
MAX_DRIFT = 0.02
MIN_TIMES_FOR_DRIFT = 8
MIN_INTERVALS_FOR_STALL = 3
MAX_DATA_WAIT_FRACTION = 0.01
MAX_OTHER_CPU_FRACTION = 0.10
MAX_SUSPENDED_SECONDS = 1.0
# An interval has a stall if it takes longer than the others by more than this, and by more than this number of steps.
MIN_STALL_SECONDS, STALL_STEPS = 1.0, 5
# Between intervals files are written: a few milliseconds each time.
MAX_IDLE_SHARE, MIN_IDLE_SECONDS = 0.20, 0.10
MAX_THROTTLED_FRACTION = 0.01
MIN_POWER_LIMIT = 0.98


# The cautions whose cause makes a run slower or faster than its device is.
MOVES_TIMES = frozenset({"drift", "shared host", "shared device", "throttled", "suspended", "stalled", "rested",
                         "compiled while timed"})  # fmt: skip


@dataclass(frozen=True)
class Caution:
    """A finding that does not forbid a verdict, but that its reader needs."""

    name: str
    side: str
    text: str


def cautions_about(side: RunGroup) -> list[Caution]:
    """Return the cautions of one side's runs."""
    if side.emulated:
        # The others are about times and speeds, which an emulation does not have.
        return [Caution("emulated", side.label, "the device is emulated: no speed is stated")]
    return [Caution(name, side.label, text) for name, check in CHECKS if (text := check(side)) is not None]


def cautions_between(reference: RunGroup, other: RunGroup) -> Iterator[Caution]:
    """Yield the cautions about what differs between two sides, and is neither the device nor its software."""
    sources = {_source(run.record) for side in (reference, other) for run in side.runs}
    if len(sources) > 1:
        text = f"the runs are of {counted(len(sources), 'version')} of the harness; run the same one on both sides"
        yield Caution("different harness", other.label, text)
    if reference.emulated or other.emulated:
        return
    lengths = [side.first["config"]["workload"]["interval_steps"] for side in (reference, other)]
    if lengths[0] != lengths[1]:
        text = f"workload.interval_steps is {lengths[1]} against {lengths[0]}: at its end the device is waited for"
        yield Caution("timed differently", other.label, text)
    saves = [get_path(side.first, "config", "checkpoint") or {} for side in (reference, other)]
    differs = [f"checkpoint.{key}" for key in ("every", "asynchronous") if saves[0].get(key) != saves[1].get(key)]
    if differs:
        text = f"{' and '.join(differs)} differ: while a checkpoint is saved the device rests, or shares its host"
        yield Caution("saved differently", other.label, text)


def _source(record: Record) -> Any:
    """Return what tells one harness from another: a digest of its files, or the commit of an older record."""
    environment = record["environment"]
    return environment.get("source_sha256") or (get_path(environment, "git", "commit"), environment["harness_version"])


def _of_runs(side: RunGroup, found: Sequence[Any]) -> str:
    """Return the number of runs with a finding, as "2 of 3 runs"."""
    return f"{len(found)} of {counted(len(side.runs), 'run')}"


def _if_above(quantity: Callable[[Record], float | None], limit: float, text: str) -> Check:
    """Return the check of runs in which a quantity is above a limit.

    Args:
        text: with {worst}, the largest value, and {runs}, as "2 of 3 runs".
    """

    def check(side: RunGroup) -> str | None:
        values = [quantity(run.record) for run in side.runs]
        found = [value for value in values if value is not None and value > limit]
        return text.format(worst=max(found), runs=_of_runs(side, found)) if found else None

    return check


def _at(*keys: str) -> Callable[[Record], float | None]:
    return lambda record: get_path(record, *keys)


def _no_fingerprint(side: RunGroup) -> str | None:
    if all(get_path(record, "fingerprint", "repeated_step") is not None for record in _finished(side)):
        return None
    return "without it, small changes of the computation pass in bf16 and fp16; run again with it"


def _untested(side: RunGroup) -> str | None:
    with_fingerprint = [record for record in _finished(side) if get_path(record, "fingerprint", "repeated_step")]
    missing = dict.fromkeys(name for record in with_fingerprint for name in missing_evidence(record))
    return f"records lack what the tests {', '.join(missing)} need: what these detect would pass" if missing else None


def _finished(side: RunGroup) -> list[dict[str, Any]]:
    return [run.record for run in side.runs if run.record["status"] == "ok"]


def _learned_routing(side: RunGroup) -> str | None:
    model, precision = side.first["config"]["model"], side.first["config"]["precision"]
    if model.get("num_experts") is None or model.get("routing") != "learned" or precision == "fp32":
        return None
    return (
        "rounding sends tokens near a tie to other experts, so that honest runs can differ by more than the "
        "limits; run with model.routing=round_robin"
    )


def _drift(side: RunGroup) -> str | None:
    found = [change for run in side.runs if (change := _drift_of(run.record)) is not None]
    if not found:
        return None
    worst = max(found, key=abs)
    cause = "slower: throttling or another process" if worst > 0 else "faster: the timing warm-up was too short"
    return f"step time drifted in {_of_runs(side, found)}, by up to {worst:+.1%} ({cause})"


def _drift_of(record: Record) -> float | None:
    """Return the relative change of the step time over the window, if beyond MAX_DRIFT and beyond chance."""
    times = interval_step_seconds(record)
    if len(times) < MIN_TIMES_FOR_DRIFT and record["timing"]["step_seconds_method"] != "interval_mean":
        times = [value for value in record["timing"]["step_seconds"] if value is not None]
    if len(times) < MIN_TIMES_FOR_DRIFT:
        return None
    change, low, high = trend(times)
    return change if abs(change) > MAX_DRIFT and (low > 0 or high < 0) else None


def _untimed_share(record: Record) -> float:
    timing = record["timing"]
    left_out = sum((timing.get(phase) or {}).get("steps", 0) for phase in ("resumed", "saving"))
    return left_out / (left_out + timing["measured_steps"]) if left_out else 0.0


def _shared_device(side: RunGroup) -> str | None:
    found = sorted({name for names in side.values("contention", "device_processes") for name in names or ()})
    return f"other processes used the device: {', '.join(found[:3])}" if found else None


def _throttled(side: RunGroup) -> str | None:
    found = [reasons for run in side.runs if (reasons := _throttle_reasons(run.record))]
    shown = ", ".join(sorted({reason for reasons in found for reason in reasons}))
    return f"the device's clock was throttled in {_of_runs(side, found)} ({shown})" if found else None


def _throttle_reasons(record: Record) -> set[str]:
    moments = (get_path(record, "contention", "device_condition", moment) for moment in ("before", "after"))
    at_the_ends = {reason for moment in moments if moment for reason in moment.get("throttle_reasons") or ()}
    return at_the_ends | {*(get_path(record, "telemetry", "throttled") or ())}


def _limited(side: RunGroup) -> str | None:
    conditions = [each or {} for each in side.values("contention", "device_condition", "after")]
    limits = [(each.get("power_limit_watts"), each.get("default_power_limit_watts")) for each in conditions]
    found = [(own, default) for own, default in limits if own and default and own < MIN_POWER_LIMIT * default]
    if not found:
        return None
    return f"the device's power limit is {min(found)[0]:,.0f} W, its default {min(found)[1]:,.0f} W"


def _stall_seconds(record: Record) -> float | None:
    """Return by how many seconds the longest interval exceeds what its steps take otherwise, if that is a stall."""
    intervals = record["timing"]["intervals"]
    if len(intervals) < MIN_INTERVALS_FOR_STALL:
        return None
    typical = statistics.median(interval_step_seconds(record))
    longest = max(interval["seconds"] - typical * (interval["last_step"] - interval["first_step"] + 1)
                  for interval in intervals)  # fmt: skip
    return longest if longest > STALL_STEPS * typical else None


def _idle_share(record: Record) -> float | None:
    """Return the time between timed intervals over that in them; None where it is too short to matter."""
    intervals = record["timing"]["intervals"]
    idle = [interval.get("idle_seconds") or 0.0 for interval in intervals]
    seconds = math.fsum(interval["seconds"] for interval in intervals)
    return math.fsum(idle) / seconds if seconds and statistics.fmean(idle) > MIN_IDLE_SECONDS else None


def _straggler(side: RunGroup) -> str | None:
    found = [each for parallel in side.values("parallel") for each in (parallel or {}).get("stragglers") or ()]
    if not found:
        return None
    worst = max(found, key=lambda each: each["slowdown"])
    return f"rank {worst['rank']} is busy for {worst['slowdown']:.2f} times as long as the others"


def _compiled_while_timed(side: RunGroup) -> str | None:
    if not any(side.values("effective_settings", "compilation", "graphs_in_window")):
        return None
    return "torch.compile compiled in timed intervals; raise workload.timing_warmup_steps"


def _outliers(side: RunGroup) -> str | None:
    times = [value for value in side.values("timing", "mean_step_seconds") if value is not None]
    shown = [f"{side.runs[index].path.parent.name} ({1000 * times[index]:.2f} ms)" for index in outliers(times)]
    return f"not dropped: {', '.join(shown)}" if shown else None


def _modified_source(side: RunGroup) -> str | None:
    modified = any(side.values("environment", "git", "dirty"))
    return "the harness's source had uncommitted changes" if modified else None


# In the order in which they are shown.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("no fingerprint", _no_fingerprint),
    ("untested", _untested),
    ("learned routing", _learned_routing),
    ("drift", _drift),
    ("partly timed", _if_above(_untimed_share, 0.0, (
        "up to {worst:.0%} of the steps after the timing warm-up were not timed in {runs}: a checkpoint was written or "
        "the run was resumed"))),
    ("data wait", _if_above(_at("timing", "data_wait_fraction"), MAX_DATA_WAIT_FRACTION, (
        "up to {worst:.1%} of the step time was spent waiting for data in {runs}"))),
    ("shared host", _if_above(_at("contention", "other_processes_cpu_fraction"), MAX_OTHER_CPU_FRACTION, (
        "other processes used up to {worst:.0%} of the CPU cores in {runs}"))),
    ("shared device", _shared_device),
    ("throttled", _throttled),
    ("throttled", _if_above(_at("contention", "cpu_throttled_fraction"), MAX_THROTTLED_FRACTION, (
        "a CPU quota held the process back for up to {worst:.1%} of its cores' time in {runs}"))),
    ("limited", _limited),
    ("suspended", _if_above(_at("clocks", "suspended_seconds"), MAX_SUSPENDED_SECONDS, (
        "the host was suspended for up to {worst:,.0f} s in {runs}"))),
    ("stalled", _if_above(_stall_seconds, MIN_STALL_SECONDS, (
        "an interval took {worst:.1f} s longer than the others in {runs}: the process was paused, or host, disk or "
        "device stalled"))),
    ("rested", _if_above(_idle_share, MAX_IDLE_SHARE, (
        "between timed intervals the device rested, for up to {worst:.0%} of the timed seconds in {runs}: checkpoints "
        "or files took long, or work was moved there"))),
    ("straggler", _straggler),
    ("compiled while timed", _compiled_while_timed),
    ("outliers", _outliers),
    ("modified source", _modified_source),
)  # fmt: skip


def interval_step_seconds(record: Record) -> list[float]:
    """Return the mean step time of each measured interval, seconds."""
    return [
        interval["seconds"] / (interval["last_step"] - interval["first_step"] + 1)
        for interval in record["timing"]["intervals"]
    ]
