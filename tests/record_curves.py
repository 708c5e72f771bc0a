"""Curves of artificial records: step times with noise, losses, evaluations and weight norms."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.config import Config
from harness.schedule import learning_rate

SETUP_SECONDS = 4.0
EVALUATION_SECONDS = 0.5
# The first step builds kernels: it takes as long as this number of others.
FIRST_STEP = 8


@dataclass(frozen=True)
class Speed:
    """Step time of a device and its noise; see `make_record`."""

    step_seconds: float
    noise: float
    process_noise: float
    data_wait: float


def digest(*parts: Any) -> str:
    """Return a SHA-256 over all parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def batch_digest(config: Config, steps: int) -> str:
    """Return a digest of data, seed, shape and number of the batches."""
    work = config.workload
    return digest("batches", config.seed, config.data, config.model.vocab_size, work.seq_len, work.global_batch_size,
                  work.eval_every, steps)  # fmt: skip


def make_timing(config: Config, steps: int, speed: Speed, chance: random.Random) -> dict[str, Any]:
    """Return the `timing` section of a run that finished a number of steps."""
    work = config.workload
    mean = speed.step_seconds * math.exp(chance.gauss(0, speed.process_noise))
    intervals, step_times = _intervals(config, steps, mean, speed, chance)
    measured = math.fsum(interval["seconds"] for interval in intervals)
    waited = math.fsum(interval["data_wait_seconds"] for interval in intervals)
    tokens = work.global_batch_size * work.seq_len
    warm = max(0, min(steps, work.timing_warmup_steps) - 1)
    first_step = FIRST_STEP * mean if steps else None
    return {
        "clock": "host, between two synchronisations",
        "step_seconds_method": "host",
        "setup_seconds": SETUP_SECONDS,
        "first_step_seconds": first_step,
        "warmup": {"steps": warm, "seconds": warm * mean},
        "measured_steps": len(step_times),
        "measured_seconds": measured,
        "tokens_per_step": tokens,
        "mean_step_seconds": measured / len(step_times) if intervals else None,
        "tokens_per_second": len(step_times) * tokens / measured if intervals else None,
        "data_wait_seconds": waited,
        "data_wait_fraction": waited / measured if intervals else None,
        "evaluation_seconds": 0.0,
        "training_seconds": (first_step or 0.0) + warm * mean + measured,
        "intervals": intervals,
        "step_seconds": step_times,
    }


def _intervals(config: Config, steps: int, mean: float, speed: Speed,
            chance: random.Random) -> tuple[list[dict[str, Any]], list[float]]:  # fmt: skip
    work = config.workload
    intervals, step_times = [], []
    for first in range(work.timing_warmup_steps + 1, steps + 1, work.interval_steps):
        last = min(first + work.interval_steps - 1, steps)
        pace = mean * math.exp(chance.gauss(0, speed.noise))
        times = [pace * math.exp(chance.gauss(0, speed.noise)) for _ in range(first, last + 1)]
        seconds = math.fsum(times)
        intervals.append(
            {
                "first_step": first,
                "last_step": last,
                "seconds": seconds,
                "data_wait_seconds": speed.data_wait * seconds * chance.uniform(0.5, 1.5),
                "device_seconds": None,
                "raw_seconds": seconds * (1 + 1e-6),
                "gap_seconds": 2e-4,
            }
        )
        step_times += times
    return intervals, step_times


class LossCurve:
    """Losses from the entropy of a uniform guess to a floor, the same on every device except for rounding."""

    FLOOR = 3.2

    def __init__(self, config: Config, rounding: float, chance: random.Random) -> None:
        self._config, self._rounding, self._chance = config, rounding, chance
        # What the batches decide, and so all devices share.
        work = random.Random(f"{config.seed} {config.workload.global_batch_size}")
        self._wobble = [1 + work.gauss(0, 0.006) for _ in range(config.workload.steps)]
        self._wobble[0] = 1.0
        self.last_step = self._stop()

    def expected(self, step: int) -> float:
        """Return the loss after a number of updates, without noise, nats per token."""
        start = math.log(self._config.model.vocab_size)
        pace = 30 * math.sqrt(6e-4 / self._config.workload.learning_rate)
        return self.FLOOR + (start - self.FLOOR) * (0.75 * math.exp(-step / pace) + 0.25 / (1 + step / pace))

    def losses(self, steps: int) -> dict[str, Any]:
        """Return the `losses` section."""
        train, norms = [], []
        for step, wobble in enumerate(self._wobble[:steps]):
            train.append(self.expected(step) * wobble * self._rounded(step))
            norms.append((0.6 + 2.4 * math.exp(-step / 15)) * wobble**8 * self._rounded(step))
        rates = [learning_rate(step, self._config.workload) for step in range(1, steps + 1)]
        return {
            "unit": "nats/token",
            "train": train,
            "gradient_norm": norms,
            "learning_rate": rates,
            "skipped_steps": 0,
        }

    def points(self, steps: int, timing: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the evaluations up to a step, each with the training time until then."""
        start = (timing["first_step_seconds"] or 0.0) + timing["warmup"]["seconds"]
        seconds = list(itertools.accumulate(timing["step_seconds"], initial=start))
        warmup = self._config.workload.timing_warmup_steps
        return [
            {
                "step": step,
                "loss": self._held_out(step) * self._rounded(step),
                "training_seconds": seconds[max(0, step - warmup)],
                "batches": batch_digest(self._config, step),
            }
            for step in self._evaluated()
            if step <= steps
        ]

    def target(self, points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """Return the `target` section."""
        loss = self._config.target_loss
        if loss is None:
            return None
        for number, point in enumerate(points, 1):
            if point["loss"] <= loss:
                seconds = point["training_seconds"]
                return {"loss": loss, "reached": True, "step": point["step"], "training_seconds": seconds,
                        "wall_seconds": seconds + number * EVALUATION_SECONDS}  # fmt: skip
        return {"loss": loss, "reached": False, "step": None, "training_seconds": None, "wall_seconds": None}

    def norms(self) -> dict[str, float]:
        """Return the final norms of a few parameters."""
        names = ["embedding.weight", "norm.weight"]
        for layer in range(self._config.model.num_hidden_layers):
            names += [f"blocks.{layer}.attention.qkv.weight", f"blocks.{layer}.feed_forward.up.weight"]
        return {name: (20 + len(name)) * self._rounded(self.last_step) for name in names}

    def fingerprint(self) -> dict[str, Any]:
        """Return the `fingerprint` section: gradients that all devices share, except for rounding."""
        names = [*self.norms()][:4]
        step = {"loss": self.expected(0), "gradient_norm": 3.0}
        update = {"weight_error_ulps": 0.6, "weight": names[0], "moment_error": 7e-8, "moment": names[0]}
        reduced = self._config.precision != "fp32"
        distances = {
            "gradients": {name: 0.004 * (1 + self._chance.gauss(0, 0.02)) for name in names},
            "activations": [0.004 * (1 + self._chance.gauss(0, 0.02)) for _ in range(3)],
        }
        return {
            "sequences": 4,
            "fp32": {
                **step,
                "gradients": {name: self._sketch(name, 1e-7) for name in names},
                "activations": [self._sketch(f"block {index}", 1e-7) for index in range(3)],
            },
            "distances_to_fp32": distances if reduced else None,
            "short_training": {
                "fp32": self._short_training(1e-7, update),
                # As far from float32 as a learning rate of 0.002 has it.
                "own": self._short_training(2e-5, update) if reduced else None,
            },
            "first_step": {
                **step,
                "gradients": {name: self._sketch(name, 1e-3 if reduced else 1e-7) for name in names},
                "update": dict(update),
            },
            "repeated_step": {**step, "distance": 0.0, "gradient": names[0], "update": dict(update)},
            "optimizer_steps": [self.last_step, self.last_step],
            "seconds": 1.5,
        }

    def _short_training(self, rounding: float, update: dict[str, Any]) -> dict[str, Any]:
        losses = [self.expected(step) * (1 + self._chance.gauss(0, rounding)) for step in range(10)]
        norms = [3.0 * (1 + self._chance.gauss(0, 10 * rounding)) for _ in range(10)]
        return {"losses": losses, "gradient_norms": norms, "update": dict(update)}

    def _sketch(self, name: str, rounding: float) -> dict[str, Any]:
        shared = random.Random(f"{self._config.seed} {name}")
        values = [shared.gauss(0, 1) + self._chance.gauss(0, rounding) for _ in range(16)]
        return {"norm": 1.0, "projections": base64.b64encode(struct.pack("<16f", *values)).decode()}

    def _rounded(self, step: int) -> float:
        return 1 + self._chance.gauss(0, self._rounding * (1 + 9 * step / self._config.workload.steps))

    def _held_out(self, step: int) -> float:
        return 1.01 * self.expected(step)

    def _evaluated(self) -> list[int]:
        work = self._config.workload
        every = range(work.eval_every, work.steps + 1, work.eval_every) if work.eval_every else ()
        return sorted({*every, work.steps}) if every else []

    def _stop(self) -> int:
        target = self._config.target_loss
        for step in self._evaluated() if target is not None else ():
            # Well below the target, so that rounding does not decide.
            if target is not None and self._held_out(step) * 1.001 <= target:
                return step
        return self._config.workload.steps
