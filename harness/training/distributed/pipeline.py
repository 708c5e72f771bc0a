"""Pipeline parallelism: the model's blocks in stages, one or more a rank of the axis, by PyTorch's schedules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, schedules
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
)

from harness.layout import uneven_rounds
from harness.workload.model import Transformer

Schedule = PipelineScheduleSingle | PipelineScheduleMulti


def _of_one(kind: type[PipelineScheduleSingle]) -> Callable[..., Schedule]:
    return lambda stages, count, **more: kind(stages[0], count, **more)


# By the setting's name, and whether ranks have several stages.
SCHEDULES: dict[tuple[str, bool], Callable[..., Schedule]] = {
    ("gpipe", False): _of_one(ScheduleGPipe),
    ("gpipe", True): ScheduleLoopedBFS,
    ("1f1b", False): _of_one(Schedule1F1B),
    ("1f1b", True): ScheduleInterleaved1F1B,
    # Gradients of weights are computed when a stage would wait (Qi et al. 2023, ZB-H1).
    ("zero_bubble", False): ScheduleInterleavedZeroBubble,
    ("zero_bubble", True): ScheduleInterleavedZeroBubble,
}
Scale = Callable[[torch.Tensor], torch.Tensor]
# After an error in a pass PyTorch logs all of the schedule, in hundreds of lines, which would hide the error's own.
logging.getLogger(schedules.__name__).setLevel(logging.CRITICAL)


class Pipeline:
    """Passes micro-batches through the stages, of which this rank has one or more."""

    def __init__(self, stages: Sequence[Transformer], mesh: DeviceMesh, device: torch.device, schedule: str, parts: int,
                 dtype: torch.dtype | None) -> None:  # fmt: skip
        """
        Args:
            stages: this rank's, in order. They are dealt out in turn: the second one of rank 0 follows the first one of
                the last rank.
            mesh: of one dimension, the ranks of the pipeline in order.
            schedule: the first of a key of SCHEDULES.
            parts: into which context and tensor parallelism cut the positions between two blocks.
            dtype: to which autocast casts operands; None: no autocast.
        """
        self._stages, self._group, self._device, self._schedule = stages, mesh.get_group(), device, schedule
        self._rank, self._ranks, self._parts = mesh.get_local_rank(), mesh.size(), parts
        # In the forward pass alone, as without a pipeline: a schedule runs the backward pass too.
        for stage in stages:
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
            run(sequences) if self._stages[0].is_first else run()
        except RuntimeError as error:
            raise _cause_of(error) from None
        loss = torch.zeros((), device=self._device)
        if self._stages[-1].is_last:
            loss = torch.stack(self._losses).mean()
        # Known on the last stage only; every rank logs it.
        dist.all_reduce(loss, group=self._group)
        return loss

    def _schedule_for(self, count: int, shape: torch.Size, *, train: bool) -> Schedule:
        key = (train, count, shape)
        if key not in self._built:
            # Evaluations and short looks may have numbers of micro-batches that the schedule does not take.
            interleaved = len(self._stages) > 1
            name = "gpipe" if uneven_rounds(self._schedule, self._ranks, interleaved, count) else self._schedule
            stages = [
                self._built_stage(number, stage, shape[0] // count, shape[1], train=train)
                for number, stage in enumerate(self._stages)
            ]
            kind = SCHEDULES[name, interleaved]
            self._built[key] = kind(stages, count, loss_fn=self._loss, scale_grads=False)
        return self._built[key]

    def _built_stage(self, number: int, stage: Transformer, size: int, length: int, *, train: bool) -> PipelineStage:
        # With the shapes given, PyTorch needs no pass of its own to learn them, in which ranks with another shape would
        # not take part.
        hidden = torch.empty(size, (length - 1) // self._parts, stage.config.hidden_size, device="meta",
                             dtype=stage.residual_dtype, requires_grad=train)  # fmt: skip
        sequences = torch.empty(size, length, device="meta", dtype=torch.int64)
        return PipelineStage(
            stage,
            number * self._ranks + self._rank,
            len(self._stages) * self._ranks,
            self._device,
            input_args=sequences if stage.is_first else hidden,
            output_args=torch.empty((), device="meta", requires_grad=train) if stage.is_last else hidden,
            group=self._group,
        )

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
