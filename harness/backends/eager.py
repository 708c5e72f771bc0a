"""Training step shared by every eager device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from harness.backends.step import (
    NO_SYNC,
    GradientSync,
    PhaseContext,
    StepOutput,
    autocast_dtype,
    is_long,
    pieces_for_norm,
)


def _nothing() -> None:
    return None


def _unrecorded(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def _in_pieces(parameters: Sequence[torch.nn.Parameter]) -> list[Any]:
    """Return the parameters; in place of one with a long gradient, pieces that PyTorch's clipping takes for some."""
    found: list[Any] = []
    for parameter in parameters:
        if parameter.grad is not None and is_long(parameter.grad):
            found += [_Clipped(piece) for piece in pieces_for_norm([parameter.grad])]
        else:
            found.append(parameter)
    return found


class _Clipped(NamedTuple):
    """A piece of a gradient, as a parameter's to PyTorch's clipping."""

    grad: torch.Tensor


class EagerStep:
    """Forward, backward, clip and update in stock PyTorch, with the same calls on every device.

    With precision fp16 gradients are scaled, and an update whose gradients overflowed is skipped, for which PyTorch's
    scaler waits for the device once a step.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: str,
        max_grad_norm: float,
        grad_sync: GradientSync = NO_SYNC,
        skip_nonfinite: bool = False,
        boundary: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            boundary: submits the operations that a lazy device has recorded. Called after each backward pass and
                after the update.
        """
        self._model = model
        self._optimizer = optimizer
        self._device = device
        self._autocast_dtype = autocast_dtype(precision)
        self._max_grad_norm = max_grad_norm
        self._grad_sync = grad_sync
        self._scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        # The loss scaler skips them itself.
        self._skip_nonfinite = skip_nonfinite and self._scaler is None
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._attempted_steps = 0
        self._phase: PhaseContext = _unrecorded
        self._boundary = boundary or _nothing

    def __call__(self, micro_batches: Sequence[torch.Tensor], learning_rate: float) -> StepOutput:
        self._attempted_steps += 1
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        with self._grad_sync.passes():
            loss = (
                self._through_pipeline(micro_batches) if self._grad_sync.pipeline else self._one_by_one(micro_batches)
            )
        with self._phase("communication"):
            self._grad_sync.after_backward()
        with self._phase("optimizer"):
            norm = self._update()
            self._boundary()
        return StepOutput(loss, norm)

    def _one_by_one(self, micro_batches: Sequence[torch.Tensor]) -> torch.Tensor:
        """Accumulate the gradients of all micro-batches, and return their mean loss."""
        loss = torch.zeros((), device=self._device)
        for number, sequences in enumerate(micro_batches, 1):
            # Several devices sum their gradients once a step, with the last micro-batch.
            with nullcontext() if number == len(micro_batches) else self._grad_sync.no_sync():
                # Micro-batches have equal numbers of tokens, so the mean of their means is the global batch's mean.
                share = self._loss(sequences) / len(micro_batches)
                own = share if self._grad_sync.devices == 1 else share / self._grad_sync.devices
                with self._phase("backward"):
                    (own if self._scaler is None else self._scaler.scale(own)).backward()
                    self._boundary()
            loss += share.detach()
        return loss

    def _through_pipeline(self, micro_batches: Sequence[torch.Tensor]) -> torch.Tensor:
        """The same, in the order of a pipeline's schedule."""
        pipeline, parts = self._grad_sync.pipeline, len(micro_batches) * self._grad_sync.devices
        assert pipeline is not None

        def scale(loss: torch.Tensor) -> torch.Tensor:
            return loss / parts if self._scaler is None else self._scaler.scale(loss / parts)

        # Only the last stage has a loss, but the scaler of each has to have begun.
        scale(torch.zeros((), device=self._device))
        loss = pipeline.train([sequences.to(self._device, non_blocking=True) for sequences in micro_batches], scale)
        self._boundary()
        return loss

    def _update(self) -> torch.Tensor:
        """Clip the gradients, update the weights, and return the gradients' norm before clipping."""
        if self._scaler is not None:
            if self._grad_sync.share_overflow is not None:
                self._grad_sync.share_overflow(self._parameters)
            self._scaler.unscale_(self._optimizer)
        if self._grad_sync.clip is not None:
            norm = self._grad_sync.clip(self._parameters, self._max_grad_norm)
        else:
            norm = torch.nn.utils.clip_grad_norm_(_in_pieces(self._parameters), self._max_grad_norm).detach()
        if self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        elif not (self._skip_nonfinite and not math.isfinite(norm.item())):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def record_phases(self, phase: PhaseContext | None) -> bool:
        if self._grad_sync.pipeline is not None:
            # Its schedule mixes forward and backward passes with communication.
            return False
        self._phase = phase or _unrecorded
        return True

    @torch.no_grad()
    def evaluate(self, sequences: torch.Tensor) -> torch.Tensor:
        self._model.eval()
        if self._grad_sync.pipeline is None:
            loss = self._loss(sequences)
        else:
            loss = self._grad_sync.pipeline.evaluate(sequences.to(self._device))
        self._grad_sync.after_eval()
        self._model.train()
        return loss

    def skipped_steps(self) -> int:
        if self._scaler is None and not self._skip_nonfinite:
            return 0
        state = self._optimizer.state.get(self._parameters[0], {})
        return self._attempted_steps - int(state.get("step", 0))

    def state(self) -> dict[str, Any]:
        scaler = None if self._scaler is None else self._scaler.state_dict()
        return {"attempted_steps": self._attempted_steps, "scaler": scaler}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._attempted_steps = state["attempted_steps"]
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])

    def _loss(self, sequences: torch.Tensor) -> torch.Tensor:
        with self._phase("host_to_device"):
            on_device = sequences.to(self._device, non_blocking=True)
        with self._phase("forward"), self._autocast():
            return self._model(on_device)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._autocast_dtype)
