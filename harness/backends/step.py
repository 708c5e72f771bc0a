"""One optimizer step as a device performs it, and the device's own time stamps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch


class StepOutput(NamedTuple):
    """Scalars that stay on the device until the timed window is over."""

    loss: torch.Tensor
    """Mean cross-entropy over the global batch, in nats per token, before the update."""
    gradient_norm: torch.Tensor
    """Global 2-norm of the gradients before clipping."""


@dataclass(frozen=True)
class GradientSync:
    """What a training step does for gradients that are added up over several devices, beside calling the model."""

    devices: int = 1
    """How many devices' gradients are added up: each divides its loss by that before the backward pass, so that they
    are of the size that one device would have, which fp16 needs."""
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context in which forward and backward keep their gradients to this device."""
    after_backward: Callable[[], None] = lambda: None
    """To be called when the last backward pass of a step has returned."""
    after_eval: Callable[[], None] = lambda: None
    """To be called after a forward pass that no backward pass follows."""


NO_SYNC = GradientSync()


STEP_PHASES = ("host_to_device", "forward", "backward", "communication", "optimizer")


PhaseContext = Callable[[str], AbstractContextManager[None]]
"""Given the name of a phase of the step, what it runs within."""


class TrainStep(Protocol):
    """One optimizer step as the device performs it. Devices that compile or own the step bring their own."""

    def __call__(self, micro_batches: Sequence[torch.Tensor], learning_rate: float) -> StepOutput:
        """Train on one global batch: host int64 tensors of shape [micro_batch_size, seq_len + 1]."""
        ...

    def evaluate(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return the mean loss (a device scalar) over host int64 sequences [count, seq_len + 1], no update."""
        ...

    def skipped_steps(self) -> int:
        """Return how many updates a loss scaler has dropped so far. May synchronise."""
        ...

    def record_phases(self, phase: PhaseContext | None) -> bool:
        """Run every phase of the next steps (STEP_PHASES) within what `phase` returns for it; None ends that.

        Returns False where the step is one piece, in which no parts can be told from each other.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what the step keeps beside model and optimizer (a loss scale), for a checkpoint: JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        ...


class OpaqueStep:
    """What a step has to say that is one piece and keeps nothing beside model and optimizer: a TrainStep lacks only
    `__call__` and `evaluate`.
    """

    def skipped_steps(self) -> int:
        return 0

    def record_phases(self, phase: PhaseContext | None) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """There is nothing to go on from."""


class EventTimer(Protocol):
    """Device-side time stamps, read after the window. Extra columns beside the host clock, never the headline."""

    def mark(self) -> None:
        """Put one time stamp into the device's queue without waiting."""
        ...

    def intervals_seconds(self) -> list[float]:
        """Return the times between successive marks and forget them. Call after a synchronise."""
        ...


class TorchEvents:
    """An EventTimer over events with `record` and `elapsed_time` (milliseconds)."""

    def __init__(self, make_event: Callable[[], Any]) -> None:
        self._make_event = make_event
        self._marks: list[Any] = []

    def mark(self) -> None:
        event = self._make_event()
        event.record()
        self._marks.append(event)

    def intervals_seconds(self) -> list[float]:
        marks, self._marks = self._marks, []
        return [earlier.elapsed_time(later) / 1000.0 for earlier, later in pairwise(marks)]
