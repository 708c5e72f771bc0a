"""Cautions of a verdict: drift, data waits, shared hosts and devices, throttling, suspension, outliers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.analysis.ratio_statistics import outliers, trend
from harness.analysis.run_group import RunGroup
from harness.records.load import get_path
from harness.text import counted

# A relative change of the step time over the run, which must also lie outside its own 99 % interval.
MAX_DRIFT = 0.02
MIN_INTERVALS_FOR_DRIFT = 8
MAX_DATA_WAIT_FRACTION = 0.01
MAX_OTHER_CPU_FRACTION = 0.10
MAX_SUSPENDED_SECONDS = 1.0
# An interval has a stall if it takes longer than the others by more than this, and by more than this number of steps.
MIN_STALL_SECONDS, STALL_STEPS = 1.0, 5


# The cautions whose cause makes a run slower or faster than its device is.
MOVES_TIMES = frozenset({"drift", "shared host", "shared device", "throttled", "suspended", "stalled",
                         "compiled while timed"})  # fmt: skip


@dataclass(frozen=True)
class Caution:
    """A finding that does not forbid a verdict, but that its reader needs."""

    name: str
    side: str
    text: str


def cautions_about(side: RunGroup) -> list[Caution]:
    """Return the cautions of one side's runs."""
    return [Caution(name, side.label, text) for name, text in _cautions(side)]


def _cautions(side: RunGroup) -> Iterable[tuple[str, str]]:
    runs = side.runs
    if side.emulated:
        # The cautions below are about times and speeds, which an emulation does not have.
        yield "emulated", "the device is emulated: no speed is stated"
        return
    if any(
        run.record["status"] == "ok" and get_path(run.record, "fingerprint", "repeated_step") is None for run in runs
    ):
        yield "no fingerprint", "without it, small changes of the computation pass in bf16 and fp16; run again with it"
    model, precision = side.first["config"]["model"], side.first["config"]["precision"]
    if model.get("num_experts") is not None and model.get("routing") == "learned" and precision != "fp32":
        yield (
            "learned routing",
            "rounding sends tokens near a tie to other experts, so that honest runs can differ by more than the "
            "limits; run with model.routing=round_robin",
        )
    yield from _cautions_about_times(side)
    if any(side.values("environment", "git", "dirty")):
        yield "modified source", "the harness's source had uncommitted changes"


def _cautions_about_times(side: RunGroup) -> Iterable[tuple[str, str]]:
    runs = side.runs
    all_runs = counted(len(runs), "run")
    drifts = [drift for run in runs if (drift := _drift(run.record)) is not None]
    if drifts:
        worst = max(drifts, key=abs)
        cause = "slower: throttling or another process" if worst > 0 else "faster: the timing warm-up was too short"
        yield "drift", f"step time drifted in {len(drifts)} of {all_runs}, by up to {worst:+.1%} ({cause})"
    waits = [
        value
        for value in side.values("timing", "data_wait_fraction")
        if value is not None and value > MAX_DATA_WAIT_FRACTION
    ]
    if waits:
        yield (
            "data wait",
            f"up to {max(waits):.1%} of the step time was spent waiting for data in {len(waits)} of {all_runs}",
        )
    used = [value or 0.0 for value in side.values("contention", "other_processes_cpu_fraction")]
    busy = [value for value in used if value > MAX_OTHER_CPU_FRACTION]
    if busy:
        text = f"other processes used up to {max(busy):.0%} of the CPU cores in {len(busy)} of {all_runs}"
        yield "shared host", text
    others = sorted({name for names in side.values("contention", "device_processes") for name in names or ()})
    if others:
        yield "shared device", f"other processes used the device: {', '.join(others[:3])}"
    throttled = [reasons for run in runs if (reasons := _throttle_reasons(run.record))]
    if throttled:
        shown = ", ".join(sorted({reason for reasons in throttled for reason in reasons}))
        yield "throttled", f"the device's clock was throttled in {len(throttled)} of {all_runs} ({shown})"
    asleep = [value for value in side.values("clocks", "suspended_seconds") if value and value > MAX_SUSPENDED_SECONDS]
    if asleep:
        yield "suspended", f"the host was suspended for up to {max(asleep):,.0f} s in {len(asleep)} of {all_runs}"
    stalls = [stall for run in runs if (stall := _stall(run.record)) is not None]
    if stalls:
        text = f"an interval took {max(stalls):.1f} s longer than the others in {len(stalls)} of {all_runs}"
        yield "stalled", f"{text}: the process was paused, or host, disk or device stalled"
    if any(side.values("effective_settings", "compilation", "graphs_in_window")):
        yield "compiled while timed", "torch.compile compiled in timed intervals; raise workload.timing_warmup_steps"
    times = [value for value in side.values("timing", "mean_step_seconds") if value is not None]
    odd = outliers(times)
    if odd:
        shown = ", ".join(f"{runs[index].path.parent.name} ({1000 * times[index]:.2f} ms)" for index in odd)
        yield "outliers", f"not dropped: {shown}"


def _throttle_reasons(record: Mapping[str, Any]) -> set[str]:
    moments = (get_path(record, "contention", "device_condition", moment) for moment in ("before", "after"))
    at_the_ends = {reason for moment in moments if moment for reason in moment.get("throttle_reasons") or ()}
    return at_the_ends | {*(get_path(record, "telemetry", "throttled") or ())}


def _drift(record: Mapping[str, Any]) -> float | None:
    """Return the relative change of the step time over the window, if beyond MAX_DRIFT and beyond chance."""
    intervals = record["timing"]["intervals"]
    if len(intervals) < MIN_INTERVALS_FOR_DRIFT:
        return None
    change, low, high = trend(interval_step_seconds(record))
    return change if abs(change) > MAX_DRIFT and (low > 0 or high < 0) else None


def _stall(record: Mapping[str, Any]) -> float | None:
    """Return by how many seconds the longest interval exceeds what its steps take otherwise, if that is a stall."""
    intervals = record["timing"]["intervals"]
    if len(intervals) < MIN_INTERVALS_FOR_DRIFT:
        return None
    typical = statistics.median(interval_step_seconds(record))
    longest = max(interval["seconds"] - typical * (interval["last_step"] - interval["first_step"] + 1)
                  for interval in intervals)  # fmt: skip
    return longest if longest > max(MIN_STALL_SECONDS, STALL_STEPS * typical) else None


def interval_step_seconds(record: Mapping[str, Any]) -> list[float]:
    """Return the mean step time of each measured interval, seconds."""
    return [
        interval["seconds"] / (interval["last_step"] - interval["first_step"] + 1)
        for interval in record["timing"]["intervals"]
    ]
