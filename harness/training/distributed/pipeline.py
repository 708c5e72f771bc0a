"""Pipeline parallelism: the model's blocks in stages, one a rank of the axis, by PyTorch's schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleavedZeroBubble,
)

from harness.workload.model import Transformer


def _zero_bubble(stage: PipelineStage, count: int, **more: Any) -> ScheduleInterleavedZeroBubble:
    return ScheduleInterleavedZeroBubble([stage], count, **more)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    # Gradients of weights are computed when a stage would wait (Qi et al. 2023, ZB-H1).
    "zero_bubble": _zero_bubble,
}
Schedule = PipelineScheduleSingle | PipelineScheduleMulti
Scale = Callable[[torch.Tensor], torch.Tensor]


class Pipeline:
    """Passes micro-batches through the stages, of which this rank has one."""

    def __init__(self, stage: Transformer, mesh: DeviceMesh, device: torch.device, schedule: str, parts: int,
                 dtype: torch.dtype | None) -> None:  # fmt: skip
        """
        Args:
            mesh: of one dimension, the stages in order.
            schedule: a key of SCHEDULES.
            parts: into which context and tensor parallelism cut the positions between two blocks.
            dtype: to which autocast casts operands; None: no autocast.
        """
        self._stage, self._group, self._device, self._schedule = stage, mesh.get_group(), device, schedule
        self._number, self._stages, self._parts = mesh.get_local_rank(), mesh.size(), parts
        # In the forward pass alone, as without a pipeline: a schedule runs the backward pass too.
        stage.forward = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)(stage.forward)
        # PyTorch's schedule and stage are of one number and shape of micro-batches.
        self._built: dict[tuple[bool, int, torch.Size], Schedule] = {}
        self._losses: list[torch.Tensor] = []
        self._scale: Scale = lambda loss: loss

    def train(self, micro_batches: Sequence[torch.Tensor], scale: Scale) -> torch.Tensor:
        """Run forward and backward passes, and return the mean loss on every stage. Collective over the stages.

        Args:
            micro_batches: int64 [micro_batch_size, seq_len + 1], on the device.
            scale: returns what a micro-batch's loss adds to the one whose gradient is taken.
        """
        self._scale = scale
        return self._run(torch.cat(list(micro_batches)), len(micro_batches), train=True)

    def evaluate(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of int64 sequences [count, seq_len + 1] on every stage. Collective over the stages."""
        return self._run(sequences, 1, train=False)

    def _run(self, sequences: torch.Tensor, count: int, *, train: bool) -> torch.Tensor:
        schedule = self._schedule_for(count, sequences.shape, train=train)
        self._losses.clear()
        run = partial(schedule.step if train else schedule.eval, target=sequences, sequences=sequences,
                      return_outputs=False)  # fmt: skip
        try:
            # Only the first stage has inputs from outside.
            run(sequences) if self._stage.is_first else run()
        except RuntimeError as error:
            raise _cause_of(error) from None
        loss = torch.zeros((), device=self._device)
        if self._stage.is_last:
            loss = torch.stack(self._losses).mean()
        # Known on the last stage only; every rank logs it.
        dist.all_reduce(loss, group=self._group)
        return loss

    def _schedule_for(self, count: int, shape: torch.Size, *, train: bool) -> Schedule:
        key = (train, count, shape)
        if key not in self._built:
            # With the shapes given, PyTorch needs no pass of its own to learn them, in which ranks with another shape
            # would not take part.
            hidden = torch.empty(shape[0] // count, (shape[1] - 1) // self._parts, self._stage.config.hidden_size,
                                 device="meta", requires_grad=train)  # fmt: skip
            sequences = torch.empty(shape[0] // count, shape[1], device="meta", dtype=torch.int64)
            stage = PipelineStage(
                self._stage,
                self._number,
                self._stages,
                self._device,
                input_args=sequences if self._stage.is_first else hidden,
                output_args=torch.empty((), device="meta", requires_grad=train) if self._stage.is_last else hidden,
                group=self._group,
            )
            # Other schedules need as many micro-batches as stages, which evaluations and short looks do not have.
            kind = SCHEDULES[self._schedule] if count >= self._stages else ScheduleGPipe
            self._built[key] = kind(stage, count, loss_fn=self._loss, scale_grads=False)
        return self._built[key]

    def _loss(self, output: torch.Tensor, _target: torch.Tensor) -> torch.Tensor:
        self._losses.append(output.detach())
        return self._scale(output)


def _cause_of(error: BaseException) -> BaseException:
    """Return the error in which a stage's pass ended: PyTorch's schedules raise another one in its place, and out of
    memory or a broken connection would look like a bug.
    """
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def stage_blocks(blocks: int, stages: int, head_cost: float) -> list[range]:
    """Return the blocks of each stage, so that the longest stage is as short as possible.

    Args:
        head_cost: of the output projection on the last stage, in blocks.
    """

    def fits(limit: float) -> bool:
        return stages - 1 <= blocks - 1 and _filled(blocks, stages, head_cost, limit) is not None

    lengths = sorted({float(n) for n in range(1, blocks + 1)} | {n + head_cost for n in range(1, blocks + 1)})
    limit = next(length for length in lengths if fits(length))
    counts = _filled(blocks, stages, head_cost, limit)
    assert counts is not None
    return consecutive(counts)


def consecutive(counts: Sequence[int]) -> list[range]:
    """Return ranges of these lengths, one after another."""
    return [range(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]


def _filled(blocks: int, stages: int, head_cost: float, limit: float) -> list[int] | None:
    """Return numbers of blocks of which no stage costs more than `limit`, as even as that allows; None: impossible."""
    last = min(int(limit - head_cost + 1e-9), blocks - (stages - 1), -(-blocks // stages))
    if last < 1:
        return None
    each, more = divmod(blocks - last, max(1, stages - 1))
    if stages == 1:
        return [blocks] if blocks + head_cost <= limit + 1e-9 else None
    if each + bool(more) > limit + 1e-9 or not each:
        return None
    return [each + (number < more) for number in range(stages - 1)] + [last]
