"""What has to hold before a speed may be stated: the same work, the same computation, a possible speed, sound runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.analysis.chips import Chip, ambiguity, find_chip
from harness.analysis.format import tflops
from harness.analysis.parity import ParityResult, compare_computation
from harness.analysis.run_group import RunGroup
from harness.analysis.utilization import achieved_flops, catalogued_peak, measured_peak
from harness.config import flatten, is_part_of_the_work
from harness.records.load import LoadedRecord, get_path

# Drivers keep some of a chip's memory, and vendors count in powers of ten or of two.
MEMORY_RANGE = (0.80, 1.10)
# A peak is measured at one moment, by one shape of matrices: what goes a little beyond it is not impossible.
MEASURED_PEAK_SLACK = 1.10


@dataclass(frozen=True)
class Gate:
    """One gate's answer. `passed` None: it could not be checked, and `summary` says why."""

    name: str
    passed: bool | None
    summary: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Computation:
    """The gate *same computation* with its findings, for tables and pictures."""

    gate: Gate
    findings: tuple[ParityResult, ...] = field(default=())


def finished(sides: Sequence[RunGroup]) -> Gate:
    """Every run ended well."""
    details = []
    for side in sides:
        for run in side.runs:
            status = run.record["status"]
            if status != "ok":
                reason = run.record.get("error")
                details.append(f"{run.path.parent}: {status}{f': {reason}' if reason else ''}")
            elif get_path(run.record, "effective_settings", "cpu_fallback"):
                details.append(f"{run.path.parent}: part of the work ran on the host, so it is no run of its device")
    if details:
        return Gate("finished", False, f"{len(details)} of the runs did not end well", tuple(details))
    return Gate("finished", True, f"all {sum(len(side.runs) for side in sides)} runs ended well")


def comparable(reference: RunGroup, other: RunGroup) -> Gate:
    """All runs of both sides were asked to do the same work by the same rules, and did it on the same data."""
    first = reference.runs[0]
    details: list[str] = []
    for run in (*reference.runs[1:], *other.runs):
        for line in _differences(first, run):
            if line not in details:
                details.append(line)
    details += _mixed(reference)
    details += _mixed(other)
    if details:
        return Gate("comparable", False, "not the same work: " + "; ".join(_heads(details)), tuple(details))
    identity = first.record["workload_id"]
    return Gate("comparable", True, f"workload {identity}, initial weights and batches are the same in every run")


def _heads(details: Sequence[str]) -> list[str]:
    shown = [detail.split(":", 1)[0] for detail in details[:4]]
    return [*shown, f"and {len(details) - 4} more"] if len(details) > 4 else shown


def _differences(reference: LoadedRecord, run: LoadedRecord) -> Iterator[str]:
    one, two = reference.record, run.record
    for name, keys in (
        ("schema version", ("schema_version",)),
        ("track", ("config", "track", "name")),
        ("world size", ("world_size",)),
    ):
        yield from _unequal(name, get_path(one, *keys), get_path(two, *keys))
    if one["workload_id"] != two["workload_id"]:
        lines = [
            line
            for key in sorted(flatten(one["config"]).keys() | flatten(two["config"]).keys())
            if is_part_of_the_work(key)
            for line in _unequal(
                key, flatten(one["config"]).get(key, "absent"), flatten(two["config"]).get(key, "absent")
            )
        ]
        yield from lines or _unequal("workload_id", one["workload_id"], two["workload_id"])
    yield from _unequal("initial weights", _short(one["digests"].get("init")), _short(two["digests"].get("init")))
    yield from _unequal("batches", *(_short(value) for value in _batches(one, two)))


def _batches(one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return both batch digests, at the last evaluation that both have if a target stopped them at different steps."""
    lengths = [len(record["losses"]["train"]) for record in (one, two)]
    if lengths[0] == lengths[1] or get_path(one, "config", "target_loss") is None:
        return one["digests"].get("batches"), two["digests"].get("batches")
    points = [{point["step"]: point.get("batches") for point in record["eval"]["points"]} for record in (one, two)]
    common = points[0].keys() & points[1].keys()
    if not common:
        return one["digests"].get("batches"), two["digests"].get("batches")
    return points[0][max(common)], points[1][max(common)]


def _mixed(side: RunGroup) -> Iterator[str]:
    """Repeats are of one thing: one backend, one chip, one version of torch."""
    for name, keys in (
        ("backend", ("backend", "name")),
        ("device", ("device", "name")),
        ("threads", ("effective_settings", "threads")),
        ("micro-batch size", ("config", "workload", "micro_batch_size")),
        ("torch", ("environment", "packages", "torch")),
    ):
        values = {json.dumps(value) for value in side.values(*keys)}
        if len(values) > 1:
            yield f"{name} differs within {side.label}: {' and '.join(sorted(values))}"


def _unequal(name: str, one: Any, two: Any) -> Iterator[str]:
    if one != two:
        yield f"{name}: {one} against {two}"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:16]


def same_computation(reference: RunGroup, other: RunGroup) -> Computation:
    """The numbers that came out belong to one computation: see parity.TOLERANCES."""
    precision = reference.first["config"]["precision"]
    others = [*reference.runs[1:], *other.runs]
    findings = compare_computation(reference.runs[0], others, precision)
    details = [finding.text for finding in findings if finding.passed is False]
    details += [f"{what} differs: {values}" for what, values in _effective_differences(reference, other)]
    checked = [finding for finding in findings if finding.passed is not None]
    if not checked:
        details.append("no losses were recorded by both: nothing shows that the computation was the same")
    if details:
        gate = Gate("same computation", False, details[0], tuple(details))
    else:
        tightest = max(checked, key=lambda finding: abs(finding.value or 0.0) / finding.limit)
        gate = Gate(
            "same computation",
            True,
            f"{len(checked)} tests at {precision}; nearest to its limit: {tightest.text}",
            tuple(finding.text for finding in findings),
        )
    return Computation(gate, tuple(findings))


def _effective_differences(reference: RunGroup, other: RunGroup) -> Iterator[tuple[str, str]]:
    """What was really in effect, where it decides what is computed rather than how."""
    for name, key in (("type of matrix products", "matmul_dtype"), ("type of linear layers", "linear_output_dtypes")):
        values = [json.dumps(value) for side in (reference, other) for value in side.values("effective_settings", key)]
        known = sorted(set(values) - {"null"})
        if len(known) > 1:
            yield name, " against ".join(known)


def plausible(side: RunGroup) -> Gate:
    """No run of the side did more arithmetic a second than its chip can."""
    achieved = [achieved_flops(run.record) for run in side.runs]
    fastest = max(value for value in achieved if value is not None) if any(achieved) else None
    if fastest is None:
        return Gate("plausible", None, f"{side.label}: no speed was measured")
    said = f"{side.label}: {tflops(fastest)} of model arithmetic a device"
    chip = find_chip(side.first["backend"].get("peak_lookup_key"))
    precision = side.first["config"]["precision"]
    problems = list(_identity_problems(side.first, chip, precision))
    limits: list[tuple[str, float, float]] = []
    if (peak := measured_peak(side.first)) is not None:
        limits.append((f"the {precision} peak measured on this device", peak, MEASURED_PEAK_SLACK))
    if chip is not None and (peak := catalogued_peak(side.first)) is not None:
        limits.append((f"the catalogued {precision} peak of {chip.name} (grade {chip.confidence})", peak, 1.0))
    problems += [f"{said}, above {what}: {tflops(peak)}" for what, peak, slack in limits if fastest > slack * peak]
    if problems:
        return Gate("plausible", False, problems[0], tuple(problems))
    if not limits:
        name = side.first["device"].get("name")
        unclear = ambiguity(name)
        why = f"; {unclear}" if unclear else ""
        return Gate("plausible", None, f"{said}; no peak is known for {name!r}, so this could not be checked{why}")
    return Gate(
        "plausible", True, said + "; " + ", ".join(f"{fastest / peak:.1%} of {what}" for what, peak, _ in limits)
    )


def _identity_problems(record: Mapping[str, Any], chip: Chip | None, precision: str) -> Iterator[str]:
    """A chip under another's name gives itself away by its memory or by a precision that it lacks."""
    name, memory = get_path(record, "device", "name"), get_path(record, "device", "memory_bytes")
    key = get_path(record, "backend", "peak_lookup_key")
    if key is not None and key != name:
        yield f"the device calls itself {name!r}, but its peak is looked up as {key!r}"
    if chip is None:
        return
    if precision in chip.lacks:
        yield f"{chip.name} has no {precision} arithmetic, yet the run says precision={precision}"
    if memory is not None and chip.memory_bytes is not None:
        share = memory / chip.memory_bytes
        if not MEMORY_RANGE[0] <= share <= MEMORY_RANGE[1]:
            yield (
                f"the device says it is {name} with {memory / 1e9:.0f} GB of memory, but that chip has "
                f"{chip.memory_bytes / 1e9:.0f} GB"
            )
