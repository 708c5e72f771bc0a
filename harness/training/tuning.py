"""Resolution of the track on a backend: which kernels run, and how the model is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from harness.backends.base import Backend
from harness.config import OPERATIONS, STOCK, Config, TrackConfig, unused_operations
from harness.errors import ConfigError
from harness.layout import Layout
from harness.training.observer import LoopObserver
from harness.workload.experts import LearnedExperts
from harness.workload.model import Block, Transformer


def resolve_track(config: Config, backend: Backend, layout: Layout, *, sharded: bool, alone: bool) -> TrackConfig:
    """Return the track with the backend's default in place of every null.

    Args:
        config: operations that its work does not have stay stock.
        sharded: true if weights are spread over ranks: then the model is compiled block by block.
        alone: true if no engine of several processes adds up gradients.

    Raises:
        ConfigError: the backend does not have a requested kernel, or the layout has no use for it.
        BackendUnavailable: the track uses torch.compile, and something that it needs is missing.
    """
    track, defaults = config.track, backend.tuned_defaults(config)
    chosen = {key: value for key, value in defaults.items() if getattr(track, key) is None}
    chosen |= {operation: STOCK for operation in unused_operations(config) if operation in chosen}
    if sharded and chosen.get("compile") == "model":
        chosen["compile"] = "blocks"
    if obstacle := _obstacle_of_chunks(config, layout):
        if track.cross_entropy not in (None, STOCK):
            raise ConfigError(
                f"track.cross_entropy: found {track.cross_entropy}, but {obstacle} has only {STOCK}; leave "
                "track.cross_entropy out"
            )
        chosen["cross_entropy"] = STOCK
    resolved = replace(track, **chosen)
    if resolved.compile == "no":
        if track.activation_memory_budget not in (None, 1.0):
            raise ConfigError(
                f"track.activation_memory_budget: found {track.activation_memory_budget}, but only compiled parts have "
                "one, and track.compile is no; leave it out, or set track.compile"
            )
        resolved = replace(resolved, activation_memory_budget=1.0)
    resolved = _with_accumulation(resolved, config, alone=alone)
    kernels = backend.kernels()
    for operation in OPERATIONS:
        name = getattr(resolved, operation)
        known = (STOCK, *sorted(kernels.get(operation, {})))
        if name not in known:
            raise ConfigError(
                f"track.{operation}: backend {backend.name} has no kernel {name!r}, expected one of: {', '.join(known)}"
            )
    if resolved.compile != "no" and (problems := backend.compile_problems()):
        raise backend.unavailable_error(problems)
    return resolved


def _obstacle_of_chunks(config: Config, layout: Layout) -> str | None:
    """Return what rules out a cross-entropy that computes its gradients in the forward pass; None if nothing does."""
    if layout.tensor > 1:
        # Only PyTorch's own loss can add up over logits that are cut by vocabulary.
        return f"a layout of {layout}"
    if layout.pipeline > 1 and config.parallel.pipeline_schedule == "zero_bubble":
        # It runs the backward pass of the loss twice: for the gradient of the input, and for that of the weight.
        return "parallel.pipeline_schedule=zero_bubble"
    return None


def _with_accumulation(resolved: TrackConfig, config: Config, *, alone: bool) -> TrackConfig:
    """Return the resolved track with stock accumulation of gradients where another is of no use or impossible.

    Raises:
        ConfigError: it is impossible, and asked for.
    """
    obstacle = None
    if not alone:
        obstacle = "under torchrun PyTorch's engine adds up gradients"
    elif resolved.compile == "model":
        obstacle = "track.compile=model compiles the embedding too, whose gradients would be sparse"
    asked = config.track.gradient_accumulation
    if obstacle and asked not in (None, STOCK):
        raise ConfigError(
            f"track.gradient_accumulation: found {asked}, but {obstacle}; leave track.gradient_accumulation out"
        )
    # Of a single micro-batch nothing is added, and copies of the weights would only take memory.
    is_useless = config.workload.micro_batch_size == config.workload.global_batch_size and asked is None
    return replace(resolved, gradient_accumulation=STOCK) if obstacle or is_useless else resolved


def apply_track(
    model: Transformer, track: TrackConfig, backend: Backend, layout: Layout, *, sharded: bool
) -> Compilation:
    """Install the kernels of a resolved track in a model, and set it to be compiled at its first call.

    Args:
        sharded: true if weights are spread over ranks.

    Returns:
        A counter of torch.compile's graphs from now on.
    """
    known = backend.kernels()
    chosen = {name: known[name][getattr(track, name)] for name in OPERATIONS if getattr(track, name) != STOCK}
    if layout.tensor > 1 and "rms_norm" in chosen:
        from harness.training.distributed.tensor import norm_of_part

        chosen["rms_norm"] = norm_of_part(chosen["rms_norm"])
    model.use_kernels(chosen)
    if track.compile != "no":
        _configure_compiler(track, backend, has_meshes=layout.tensor > 1)
    if track.compile == "model":
        model.compile(dynamic=False)
    elif track.compile == "blocks":
        for layer in model.numbered_layers().values():
            for unit in _units(layer, sharded=sharded):
                # Of a part that cannot be one graph, PyTorch would run some or all eagerly, and not always count that.
                unit.forward = torch.compile(unit.forward, dynamic=False, fullgraph=True)  # pyright: ignore
        for kernel in chosen.values():
            compile_kernel = getattr(kernel, "compile", None)
            if compile_kernel is not None:
                compile_kernel()
    return Compilation(track)


def _units(layer: nn.Module, *, sharded: bool) -> list[nn.Module]:
    """Return the parts of a layer that are compiled, each by itself."""
    if not isinstance(layer, Block):
        return [layer]
    # The shapes in these are known only while they run.
    is_fixed = not isinstance(layer.feed_forward, LearnedExperts)
    # Hooks around the parts of a sharded block gather their weights or activations, and have to run.
    if sharded or not is_fixed:
        return [layer.attention, *([layer.feed_forward] if is_fixed else [])]
    return [layer]


def _configure_compiler(track: TrackConfig, backend: Backend, *, has_meshes: bool) -> None:
    """Change settings of the process, which are read when a part is compiled.

    Args:
        has_meshes: true if weights are DTensors where they are used, whose device mesh is an input too.
    """
    import torch._dynamo.config as tracing
    import torch._functorch.config as compiler

    # Blocks are compiled one by one, so that DDP sends gradients early; a whole model has to be cut by its buckets.
    tracing.optimize_ddp = track.compile == "model"
    compiler.activation_memory_budget = track.activation_memory_budget
    for name, value in backend.compiler_settings.items():
        setattr(compiler, name, value)
    # Otherwise every process traces again what has a custom autograd.Function, as our attention.
    compiler.autograd_cache_allow_custom_autograd_functions = True
    if has_meshes:
        # The cache's key holds only the type of a mesh: it would return the program of another layout, with its groups.
        compiler.enable_autograd_cache = False
        if hasattr(compiler, "unsafe_treat_script_objects_as_zero_size"):
            # A mesh holds no activations. From torch 2.13 on a budget below 1 asks for its size.
            compiler.unsafe_treat_script_objects_as_zero_size = True


class Compilation(LoopObserver):
    """Counter of torch.compile's graphs during a run, and of those compiled in the measured window (expected: none)."""

    def __init__(self, track: TrackConfig) -> None:
        self._enabled = track.compile != "no"
        self._graphs_before: int | None = None
        self._graphs_in_window = 0

    def interval_begins(self, phase: str) -> None:
        self._graphs_before = _graphs() if self._enabled and phase == "measured" else None

    def interval_ended(self) -> None:
        if self._graphs_before is not None:
            self._graphs_in_window += _graphs() - self._graphs_before

    def to_record(self) -> dict[str, Any] | None:
        """Return graphs, graph breaks, seconds, and graphs compiled in the measured window; None if it is off."""
        if not self._enabled:
            return None
        from torch._dynamo.utils import calculate_time_spent, counters

        return {
            "graphs": _graphs(),
            "graph_breaks": sum(counters["graph_break"].values()),
            "seconds": calculate_time_spent().get("total_wall_time"),
            "graphs_in_window": self._graphs_in_window,
        }


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def force_eager(track: TrackConfig) -> Any:
    """Return a context in which a compiled model runs eagerly, so that hooks and dispatch modes see its operations."""
    import contextlib

    return contextlib.nullcontext() if track.compile == "no" else torch.compiler.set_stance("force_eager")
