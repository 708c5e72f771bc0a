"""TrainingHistory: losses, timed intervals and evaluations of a training so far."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from harness.config import flatten
from harness.training.timing import TimedInterval


class AxisExchange(NamedTuple):
    """Exchanges of this rank over one axis in some time."""

    payload_bytes: int | None
    """Bytes handed to collectives, before the algorithm's own traffic; None: unknown."""
    exposed_seconds: float | None
    """How long it waited for them with nothing to compute; None: unknown."""


def total_exposed_seconds(exchanges: Iterable[AxisExchange]) -> float | None:
    """Return the sum; None if one is unknown."""
    exposed = [exchange.exposed_seconds for exchange in exchanges]
    return None if None in exposed else math.fsum(seconds for seconds in exposed if seconds is not None)


def _no_numbers() -> array[float]:
    # Eight bytes a step, where a list has 32.
    return array("d")


CURVES = ("losses", "gradient_norms", "learning_rates")


@dataclass
class TrainingHistory:
    """The losses, times and evaluations so far. Lists are in step order and complete up to the last interval."""

    losses: array[float] = field(default_factory=_no_numbers)
    gradient_norms: array[float] = field(default_factory=_no_numbers)
    intervals: list[tuple[str, TimedInterval]] = field(default_factory=list)
    exchanges: list[dict[str, AxisExchange]] = field(default_factory=list)
    """For each interval, what this rank exchanged over each axis of the layout."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    nonfinite: list[dict[str, Any]] = field(default_factory=list)
    """Steps whose loss or gradient was not finite, with their samples."""
    learning_rates: array[float] = field(default_factory=_no_numbers)
    fingerprint: dict[str, Any] | None = None
    """As harness/training/fingerprint.py makes it; None if there is none."""
    conditions: dict[str, Any] | None = None
    """Everything that the times depend on, of the attempt that measured them: track, threads, device, software ..."""
    target_step: int | None = None
    target_training_seconds: float | None = None
    target_wall_seconds: float | None = None
    wall_seconds: float = 0.0
    """Of the loop in all attempts up to the last checkpoint, evaluations and checkpoints included."""
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    """In which training waited for checkpoints."""
    checkpoint_staging_seconds: float = 0.0
    """Of them, those in which asynchronous ones copied weights and optimizer state to the host's memory."""
    checkpoint_writing_seconds: float = 0.0
    """In which asynchronous ones were written while training went on."""

    @property
    def steps_done(self) -> int:
        return len(self.losses)

    @property
    def training_seconds(self) -> float:
        return sum(interval.seconds for _, interval in self.intervals)

    def continue_under(self, conditions: dict[str, Any]) -> list[str]:
        """Leave the intervals so far out of the timing if they were measured under other conditions.

        The repetition of the first step is left out too, since it would show the conditions, not the program.

        Returns:
            the conditions that differ, as "threads was 2, now 1".
        """
        # Conditions before come back from a checkpoint, as JSON.
        now, before = json.loads(json.dumps(flatten(conditions))), self.conditions or {}
        changed = [f"{key} was {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key]]
        if changed and self.intervals:
            self.intervals = [
                ("resumed" if phase == "measured" else phase, interval) for phase, interval in self.intervals
            ]
            if self.fingerprint is not None:
                self.fingerprint["first_step"] = None
        self.conditions = now
        return changed if self.intervals else []

    def to_json(self) -> dict[str, Any]:
        """Return the history as JSON values, for a checkpoint."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in CURVES}}

    @classmethod
    def from_json(cls, values: dict[str, Any], steps: int) -> TrainingHistory:
        """Return the history of the first `steps` steps from the values of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the values are not those of `to_json`, or of another number of steps.
        """
        history = cls(**values)
        history.intervals = [(phase, TimedInterval(**interval)) for phase, interval in values["intervals"]]
        history.exchanges = [
            {axis: AxisExchange(*exchange) for axis, exchange in exchanges.items()} for exchanges in values["exchanges"]
        ]
        for name in CURVES:
            curve = values[name]
            if len(curve) != steps or not all(isinstance(value, float) for value in curve):
                raise ValueError(f"holds no loss, gradient norm and learning rate of each of {steps} steps")
            setattr(history, name, array("d", curve))
        ends = [0, *(interval.last_step for _, interval in history.intervals)]
        if ends[-1] != steps or any(
            interval.first_step != end + 1 or interval.last_step < interval.first_step
            for end, (_, interval) in zip(ends, history.intervals, strict=False)
        ):
            raise ValueError(f"holds no intervals of the steps 1 to {steps}")
        return history
