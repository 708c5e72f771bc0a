"""TrainingHistory: losses, timed intervals and evaluations of a training so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from harness.training.timing import TimedInterval


@dataclass
class TrainingHistory:
    """The losses, times and evaluations so far. Lists are in step order and complete up to the last interval."""

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    intervals: list[tuple[str, TimedInterval]] = field(default_factory=list)
    exchanges: list[tuple[int, float | None]] = field(default_factory=list)
    """For each interval, this rank's payload of collectives in bytes, and its exposed communication in seconds."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    nonfinite: list[dict[str, Any]] = field(default_factory=list)
    """Steps whose loss or gradient was not finite, with their samples."""
    target_step: int | None = None
    target_training_seconds: float | None = None
    target_wall_seconds: float | None = None
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0

    @property
    def steps_done(self) -> int:
        return len(self.losses)

    @property
    def training_seconds(self) -> float:
        return sum(interval.seconds for _, interval in self.intervals)

    def to_json(self) -> dict[str, Any]:
        """Return the history as JSON values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainingHistory:
        """Return the history from the values of `to_json`."""
        history = cls(**values)
        history.intervals = [(phase, TimedInterval(**interval)) for phase, interval in values["intervals"]]
        history.exchanges = [(payload, waited) for payload, waited in values["exchanges"]]
        return history
