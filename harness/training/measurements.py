"""Measurements of a run beyond its history: memory, power, contention, and the timing of each rank."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from harness.backends.base import Backend
from harness.backends.step import TrainStep
from harness.environment import CpuContention
from harness.training.distributed.collectives import Ranks, all_of_this_host
from harness.training.history import AxisExchange, TrainingHistory, total_exposed_seconds
from harness.training.monitoring.telemetry import Telemetry, merge_ranks
from harness.workload.digest import BatchDigest, parameter_norms

# Ranks on one kind of device differ by a few percent, and on an otherwise idle shared host by less than this.
STRAGGLER_SLOWDOWN = 1.15


@dataclass(frozen=True)
class Measurements:
    """Everything in a run's record that is measured or observed, except its history; None where unknown."""

    init_digest: str | None = None
    batch_digest: str | None = None
    setup_seconds: float | None = None
    step_seconds_method: str | None = None
    observed_settings: dict[str, Any] = field(default_factory=dict)
    """Effective settings that only the training itself shows: types of linear layers, compilation, CPU fallback."""
    memory: dict[str, int | None] | None = None
    skipped_steps: int | None = None
    final_norms: dict[str, float] | None = None
    other_processes_cpu_fraction: float | None = None
    cpu_throttled_fraction: float | None = None
    device_processes: list[str] | None = None
    device_condition: dict[str, Any] | None = None
    telemetry: dict[str, Any] | None = None
    ranks: list[dict[str, Any]] | None = None
    """Each rank's own times and payloads; None for a run that is not distributed."""

    def observing(self, **settings: Any) -> Measurements:
        """Return the measurements with more observed settings."""
        return replace(self, observed_settings={**self.observed_settings, **settings})


class Contention:
    """Contention from construction to `finish`: other processes on host and device, and clock throttling."""

    def __init__(self, backend: Backend, ranks: Ranks) -> None:
        self._backend, self._ranks = backend, ranks
        self._host = CpuContention(all_of_this_host(ranks))
        self._processes = backend.other_processes()
        self._clock_state = backend.clock_state()

    def finish(self, *, device_is_well: bool = True) -> dict[str, Any]:
        """Return the contention fields of Measurements. Collective."""
        condition = None
        if device_is_well and self._clock_state is not None:
            # Read at once: a throttled device cools within seconds.
            condition = {"before": self._clock_state, "after": self._backend.clock_state()}
        after = self._backend.other_processes() if device_is_well else None
        known = [names for pair in self._ranks.gather((self._processes, after)) for names in pair if names is not None]
        return {
            "other_processes_cpu_fraction": self._host.other_fraction(),
            "cpu_throttled_fraction": self._host.throttled_fraction(),
            "device_processes": sorted({name for names in known for name in names}) if known else None,
            "device_condition": condition,
        }


def collect_measurements(
    found: Measurements,
    *,
    parameters: Mapping[str, torch.Tensor],
    step: TrainStep,
    backend: Backend,
    ranks: Ranks,
    batch_digest: BatchDigest,
    telemetry: Telemetry,
    history: TrainingHistory,
    own_from: int,
    device: Mapping[str, Any],
    host: str | None,
    tokens_per_step: int,
) -> Measurements:
    """Return `found` with the measurements that device and ranks have at the end of the training. Collective.

    Args:
        parameters: by name; of copies on several ranks, those of one.
        own_from: index of the first interval that this attempt trained: earlier attempts' power is unknown here.
    """
    memory = backend.memory()
    measured = [interval for phase, interval in history.intervals[own_from:] if phase == "measured"]
    own_telemetry = telemetry.to_record(
        math.fsum(interval.seconds for interval in measured),
        sum(interval.steps for interval in measured) * tokens_per_step,
    )
    by_rank = None
    if ranks.world.is_distributed:
        own = {
            "host": host,
            "device": device.get("name"),
            "device_index": device.get("index"),
            "peak_allocated_bytes": (memory or {}).get("peak_allocated_bytes"),
            **rank_timing(history, own_from),
        }
        by_rank = ranks.gather(own)
    return replace(
        found,
        final_norms=parameter_norms(parameters, ranks.gather),
        memory=memory,
        skipped_steps=step.skipped_steps(),
        batch_digest=ranks.combined_digest(batch_digest),
        telemetry=merge_ranks(ranks.gather(own_telemetry)),
        ranks=by_rank,
    )


def rank_timing(history: TrainingHistory, own_from: int = 0) -> dict[str, Any]:
    """Return one rank's step time, payload and exposed communication, also by axis, per step of the measured window.

    Args:
        own_from: index of the first interval that this attempt trained: a checkpoint has rank 0's times alone.
    """
    measured = [
        (interval, exchange)
        for (phase, interval), exchange in list(zip(history.intervals, history.exchanges, strict=True))[own_from:]
        if phase == "measured"
    ]
    steps = sum(interval.steps for interval, _ in measured)
    if not steps:
        return dict.fromkeys(("step_seconds", "payload_bytes_per_step", "exposed_communication_seconds", "axes"))
    over: dict[str, list[AxisExchange]] = {}
    for _, exchanges in measured:
        for axis, exchange in exchanges.items():
            over.setdefault(axis, []).append(exchange)
    axes = {axis: _per_step(found, steps) for axis, found in over.items()}
    return {
        "step_seconds": math.fsum(interval.seconds for interval, _ in measured) / steps,
        **_per_step([exchange for found in over.values() for exchange in found], steps),
        "axes": axes,
    }


def _per_step(exchanges: Sequence[AxisExchange], steps: int) -> dict[str, float | None]:
    payloads = [exchange.payload_bytes for exchange in exchanges]
    exposed = total_exposed_seconds(exchanges)
    return {
        "payload_bytes_per_step": None if None in payloads else sum(size for size in payloads if size) / steps,
        "exposed_communication_seconds": None if exposed is None else exposed / steps,
    }


def describe_ranks(by_rank: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the record's section on the ranks, from each rank's own values, in rank order.

    A rank's busy time is its step time minus its exposed communication. Since gradients are exchanged in every step,
    all ranks have the same step time: only their busy times show which of them the others wait for.
    """
    ranks = []
    for number, own in enumerate(by_rank):
        step, waited = own["step_seconds"], own["exposed_communication_seconds"]
        busy = None if step is None or waited is None else max(0.0, step - waited)
        ranks.append({"rank": number, **own, "busy_seconds_per_step": busy})
    return {"ranks": ranks, "stragglers": find_stragglers(ranks)}


def find_stragglers(ranks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the ranks that are busy for clearly longer than the others, with their slowdown."""
    busy = [rank["busy_seconds_per_step"] for rank in ranks]
    if len(busy) < 2 or any(value is None for value in busy):
        return []
    found = []
    for rank, value in enumerate(busy):
        typical = statistics.median(busy[:rank] + busy[rank + 1 :])
        if typical > 0 and value > STRAGGLER_SLOWDOWN * typical:
            found.append({"rank": rank, "slowdown": value / typical})
    return found


def pipeline_bubble(
    ranks: Sequence[Mapping[str, Any]], size: int, virtual_stages: int, micro_batches: int
) -> dict[str, Any] | None:
    """Return the share of a step in which the ranks of a pipeline wait for each other, and the ideal one.

    Measured: the mean over the ranks; transfers that are not hidden count too. Ideal, for equal stages and free
    transfers, is (p - 1) / (v m + p - 1) of p ranks, v stages on each and m micro-batches, with GPipe and 1F1B alike
    (Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters").

    Args:
        ranks: as `describe_ranks` returns them.
        size: of the pipeline, in ranks.
    """
    if size == 1:
        return None
    waits = [((rank["axes"] or {}).get("pipeline") or {}).get("exposed_communication_seconds") for rank in ranks]
    shares = [None if wait is None else wait / rank["step_seconds"] for wait, rank in zip(waits, ranks, strict=True)]
    known = [share for share in shares if share is not None]
    return {
        "measured_share": statistics.fmean(known) if len(known) == len(ranks) else None,
        "ideal_share": (size - 1) / (virtual_stages * micro_batches + size - 1),
        "micro_batches": micro_batches,
    }
