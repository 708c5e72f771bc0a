"""Record of a run, built from its description, its measurements and its history. No device is used here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness.analysis.roofline import roofline
from harness.analysis.utilization import utilization
from harness.config import Config, to_dict, workload_id
from harness.records.record import SCHEMA_VERSION
from harness.text import utc_now
from harness.training.fingerprint import fingerprint_record
from harness.training.history import TrainingHistory
from harness.training.loop import PHASES
from harness.training.measurements import Measurements, describe_ranks, pipeline_bubble
from harness.training.setup import RunDescription
from harness.training.timing import TimedInterval


def build_record(
    description: RunDescription,
    measurements: Measurements,
    history: TrainingHistory,
    *,
    status: str,
    error: str | None,
    attempts: list[dict[str, Any]] | None = None,
    profile: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record; harness/schemas/record.schema.json describes it.

    `attempts` and `profile` are None for a run without checkpoints, and for one that was not profiled.
    """
    config = description.config
    times = timing_section(config, measurements, history)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "error": error,
        "workload_id": workload_id(config),
        "digests": digests_section(measurements, history),
        "world_size": description.world_size,
        "started_at": description.start.started_at,
        "finished_at": utc_now(),
        "config": to_dict(config),
        "model": {"parameters": description.parameters},
        "data": description.data,
        "backend": backend_section(description),
        "device": description.device,
        "effective_settings": {**description.effective_settings, **measurements.observed_settings},
        "environment": description.environment,
        "timing": times,
        "losses": losses_section(measurements, history),
        "eval": eval_section(config, history),
        "weights": {"final_norms": measurements.final_norms},
        "fingerprint": fingerprint_record(history.fingerprint),
        "target": target_section(config, history),
        "memory": measurements.memory,
        "contention": contention_section(measurements),
        "clocks": description.start.clocks.to_record(),
        "telemetry": measurements.telemetry,
        "parallel": parallel_section(description, measurements, times),
        "measured_peak": description.measured_peak,
        "search": description.search,
        "attempts": attempts,
    }
    record["utilization"] = utilization(record)
    record["profile"] = None if profile is None else profile_section(profile, record)
    return record


def digests_section(measurements: Measurements, history: TrainingHistory) -> dict[str, str | None]:
    """Return the digests of the initial weights and of the batches, which a run without a step has none of."""
    return {"init": measurements.init_digest, "batches": measurements.batch_digest if history.steps_done else None}


def backend_section(description: RunDescription) -> dict[str, Any]:
    """Return the backend with the versions of its software."""
    return {
        "name": description.backend_name,
        "versions": description.versions,
        "peak_lookup_key": description.peak_lookup_key,
    }


def contention_section(measurements: Measurements) -> dict[str, Any]:
    """Return the use of host and device by other processes, and clock throttling."""
    return {
        "other_processes_cpu_fraction": measurements.other_processes_cpu_fraction,
        "cpu_throttled_fraction": measurements.cpu_throttled_fraction,
        "device_processes": measurements.device_processes,
        "device_condition": measurements.device_condition,
    }


def losses_section(measurements: Measurements, history: TrainingHistory) -> dict[str, Any]:
    """Return the training losses and gradient norms of every step."""
    return {
        "unit": "nats/token",
        "train": list(history.losses),
        "gradient_norm": list(history.gradient_norms),
        "learning_rate": list(history.learning_rates),
        "skipped_steps": measurements.skipped_steps,
        "nonfinite": history.nonfinite,
    }


def eval_section(config: Config, history: TrainingHistory) -> dict[str, Any]:
    """Return the evaluations on held-out data."""
    return {
        "unit": "nats/token",
        "sequences": config.workload.eval_sequences if config.workload.eval_every else 0,
        "points": history.evaluations,
        "final": history.evaluations[-1]["loss"] if history.evaluations else None,
    }


def parallel_section(
    description: RunDescription, measurements: Measurements, times: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return a distributed run's layout, ranks, stragglers and scaling efficiency; None for any other run."""
    if measurements.ranks is None:
        return None
    baseline, speed = description.scaling_baseline, times["tokens_per_second"]
    scaling = None if baseline is None else baseline.efficiency(description.world_size, speed)
    layout, work = description.layout, description.config.workload
    described = describe_ranks(measurements.ranks)
    micro_batches = work.global_batch_size // (layout.shares * work.micro_batch_size)
    virtual_stages = description.config.parallel.pipeline_virtual_stages
    bubble = pipeline_bubble(described["ranks"], layout.pipeline, virtual_stages, micro_batches)
    return {"layout": asdict(layout), **described, "bubble": bubble, "scaling": scaling}


def profile_section(found: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the profile of a step, with its position under the roofline of the record's measured peak."""
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


def _untimed(intervals: Sequence[TimedInterval]) -> dict[str, Any]:
    return {
        "steps": sum(interval.steps for interval in intervals),
        "seconds": math.fsum(interval.seconds for interval in intervals),
    }


def timing_section(config: Config, measurements: Measurements, history: TrainingHistory) -> dict[str, Any]:
    """Return the timing; the headline numbers come from the measured intervals alone."""
    phases: dict[str, list[TimedInterval]] = {phase: [] for phase in PHASES}
    for phase, interval in history.intervals:
        phases[phase].append(interval)
    measured = phases["measured"]
    steps = sum(interval.steps for interval in measured)
    seconds = math.fsum(interval.seconds for interval in measured)
    waited = math.fsum(interval.data_wait_seconds for interval in measured)
    tokens_per_step = config.workload.global_batch_size * config.workload.seq_len
    return {
        "clock": "host, between two synchronizations",
        "step_seconds_method": measurements.step_seconds_method,
        "setup_seconds": measurements.setup_seconds,
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
        "resumed": _untimed(phases["resumed"]),
        "saving": _untimed(phases["saving"]),
        "evaluation_seconds": history.evaluation_seconds,
        "checkpoint_seconds": history.checkpoint_seconds,
        "checkpoint_staging_seconds": history.checkpoint_staging_seconds,
        "checkpoint_writing_seconds": history.checkpoint_writing_seconds,
        "training_seconds": history.training_seconds,
        "intervals": [
            {
                "first_step": interval.first_step,
                "last_step": interval.last_step,
                "seconds": interval.seconds,
                "data_wait_seconds": interval.data_wait_seconds,
                "device_seconds": interval.device_seconds,
                "raw_seconds": interval.raw_seconds,
                "gap_seconds": interval.gap_seconds,
                "idle_seconds": interval.idle_seconds,
            }
            for interval in measured
        ],
        "step_seconds": [value for interval in measured for value in interval.step_seconds],
    }


def target_section(config: Config, history: TrainingHistory) -> dict[str, Any] | None:
    """Return the step and time at which the target loss was reached, or None without a target."""
    if config.target_loss is None:
        return None
    return {
        "loss": config.target_loss,
        "reached": history.target_step is not None,
        "step": history.target_step,
        # Of steps alone, including the first and the warm-up; without evaluations and checkpoints.
        "training_seconds": history.target_training_seconds,
        "wall_seconds": history.target_wall_seconds,
    }
