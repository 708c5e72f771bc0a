"""Plan of a run without its devices: what each stage's largest rank would hold, by a rehearsal on fake tensors.

The run's own code builds the model and takes a training step: with PyTorch's fake process group, whose collectives do
nothing, and fake tensors, which have shapes and no memory. So it takes no device, and one rank of thousands is enough.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.analysis.stage_memory import PassMemory, StageMemory, passes_in_flight, round_size
from harness.backends.base import Backend
from harness.backends.step import residual_dtype
from harness.config import Config
from harness.environment import peak_resident_bytes
from harness.errors import RunFailed, UserError
from harness.layout import Layout
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.parallel import ParallelModel, build_sharded, meshed, stages_by_rank, uses_mesh
from harness.training.live_bytes import LiveBytes, storage_bytes
from harness.workload.initialization import build_model, local_tensor
from harness.workload.model import Transformer, recomputes
from harness.workload.optimizer import build_optimizer
from harness.world import World

T = TypeVar("T")
META = torch.device("meta")
# The second one adds to gradients that exist, as all later ones do.
FEW_MICRO_BATCHES = 2


def plan_stages(config: Config, backend: Backend, layout: Layout) -> tuple[list[StageMemory], int]:
    """Return the memory of each stage's largest rank, and the bytes that this took on the host.

    The largest rank is the stage's first, as torch.chunk cuts.

    Args:
        config: of a run that `check_layout` accepts, with track=portable.
        backend: of the host's CPU, whose fake tensors stand for the device's.

    Raises:
        ConfigError: the model cannot be built in this layout.
    """
    # Equal sizes; but fp16's loss scaler reads values, which fake tensors lack.
    rehearsed = replace(config, precision="bf16" if config.precision == "fp16" else config.precision)
    if not _in_rounds(config):
        # From its memory that of the other schedules follows, which need more micro-batches.
        rehearsed = replace(rehearsed, parallel=replace(config.parallel, pipeline_schedule="gpipe"))
    kinds: dict[Any, list[int]] = {}
    for rank, stages in enumerate(stages_by_rank(config, layout.pipeline)):
        kinds.setdefault(_kind(config, layout, rank, stages), []).append(rank)
    count = _rehearsed_micro_batches(config, layout)
    rehearsals = [(rehearsed, backend, layout, stages[0], count) for stages in kinds.values()]
    found: list[StageMemory] = []
    host_bytes = peak_resident_bytes()
    for stages, (memory, own_bytes) in zip(kinds.values(), _in_processes(_rehearse, rehearsals), strict=True):
        found += [_in_place(memory, config, layout, stage) for stage in stages]
        host_bytes += own_bytes
    return sorted(found, key=lambda memory: memory.stage), host_bytes


def _in_rounds(config: Config) -> bool:
    """Return whether passes are ordered so that what is kept differs from rank to rank and stage to stage."""
    return config.parallel.pipeline_virtual_stages > 1 and config.parallel.pipeline_schedule != "gpipe"


def _kind(config: Config, layout: Layout, rank: int, stages: Sequence[range]) -> Any:
    """Return a key that ranks of a pipeline share if they need the same memory for a micro-batch.

    Usually there are four: of the first rank, of the last one, and of two lengths of stages between them; more, where
    blocks recompute or stages are interleaved.
    """
    if _in_rounds(config):
        return rank
    shapes = tuple((len(blocks), sum(recomputes(config.model, number) for number in blocks)) for blocks in stages)
    return shapes, rank == 0, rank == layout.pipeline - 1


def _rehearsed_micro_batches(config: Config, layout: Layout) -> int:
    count = micro_batches_of(config, layout)
    # In the second round gradients of all stages exist, as in later ones.
    return min(count, 2 * round_size(layout.pipeline, count) if _in_rounds(config) else FEW_MICRO_BATCHES)


def _in_processes(act: Callable[..., T], calls: Sequence[Sequence[Any]]) -> list[T]:
    """Return the results of calls, each from a process of its own, all at once.

    PyTorch keeps what it knows of a mesh, so that a process can be one rank only. Forks share the imports.

    Raises:
        UserError: a call raised it.
        RunFailed: a process ended without a result.
    """
    processes = get_context("fork")
    pipes = [processes.Pipe(duplex=False) for _ in calls]
    started = [processes.Process(target=_answer, args=(sender, act, call))
               for call, (_, sender) in zip(calls, pipes, strict=True)]  # fmt: skip
    try:
        for process, (_, sender) in zip(started, pipes, strict=True):
            process.start()
            sender.close()
        return [_result(process, receiver) for process, (receiver, _) in zip(started, pipes, strict=True)]
    finally:
        for process in started:
            if process.pid is not None:
                process.kill()
                process.join()


def _answer(sender: Connection, act: Callable[..., Any], arguments: Sequence[Any]) -> None:
    # The parent's handlers are its own: it ends this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    try:
        sender.send(act(*arguments))
    except UserError as error:
        sender.send(error)


def _result(process: BaseProcess, receiver: Connection) -> Any:
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise RunFailed(f"plan: one of its processes ended with exit code {process.exitcode}; see above") from None
    if isinstance(answer, UserError):
        raise answer
    return answer


def _in_place(rehearsed: StageMemory, config: Config, layout: Layout, stage: int) -> StageMemory:
    """Return the memory of a stage that was rehearsed, in its place of the schedule."""
    ranks, each = layout.pipeline, config.parallel.pipeline_virtual_stages
    micro_batches = micro_batches_of(config, layout)
    schedule, passes = config.parallel.pipeline_schedule, rehearsed.passes
    kept = passes_in_flight(schedule, stage, ranks, each, micro_batches)
    if _in_rounds(config):
        # It was the schedule itself, so that nothing follows from it.
        passes = replace(passes, first_in_flight=kept)
    # PyTorch's pipeline makes one buffer a micro-batch for all that a stage receives: [B, S / parts, W], of the dtype
    # of the residual stream.
    received = 2 * each - (stage == 0) - (stage == ranks - 1)
    buffers = received * (micro_batches - _rehearsed_micro_batches(config, layout))
    if ranks > 1 and (each > 1 or schedule == "zero_bubble"):
        # And holds what it has sent, as much, until the end of the step, unless each rank has one stage.
        buffers += received * micro_batches
    size = (residual_dtype(config.precision) or torch.float32).itemsize
    size *= config.workload.micro_batch_size * config.model.hidden_size
    size *= config.workload.seq_len // (layout.context * layout.tensor)
    return replace(
        rehearsed,
        stage=stage,
        passes=passes,
        in_flight=kept,
        in_flight_later=min(kept, micro_batches - 1) if ranks > 1 else kept,
        buffer_bytes=buffers * size,
    )


def micro_batches_of(config: Config, layout: Layout) -> int:
    """Return the number of micro-batches of a step on one device."""
    return config.workload.global_batch_size // layout.shares // config.workload.micro_batch_size


@contextmanager
def _fake_ranks(layout: Layout, rank: int) -> Iterator[Ranks]:
    """Yield the ranks of a run as one of them sees them, without the others."""
    world = World(rank=rank, size=layout.size, is_distributed=layout.size > 1)
    # Importing it registers the backend "fake".
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.size)
    try:
        yield Ranks(world, layout)
    finally:
        dist.destroy_process_group()


def _rehearse(
    config: Config, backend: Backend, layout: Layout, stage: int, micro_batches: int
) -> tuple[StageMemory, int]:
    """Take a training step on fake tensors as a stage's first rank. Return what it took, and what this took here."""
    rank = stage * layout.size // layout.pipeline
    with _fake_ranks(layout, rank) as ranks, warnings.catch_warnings():
        # PyTorch's about itself, in the passes of FSDP and of the exchange of positions.
        warnings.simplefilter("ignore")
        model = _build(config, backend, ranks)
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
            model.to_empty(device=backend.device())
            model.tie_weights()
            return _take_step(config, backend, ranks, model, live, micro_batches), peak_resident_bytes()


def _build(config: Config, backend: Backend, ranks: Ranks) -> Transformer:
    """Return this rank's part of the model on the meta device."""
    if not uses_mesh(config, ranks):
        return build_model(config.model, config.seed, META, residual_dtype=residual_dtype(config.precision))
    # Meshes are made once: later calls return these, whatever the device. There is none of the meta device.
    kind = backend.device().type
    ranks.weight_mesh(kind)
    if ranks.layout.context * ranks.layout.tensor > 1:
        ranks.activation_mesh(kind)
    return build_sharded(config, META, ranks)


def _take_step(
    config: Config, backend: Backend, ranks: Ranks, model: Transformer, live: LiveBytes, micro_batches: int
) -> StageMemory:
    model.use_kernels({"attention": fused_attention})
    if uses_mesh(config, ranks):
        parallel = meshed(config, model, backend, ranks)
    else:
        # DDP adds nothing: its buckets are the gradients.
        parallel = ParallelModel(model, model, dict(model.named_parameters()))
    parameters = list(model.parameters())
    optimizer = build_optimizer(model, config.workload, config.track)
    observer = _StepObserver(model, live, pipelined=ranks.layout.pipeline > 1, whole=_in_rounds(config))
    step = backend.prepare(
        parallel.wrapped,
        optimizer,
        precision=config.precision,
        max_grad_norm=config.workload.max_grad_norm,
        grad_sync=replace(parallel.grad_sync, clip=observer.passes_done),
    )
    work = config.workload
    batch = torch.zeros(work.micro_batch_size, work.seq_len + 1, dtype=torch.int64)
    # The first step makes the optimizer's state, and DTensor learns the shapes of results by operations on tensors of
    # the whole size, which would count as memory.
    step([batch] * micro_batches, work.learning_rate)
    observer.begin()
    step([batch] * micro_batches, work.learning_rate)
    return StageMemory(
        stage=0,
        blocks=len(model.blocks),
        parameters=sum(local_tensor(parameter).numel() for parameter in parameters),
        weight_bytes=storage_bytes(parameters),
        gradient_bytes=observer.gradient_bytes,
        moment_bytes=storage_bytes(value for state in optimizer.state.values() for value in state.values()),
        passes=observer.result(),
        in_flight=1,
        in_flight_later=1,
        buffer_bytes=0,
    )


class _StepObserver:
    """Notes the memory of each section of a step."""

    def __init__(self, model: Transformer, live: LiveBytes, *, pipelined: bool, whole: bool) -> None:
        """
        Args:
            whole: take all passes as one section.
        """
        self._model, self._live, self._pipelined, self._whole = model, live, pipelined, whole
        for stage in model.stages:
            stage.register_forward_pre_hook(self._before_forward, prepend=True)
            stage.register_forward_hook(self._after_forward)
        self.begin()

    def begin(self) -> None:
        """Begin with the next step."""
        self._own = {id(local_tensor(parameter).untyped_storage()) for parameter in self._model.parameters()}
        self._forwards = self._backwards = 0
        self._before = self._activations = self._peak_of_passes = 0
        self._peak_of_first: int | None = None
        self.gradient_bytes = 0
        self._live.reset_peak()

    def result(self) -> PassMemory:
        """Return the memory of the step, at its end."""
        first, rest = self._peak_of_first, self._peak_of_passes
        return PassMemory(
            activations=self._activations // self._forwards,
            first_in_flight=self._forwards if self._pipelined else 1,
            peak_of_first=rest if first is None else first,
            peak_of_next=None if first is None else rest,
            peak_of_update=self._live.peak,
        )

    def passes_done(self, parameters: Sequence[nn.Parameter], _most: float) -> torch.Tensor:
        """Stand in for the clipping of gradients, which needs no memory and would read their values."""
        self._peak_of_passes = self._live.peak
        self._live.reset_peak()
        self.gradient_bytes = storage_bytes(p.grad for p in parameters if p.grad is not None)
        return torch.zeros(())

    def _before_forward(self, _module: nn.Module, _inputs: Any) -> None:
        # Without a pipeline, the first micro-batch's backward pass is over.
        if self._forwards == 1 and not self._pipelined:
            self._first_done()
        self._before = self._live.now - self._gathered_bytes()

    def _after_forward(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self._forwards += 1
        self._activations += self._live.now - self._gathered_bytes() - self._before
        output.register_hook(self._before_backward)

    def _before_backward(self, _gradient: torch.Tensor) -> None:
        self._backwards += 1
        if self._backwards == 2 and self._pipelined and not self._whole:
            self._first_done()

    def _first_done(self) -> None:
        self._peak_of_first = self._live.peak
        self._live.reset_peak()

    def _gathered_bytes(self) -> int:
        """Return the bytes of the weights that FSDP has gathered from other ranks."""
        return storage_bytes(
            parameter for parameter in self._model.parameters()
            if id(local_tensor(parameter).untyped_storage()) not in self._own
        )  # fmt: skip


class _FusedAttention(torch.autograd.Function):
    """Keeps what the fused kernels of devices keep (Dao 2023): operands, output, and the scores' row sums."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output, q.new_empty(q.shape[:3], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(operand) for operand in ctx.saved_tensors[:3])


def fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return fake causal attention, as memory sees it: q [B, H, S, D], k and v [B, K, S, D] -> [B, H, S, D]."""
    dtype = torch.get_autocast_dtype(q.device.type) if torch.is_autocast_enabled(q.device.type) else q.dtype
    return _FusedAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype))
