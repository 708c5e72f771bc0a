"""What the reader of a verdict has to know of the runs: drift, waiting, sharing, throttling, outliers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.analysis import ratio_statistics as statistics
from harness.analysis.run_group import RunGroup
from harness.records.load import get_path

# A drift of the step time beyond this share of it, and beyond its own 99 % interval, is worth a warning.
DRIFT = 0.02
MIN_INTERVALS_FOR_DRIFT = 8
DATA_WAIT = 0.01
HOST_CONTENTION = 0.10
SUSPENDED_SECONDS = 1.0


@dataclass(frozen=True)
class Caution:
    """Something that does not forbid a verdict, but that its reader has to know."""

    name: str
    side: str
    text: str


def cautions_about(side: RunGroup) -> list[Caution]:
    """Return what a reader of the verdict has to know of the runs of one side."""
    return [Caution(name, side.label, text) for name, text in _cautions(side)]


def _cautions(side: RunGroup) -> Iterable[tuple[str, str]]:
    runs = side.runs
    if side.emulated:
        # The cautions below tell of times and speeds, and an emulation has none.
        yield "emulated", "the device is an emulation: no speed is stated"
        return
    drifts = [drift for run in runs if (drift := _drift(run.record)) is not None]
    if drifts:
        worst = max(drifts, key=abs)
        cause = "slower towards the end: throttling, or a neighbour" if worst > 0 else "faster: warm-up was not over"
        yield "drift", f"step time drifted in {len(drifts)} of {len(runs)} runs, by up to {worst:+.1%} ({cause})"
    waits = [value for value in side.values("timing", "data_wait_fraction") if value is not None and value > DATA_WAIT]
    if waits:
        yield "data wait", f"up to {max(waits):.1%} of the step was spent waiting for data in {len(waits)} runs"
    busy = [
        value
        for value in side.values("contention", "other_processes_cpu_fraction")
        if value and value > HOST_CONTENTION
    ]
    if busy:
        yield (
            "shared host",
            f"other processes had up to {max(busy):.0%} of the cores in {len(busy)} of {len(runs)} runs",
        )
    others = sorted({name for names in side.values("contention", "device_processes") for name in names or ()})
    if others:
        yield "shared device", f"others used the device: {', '.join(others[:3])}"
    held_down = [reasons for run in runs if (reasons := _throttle_reasons(run.record))]
    if held_down:
        words = ", ".join(sorted({reason for reasons in held_down for reason in reasons}))
        yield "throttled", f"the device's clock was held down in {len(held_down)} of {len(runs)} runs ({words})"
    asleep = [value for value in side.values("clocks", "suspended_seconds") if value and value > SUSPENDED_SECONDS]
    if asleep:
        yield "suspended", f"the host slept for up to {max(asleep):,.0f} s in {len(asleep)} of {len(runs)} runs"
    if any(side.values("effective_settings", "compilation", "graphs_in_window")):
        yield "compiled while timed", "torch.compile was at work in timed intervals; raise workload.timing_warmup_steps"
    if any(side.values("environment", "git", "dirty")):
        yield "modified source", "the harness's source had changes that no commit holds"
    times = [value for value in side.values("timing", "mean_step_seconds") if value is not None]
    odd = statistics.outliers(times)
    if odd:
        shown = ", ".join(f"{runs[index].path.parent.name} ({1000 * times[index]:.2f} ms)" for index in odd)
        yield "outliers", f"shown, not dropped: {shown}"


def _throttle_reasons(record: Mapping[str, Any]) -> set[str]:
    moments = (get_path(record, "contention", "device_condition", moment) for moment in ("before", "after"))
    at_the_ends = {reason for moment in moments if moment for reason in moment.get("throttle_reasons") or ()}
    return at_the_ends | {*(get_path(record, "telemetry", "throttled") or ())}


def _drift(record: Mapping[str, Any]) -> float | None:
    """Return the relative change of the step time over the window, if it is beyond DRIFT and beyond chance."""
    intervals = record["timing"]["intervals"]
    if len(intervals) < MIN_INTERVALS_FOR_DRIFT:
        return None
    change, low, high = statistics.trend(interval_step_seconds(record))
    return change if abs(change) > DRIFT and (low > 0 or high < 0) else None


def interval_step_seconds(record: Mapping[str, Any]) -> list[float]:
    """Return the mean step time of each measured interval, seconds."""
    return [
        interval["seconds"] / (interval["last_step"] - interval["first_step"] + 1)
        for interval in record["timing"]["intervals"]
    ]
