"""From what a run measured to its record. Arithmetic on host numbers; nothing here touches a device."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from harness.config import Config, to_dict, workload_id
from harness.record import SCHEMA_VERSION
from harness.training.loop import Progressed
from harness.training.timing import Block

if TYPE_CHECKING:
    from harness.training.run import _Facts


def assemble(
    config: Config,
    *,
    status: str,
    error: str | None,
    facts: _Facts,
    progressed: Progressed | None,
    batch_digest: str,
    step_seconds_method: str,
    backend_name: str,
) -> dict[str, Any]:
    """Return the record; harness/schemas/record.schema.json describes it."""
    done = progressed or Progressed()
    return {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "error": error,
        "workload_id": workload_id(config),
        "digests": {"init": facts.init_digest, "batches": batch_digest if done.steps_done else None},
        "world_size": 1,
        "began_utc": facts.began_utc,
        "ended_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": to_dict(config),
        "model": {"parameters": facts.parameters},
        "data": facts.data,
        "backend": {
            "name": backend_name,
            "versions": facts.versions,
            "peak_lookup_key": facts.peak_lookup_key,
        },
        "device": facts.device,
        "effective": facts.effective,
        "environment": facts.environment,
        "timing": timing(config, done, facts.setup_seconds, step_seconds_method),
        "losses": {
            "unit": "nats/token",
            "train": done.losses,
            "gradient_norm": done.gradient_norms,
            "skipped_steps": facts.skipped_steps,
        },
        "eval": {
            "unit": "nats/token",
            "sequences": config.workload.eval_sequences if config.workload.eval_every else 0,
            "points": done.evaluations,
            "final": done.evaluations[-1]["loss"] if done.evaluations else None,
        },
        "weights": {"final_norms": facts.final_norms},
        "target": target(config, done),
        "memory": facts.memory,
        "contention": {
            "host_other_fraction": facts.host_other_fraction,
            "device_processes": facts.device_processes,
            "device_condition": facts.device_condition,
        },
    }


def timing(config: Config, done: Progressed, setup_seconds: float | None, method: str) -> dict[str, Any]:
    """Return the timing part: the headline numbers come from the measured blocks alone."""
    phases: dict[str, list[Block]] = {"first": [], "warmup": [], "measured": []}
    for phase, block in done.blocks:
        phases[phase].append(block)
    measured = phases["measured"]
    steps = sum(block.steps for block in measured)
    seconds = math.fsum(block.seconds for block in measured)
    waited = math.fsum(block.data_wait_seconds for block in measured)
    tokens_per_step = config.workload.global_batch_size * config.workload.seq_len
    return {
        "clock": "host, between two synchronisations",
        "step_seconds_method": method,
        "setup_seconds": setup_seconds,
        "first_step_seconds": phases["first"][0].seconds if phases["first"] else None,
        "warmup": {
            "steps": sum(block.steps for block in phases["warmup"]),
            "seconds": math.fsum(block.seconds for block in phases["warmup"]),
        },
        "measured_steps": steps,
        "measured_seconds": seconds,
        "tokens_per_step": tokens_per_step,
        "mean_step_seconds": seconds / steps if steps else None,
        "tokens_per_second": steps * tokens_per_step / seconds if steps and seconds > 0 else None,
        "data_wait_seconds": waited,
        "data_wait_fraction": waited / seconds if seconds > 0 else None,
        "evaluation_seconds": done.evaluation_seconds,
        "training_seconds": done.training_seconds,
        "blocks": [
            {
                "first_step": block.first_step,
                "last_step": block.last_step,
                "seconds": block.seconds,
                "data_wait_seconds": block.data_wait_seconds,
                "device_seconds": block.device_seconds,
            }
            for block in measured
        ],
        "step_seconds": [value for block in measured for value in block.step_seconds],
    }


def target(config: Config, done: Progressed) -> dict[str, Any] | None:
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
