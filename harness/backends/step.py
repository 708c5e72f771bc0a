"""Protocols of a training step and of device-side time stamps, and the dtype of each precision."""

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


DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "bf16_weights": "bfloat16"}
"""Name of the torch.dtype of matrix products, by precision."""


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return the dtype to which autocast casts operands; None for fp32, which uses no autocast."""
    import torch

    return None if precision == "fp32" else getattr(torch, DTYPE_NAMES[precision])


def residual_dtype(precision: str) -> torch.dtype | None:
    """Return the dtype of the residual stream; None: that of the weights, which autocast leaves as it is."""
    import torch

    return torch.bfloat16 if precision == "bf16_weights" else None


# Elements of which PyTorch's norm on the CPU is exact to 3e-6, also if most are nearly zero, as in the gradient of an
# embedding: of 2^18 it is then off by 3e-5.
MAX_PIECE = 1 << 14
Clip = Callable[[Sequence[Any], float], "torch.Tensor"]
"""Scales the gradients of parameters so that their 2-norm is at most a number, and returns the norm before."""


def pieces_for_norm(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return views of all elements, of which PyTorch's norm is exact to its rounding.

    On the CPU it adds up one element after another: of ten million that is off by 4e-4 (torch 2.13).
    """
    return [piece for tensor in tensors
            for piece in (tensor.view(-1).split(MAX_PIECE) if is_long(tensor) else (tensor,))]  # fmt: skip


def is_long(tensor: torch.Tensor) -> bool:
    """Return whether PyTorch's norm of a tensor is to be taken in pieces."""
    return tensor.device.type == "cpu" and tensor.numel() > MAX_PIECE and tensor.is_contiguous()


class PipelinePasses(Protocol):
    """Forward and backward passes of a model of which this device has a stage."""

    def train(
        self, micro_batches: Sequence[torch.Tensor], scale: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Return the mean loss of micro-batches on the device, after the backward pass of `scale` of each loss."""
        ...

    def evaluate(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of sequences on the device."""
        ...


@dataclass(frozen=True)
class GradientSync:
    """Hooks of a training step that sums gradients, over micro-batches or several devices."""

    devices: int = 1
    """Number of devices whose gradients are summed. Each divides its loss by it before the backward pass, so that
    gradients have the size that one device would give them, which fp16 needs."""
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context in which forward and backward leave their gradients on this device."""
    after_backward: Callable[[], None] = lambda: None
    """Called after the last backward pass of a step."""
    after_eval: Callable[[], None] = lambda: None
    """Called after a forward pass without a backward pass."""
    pipeline: PipelinePasses | None = None
    """Runs all micro-batches through the stages of a pipeline; None: this device has all of the model."""
    share_overflow: Callable[[Sequence[Any]], None] | None = None
    """Called with the parameters before the loss scaler looks for overflowed gradients: it finds one on all devices if
    there is one on any. None: each device has all gradients."""
    clip: Clip | None = None
    """Clips gradients that are spread over devices; None: each device has them whole."""
    passes: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context of the forward and backward passes of a step's micro-batches."""


NO_SYNC = GradientSync()
STEP_PHASES = ("host_to_device", "forward", "backward", "communication", "optimizer")

PhaseContext = Callable[[str], AbstractContextManager[None]]
"""Returns the context in which the named phase of a step runs."""


class TrainStep(Protocol):
    """One optimizer step. Devices that compile or own the step implement it themselves."""

    def __call__(self, micro_batches: Sequence[torch.Tensor], learning_rate: float) -> StepOutput:
        """Train on one global batch: host int64 tensors of shape [micro_batch_size, seq_len + 1]."""
        ...

    def evaluate(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, a device scalar, over host int64 sequences [count, seq_len + 1], without an update."""
        ...

    def skipped_steps(self) -> int:
        """Return the number of updates that the loss scaler has skipped. May synchronize."""
        ...

    def record_phases(self, phase: PhaseContext | None) -> bool:
        """Run every phase of the next steps (STEP_PHASES) within the context that `phase` returns; None ends that.

        Returns:
            False if the step is opaque, so that its phases cannot be distinguished.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return the state beside model and optimizer (a loss scale) for a checkpoint, as JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of `state`."""
        ...


class OpaqueStep:
    """Base of a TrainStep without phases and without state of its own: it lacks `__call__` and `evaluate` only."""

    def skipped_steps(self) -> int:
        return 0

    def record_phases(self, phase: PhaseContext | None) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """There is no state."""


class EventTimer(Protocol):
    """Device-side time stamps, read after the window. They supplement the host clock, which gives the headline."""

    def mark(self) -> None:
        """Queue one time stamp on the device without waiting."""
        ...

    def intervals_seconds(self) -> list[float]:
        """Return the seconds between successive marks, and clear them. Call after a synchronize."""
        ...


class TorchEvents:
    """An EventTimer of events with `record` and `elapsed_time` (milliseconds)."""

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
