"""Gates before any speed is stated: finished runs, the same work, the same computation, a plausible speed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.analysis.calibration import Calibration
from harness.analysis.cautions import MAX_OTHER_CPU_FRACTION
from harness.analysis.chips import Chip, ambiguity, find_chip
from harness.analysis.format import tflops
from harness.analysis.parity import Memo, ParityResult, compare_computation
from harness.analysis.run_group import RunGroup
from harness.analysis.timing_evidence import timing_problems, unchecked
from harness.analysis.utilization import achieved_flops, catalogued_peak, measured_peak
from harness.config import OPERATIONS, conditions, product_format, work_differences
from harness.records.load import LoadedRecord, get_path
from harness.text import counted

# Reported memory over the catalogue's: drivers reserve some of it, and vendors count in powers of ten or of two.
MEMORY_RANGE = (0.80, 1.10)
# A peak is measured at one moment with one shape of matrices, so that a little more than it is plausible.
MEASURED_PEAK_SLACK = 1.10
WORLD_SIZE = "world size"
# Sizes are padded, and a few numbers are exchanged at the ends of intervals.
MAX_PAYLOAD_DIFFERENCE, MIN_PAYLOAD_BYTES = 0.02, 4096


@dataclass(frozen=True)
class Gate:
    """Result of one gate. `passed` is None where it could not be checked; `summary` gives the reason."""

    name: str
    passed: bool | None
    summary: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Computation:
    """Result of the gate *same computation*, with its single tests for tables and pictures."""

    gate: Gate
    findings: tuple[ParityResult, ...] = field(default=())


def finished(sides: Sequence[RunGroup]) -> Gate:
    """Check that every run finished with status ok, on its own device."""
    details = []
    for side in sides:
        for run in side.runs:
            status = run.record["status"]
            if status != "ok":
                reason = run.record.get("error")
                details.append(f"{run.path.parent}: {status}{f': {reason}' if reason else ''}")
            elif get_path(run.record, "effective_settings", "cpu_fallback"):
                details.append(f"{run.path.parent}: part of the work fell back to the CPU")
    if details:
        return Gate("finished", False, f"{len(details)} of the runs did not finish", tuple(details))
    return Gate("finished", True, f"all {sum(len(side.runs) for side in sides)} runs finished")


def comparable(reference: RunGroup, other: RunGroup, *, unequal: bool = False) -> Gate:
    """Check that all runs of both sides had the same work, track and world size, and the same data.

    Args:
        unequal: the world sizes of the two sides may differ; those of one side's repeats may not.
    """
    first = reference.runs[0]
    lines = [line for run in reference.runs[1:] for line in _differences(first, run)]
    for run in other.runs:
        # Against the first run of its own side, the world size has to be the same in any case.
        lines += [line for line in _differences(first, run) if not (unequal and line.startswith(WORLD_SIZE))]
        lines += [line for line in _differences(other.runs[0], run) if line.startswith(WORLD_SIZE)]
    details = list(dict.fromkeys(lines))
    details += mixed_repeats(reference)
    details += mixed_repeats(other)
    if details:
        return Gate("comparable", False, "not the same work: " + "; ".join(_names(details)), tuple(details))
    return Gate(
        "comparable",
        True,
        f"workload {first.record['workload_id']}, initial weights and batches are the same in every run",
    )


def _names(details: Sequence[str]) -> list[str]:
    shown = [detail.split(":", 1)[0] for detail in details[:4]]
    return [*shown, f"and {len(details) - 4} more"] if len(details) > 4 else shown


def _differences(reference: LoadedRecord, run: LoadedRecord) -> Iterator[str]:
    one, two = reference.record, run.record
    for name, keys in (
        ("schema version", ("schema_version",)),
        ("track", ("config", "track", "name")),
        (WORLD_SIZE, ("world_size",)),
    ):
        yield from _unequal(name, get_path(one, *keys), get_path(two, *keys))
    if one["workload_id"] != two["workload_id"]:
        differences = sorted(work_differences(one["config"], two["config"]).items())
        lines = [line for key, values in differences for line in _unequal(key, *values)]
        yield from lines or _unequal("workload_id", one["workload_id"], two["workload_id"])
    yield from _unequal("initial weights", _short(one["digests"].get("init")), _short(two["digests"].get("init")))
    yield from _unequal("batches", *(_short(value) for value in _batches(one, two)))


def _batches(one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return both batch digests: of the last common evaluation where a target stopped the runs at different steps."""
    lengths = [len(record["losses"]["train"]) for record in (one, two)]
    if lengths[0] == lengths[1] or get_path(one, "config", "target_loss") is None:
        return one["digests"].get("batches"), two["digests"].get("batches")
    points = [{point["step"]: point.get("batches") for point in record["eval"]["points"]} for record in (one, two)]
    common = points[0].keys() & points[1].keys()
    if not common:
        return one["digests"].get("batches"), two["digests"].get("batches")
    return points[0][max(common)], points[1][max(common)]


def mixed_repeats(side: RunGroup) -> Iterator[str]:
    """Yield what differs between the repeats of one side, which must be of one device and one set-up."""
    found: dict[str, list[Any]] = {
        "backend": side.values("backend", "name"),
        "device": side.values("device", "name"),
        **{key: side.values("effective_settings", key) for key in ("threads", "compile", "adamw", *OPERATIONS)},
        "torch": side.values("environment", "packages", "torch"),
        "software": side.values("backend", "versions"),
        "layout": side.values("parallel", "layout"),
    }
    settings = [conditions(config) for config in side.values("config")]
    found |= {key: [each.get(key) for each in settings] for key in settings[0]}
    for name, values in found.items():
        texts = sorted({json.dumps(value, sort_keys=True) for value in values})
        if len(texts) > 1:
            yield f"{name} differs within {side.label}: {' and '.join(texts)}"


def _unequal(name: str, one: Any, two: Any) -> Iterator[str]:
    if one != two:
        yield f"{name}: {one} against {two}"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:16]


def same_computation(
    reference: RunGroup, other: RunGroup, calibration: Calibration, memo: Memo | None = None
) -> Computation:
    """Check that losses, gradients, weights and number formats agree within the limits of parity.TESTS.

    Args:
        memo: as of `compare_computation`, for several comparisons with one reference.
    """
    precision = reference.first["config"]["precision"]
    others = [*reference.runs[1:], *other.runs]
    findings = compare_computation(reference.runs[0], others, precision, calibration, memo)
    failed = [finding for finding in findings if finding.passed is False]
    details = [finding.text for finding in failed]
    differing = [*_effective_differences(reference, other), *_payload_differences(reference, other)]
    details += [f"{name} differs: {values}" for name, values in differing]
    checked = [finding for finding in findings if finding.passed is not None]
    if not checked:
        details.append("no losses are in both records, so the same computation cannot be shown")
    if details:
        gate = Gate("same computation", False, details[0], tuple(details))
    else:
        nearest = max(checked, key=lambda finding: finding.share)
        if nearest.share:
            closest = f"the largest difference is {nearest.share:.0%} of its limit ({nearest.measures}{nearest.where})"
        else:
            closest = "there is no difference"
        gate = Gate(
            "same computation",
            True,
            f"all {len(checked)} tests passed at {precision}; {closest}",
            tuple(finding.text for finding in findings),
        )
    return Computation(gate, tuple(findings))


def _effective_differences(reference: RunGroup, other: RunGroup) -> Iterator[tuple[str, str]]:
    """Yield (name, values) of the effective number formats that differ."""
    for name, key in (
        ("dtype of matrix products", "matmul_dtype"),
        ("dtype of linear layers", "linear_output_dtypes"),
        ("dtype of the blocks' outputs", "block_output_dtypes"),
    ):
        values = [json.dumps(value) for side in (reference, other) for value in side.values("effective_settings", key)]
        known = sorted(set(values) - {"null"})
        if len(known) > 1:
            yield name, " against ".join(known)


def _payload_differences(reference: RunGroup, other: RunGroup) -> Iterator[tuple[str, str]]:
    """Yield (name, values) of the axes on which the sides exchange other amounts, where nothing explains it.

    A side that sends gradients in fewer bits, or not at all in some steps, does other work. On other axes releases of
    torch cut tensors in different ways.
    """
    one, two = reference.first, other.first
    if conditions(one["config"]) != conditions(two["config"]):
        return
    if get_path(one, "parallel", "layout") != get_path(two, "parallel", "layout"):
        return
    for axis in ("data", "shard"):
        before, after = _payload(one, axis), _payload(two, axis)
        if before is None or after is None:
            continue
        if abs(after - before) > max(MAX_PAYLOAD_DIFFERENCE * before, MIN_PAYLOAD_BYTES):
            yield f"payload of a step on the axis {axis}", f"{before:,.0f} against {after:,.0f} bytes"


def _payload(record: Mapping[str, Any], axis: str) -> float | None:
    """Return the bytes that all ranks together put into collectives on an axis in a step; None if unknown."""
    ranks = get_path(record, "parallel", "ranks") or ()
    known = [get_path(rank, "axes", axis, "payload_bytes_per_step") for rank in ranks]
    return math.fsum(known) if known and None not in known else None


def consistent_timing(sides: Sequence[RunGroup]) -> Gate:
    """Check every run's timing against itself: clocks, gaps, single steps, device events."""
    details = [f"{run.path.parent}: {problem}" for side in sides for run in side.runs
               for problem in timing_problems(run.record)]  # fmt: skip
    if details:
        return Gate("timing", False, details[0], tuple(details))
    runs = [run for side in sides for run in side.runs]
    reasons = [reason for run in runs if (reason := unchecked(run.record)) is not None]
    if reasons:
        among = f"{len(reasons)} of {counted(len(runs), 'run')}"
        return Gate("timing", None, f"not checked: {' and '.join(dict.fromkeys(reasons))} in {among}")
    return Gate("timing", True, "clocks, gaps between intervals and single steps agree with the step times")


def plausible(side: RunGroup) -> Gate:
    """Check that no run of a side achieved more FLOP/s than its device's measured or catalogued peak."""
    achieved = [achieved_flops(run.record) for run in side.runs]
    fastest = max(value for value in achieved if value is not None) if any(achieved) else None
    if fastest is None:
        return Gate("plausible", None, f"{side.label}: no speed was measured")
    found = f"{side.label}: {tflops(fastest)} a device (model FLOPs)"
    chip = find_chip(side.first["backend"].get("peak_lookup_key"))
    precision = product_format(side.first["config"]["precision"])
    peaks = list(_peaks(side.first, chip, precision))
    problems = [
        *_device_problems(side.first, chip, precision),
        *(f"{found}, above {name}: {tflops(peak)}" for name, peak, slack in peaks if fastest > slack * peak),
    ]
    if problems:
        return Gate("plausible", False, problems[0], tuple(problems))
    if not peaks:
        name = side.first["device"].get("name")
        unclear = ambiguity(name)
        hint = f"; {unclear}" if unclear else ""
        return Gate("plausible", None, f"{found}; not checked, since no peak is known for {name!r}{hint}")
    shares = ", ".join(f"{fastest / peak:.1%} of {name}" for name, peak, _ in peaks)
    return Gate("plausible", True, f"{found}; {shares}")


def single_run_problem(run: LoadedRecord) -> str | None:
    """Return the reason for which a run alone is no evidence of a speed, or None."""
    side = RunGroup(str(run.path), (run,))
    if not get_path(run.record, "timing", "mean_step_seconds"):
        return "no speed was measured"
    for gate in (finished([side]), consistent_timing([side]), plausible(side)):
        if gate.passed is False:
            return gate.details[0].removeprefix(f"{run.path.parent}: ").removeprefix(f"{run.path}: ")
    return None


def _peaks(record: Mapping[str, Any], chip: Chip | None, precision: str) -> Iterator[tuple[str, float, float]]:
    """Yield (name, FLOP/s, factor by which a run may exceed it) of the peaks of a record's device."""
    if (peak := measured_peak(record)) is not None:
        busy = get_path(record, "measured_peak", "other_processes_cpu_fraction") or 0.0
        name = f"the {precision} peak measured on this device"
        if busy > MAX_OTHER_CPU_FRACTION:
            # Such a peak is too low, so that an honest run may exceed it.
            yield f"{name} (while other processes used {busy:.0%} of the CPU cores: no bound)", peak, math.inf
        else:
            yield name, peak, MEASURED_PEAK_SLACK
    if chip is not None and (peak := catalogued_peak(record)) is not None:
        # Where the vendor's label adds the vector units, only a speed above the label is impossible.
        ceiling = chip.ceiling_flops(precision) or peak
        units = "matrix units, " if ceiling > peak else ""
        yield f"the catalogued {precision} peak of {chip.name} ({units}grade {chip.confidence})", peak, ceiling / peak


def _device_problems(record: Mapping[str, Any], chip: Chip | None, precision: str) -> Iterator[str]:
    """Yield the signs that a chip runs under another's name: its memory, or a precision that the chip lacks."""
    name, memory = get_path(record, "device", "name"), get_path(record, "device", "memory_bytes")
    key = get_path(record, "backend", "peak_lookup_key")
    if key is not None and key != name:
        yield f"the device reports the name {name!r}, but its peak is looked up as {key!r}"
    if chip is None:
        return
    if precision in chip.lacks:
        yield f"{chip.name} does not support {precision}, but the run has precision={precision}"
    if memory is not None and chip.memory_bytes is not None:
        share = memory / chip.memory_bytes
        if not MEMORY_RANGE[0] <= share <= MEMORY_RANGE[1]:
            yield (
                f"the device reports the name {name} and {memory / 1e9:.0f} GB of memory, but that chip has "
                f"{chip.memory_bytes / 1e9:.0f} GB"
            )
