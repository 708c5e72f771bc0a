"""From what a run measured to its record. Arithmetic on host numbers; nothing here touches a device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from harness.analysis.roofline import roofline
from harness.analysis.utilization import utilization
from harness.config import Config, to_dict, workload_id
from harness.records.record import SCHEMA_VERSION
from harness.training.history import TrainingHistory
from harness.training.loop import PHASES
from harness.training.timing import TimedInterval

if TYPE_CHECKING:
    from harness.training.setup import Facts

# Ranks on one kind of device differ by a few per cent; what a shared host adds stays below this on an idle one.
STRAGGLER = 1.15


def build_record(
    config: Config,
    *,
    status: str,
    error: str | None,
    facts: Facts,
    history: TrainingHistory | None,
    batch_digest: str,
    step_seconds_method: str,
    backend_name: str,
    world_size: int = 1,
    attempts: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the record; harness/schemas/record.schema.json describes it."""
    done = history or TrainingHistory()
    times = timing_section(config, done, facts.setup_seconds, step_seconds_method)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "error": error,
        "workload_id": workload_id(config),
        "digests": {"init": facts.init_digest, "batches": batch_digest if done.steps_done else None},
        "world_size": world_size,
        "started_at": facts.started_at,
        "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": to_dict(config),
        "model": {"parameters": facts.parameters},
        "data": facts.data,
        "backend": {
            "name": backend_name,
            "versions": facts.versions,
            "peak_lookup_key": facts.peak_lookup_key,
        },
        "device": facts.device,
        "effective_settings": facts.effective_settings,
        "environment": facts.environment,
        "timing": times,
        "losses": {
            "unit": "nats/token",
            "train": done.losses,
            "gradient_norm": done.gradient_norms,
            "skipped_steps": facts.skipped_steps,
            "nonfinite": done.nonfinite,
        },
        "eval": {
            "unit": "nats/token",
            "sequences": config.workload.eval_sequences if config.workload.eval_every else 0,
            "points": done.evaluations,
            "final": done.evaluations[-1]["loss"] if done.evaluations else None,
        },
        "weights": {"final_norms": facts.final_norms},
        "target": target_section(config, done),
        "memory": facts.memory,
        "contention": {
            "other_processes_cpu_fraction": facts.other_processes_cpu_fraction,
            "device_processes": facts.device_processes,
            "device_condition": facts.device_condition,
        },
        "clocks": facts.clocks.facts(),
        "telemetry": facts.telemetry,
        "parallel": facts.parallel and {**facts.parallel, "scaling": scaling_section(facts, world_size, times)},
        "measured_peak": facts.measured_peak,
        "attempts": attempts,
    }
    record["utilization"] = utilization(record)
    record["profile"] = profile_section(facts.profile, record)
    return record


def profile_section(found: Mapping[str, Any] | None, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record's part on where the time of a step goes, or None if nobody asked."""
    if found is None:
        return None
    times, used = record["timing"], record["utilization"]
    position = None
    if times["mean_step_seconds"] is not None and used is not None:
        position = roofline(
            used["achieved_flops"] * times["mean_step_seconds"],
            found["bytes_accessed"],
            times["mean_step_seconds"],
            used["measured_peak_flops"],
            (record["measured_peak"] or {}).get("memory_bytes_per_second"),
        )
    steps = times["measured_steps"]
    return {
        "data_wait_seconds": times["data_wait_seconds"] / steps if steps else None,
        **found,
        "roofline": position,
    }


def scaling_section(facts: Facts, world_size: int, times: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how much of a smaller world's speed was kept, or None if there was none to go by."""
    if facts.scaling_baseline is None:
        return None
    return facts.scaling_baseline.efficiency(world_size, times["tokens_per_second"])


def timing_section(config: Config, done: TrainingHistory, setup_seconds: float | None, method: str) -> dict[str, Any]:
    """Return the timing part: the headline numbers come from the measured intervals alone."""
    phases: dict[str, list[TimedInterval]] = {phase: [] for phase in PHASES}
    for phase, interval in done.intervals:
        phases[phase].append(interval)
    measured = phases["measured"]
    steps = sum(interval.steps for interval in measured)
    seconds = math.fsum(interval.seconds for interval in measured)
    waited = math.fsum(interval.data_wait_seconds for interval in measured)
    tokens_per_step = config.workload.global_batch_size * config.workload.seq_len
    return {
        "clock": "host, between two synchronisations",
        "step_seconds_method": method,
        "setup_seconds": setup_seconds,
        "first_step_seconds": phases["first"][0].seconds if phases["first"] else None,
        "warmup": {
            "steps": sum(interval.steps for interval in phases["warmup"]),
            "seconds": math.fsum(interval.seconds for interval in phases["warmup"]),
        },
        "measured_steps": steps,
        "measured_seconds": seconds,
        "tokens_per_step": tokens_per_step,
        "mean_step_seconds": seconds / steps if steps else None,
        "tokens_per_second": steps * tokens_per_step / seconds if steps and seconds > 0 else None,
        "data_wait_seconds": waited,
        "data_wait_fraction": waited / seconds if seconds > 0 else None,
        "resumed": {
            "steps": sum(interval.steps for interval in phases["resumed"]),
            "seconds": math.fsum(interval.seconds for interval in phases["resumed"]),
        },
        "evaluation_seconds": done.evaluation_seconds,
        "checkpoint_seconds": done.checkpoint_seconds,
        "training_seconds": done.training_seconds,
        "intervals": [
            {
                "first_step": interval.first_step,
                "last_step": interval.last_step,
                "seconds": interval.seconds,
                "data_wait_seconds": interval.data_wait_seconds,
                "device_seconds": interval.device_seconds,
            }
            for interval in measured
        ],
        "step_seconds": [value for interval in measured for value in interval.step_seconds],
    }


def target_section(config: Config, done: TrainingHistory) -> dict[str, Any] | None:
    """Return when the target loss was reached, or None if there was no target."""
    if config.target_loss is None:
        return None
    return {
        "loss": config.target_loss,
        "reached": done.target_step is not None,
        "step": done.target_step,
        # Steps alone, the first and the warm-up included; evaluations and writing left out.
        "training_seconds": done.target_training_seconds,
        "wall_seconds": done.target_wall_seconds,
    }


def rank_timing(done: TrainingHistory) -> dict[str, Any]:
    """Return what one rank measured of itself, per step of the measured window."""
    measured = [
        (interval, exchange)
        for (phase, interval), exchange in zip(done.intervals, done.exchanges, strict=True)
        if phase == "measured"
    ]
    steps = sum(interval.steps for interval, _ in measured)
    if not steps:
        return {"step_seconds": None, "payload_bytes_per_step": None, "exposed_communication_seconds": None}
    waits = [waited for _, (_, waited) in measured]
    waited = None if None in waits else math.fsum(wait for wait in waits if wait is not None) / steps
    return {
        "step_seconds": math.fsum(interval.seconds for interval, _ in measured) / steps,
        "payload_bytes_per_step": sum(payload for _, (payload, _) in measured) / steps,
        "exposed_communication_seconds": waited,
    }


def describe_ranks(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the record's part on the ranks, from what each told of itself, in rank order.

    A rank's busy time is its step time less what it stood still for the others. Where gradients are exchanged in
    every step all ranks take the same time: only their busy times tell which of them the others wait for.
    """
    ranks = []
    for number, own in enumerate(told):
        step, waited = own["step_seconds"], own["exposed_communication_seconds"]
        busy = None if step is None or waited is None else max(0.0, step - waited)
        ranks.append({"rank": number, **own, "busy_seconds_per_step": busy})
    return {"ranks": ranks, "stragglers": stragglers(ranks)}


def stragglers(ranks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the ranks that are busy for clearly longer than the others, and how many times as long."""
    busy = [rank["busy_seconds_per_step"] for rank in ranks]
    if len(busy) < 2 or any(value is None for value in busy):
        return []
    found = []
    for rank, value in enumerate(busy):
        typical = statistics.median(busy[:rank] + busy[rank + 1 :])
        if typical > 0 and value > STRAGGLER * typical:
            found.append({"rank": rank, "slowdown": value / typical})
    return found
