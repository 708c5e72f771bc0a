"""Resolution of the track on a backend: which kernels run, and how the model is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from harness.backends.base import Backend
from harness.config import OPERATIONS, STOCK, TrackConfig
from harness.errors import ConfigError
from harness.layout import Layout
from harness.training.observer import LoopObserver
from harness.workload.model import Block, Transformer

# Operations on weights and activations that tensor parallelism cuts: PyTorch's own know how to.
_ON_CUT_TENSORS = ("rms_norm", "cross_entropy")


def resolve_track(track: TrackConfig, backend: Backend, layout: Layout, *, sharded: bool) -> TrackConfig:
    """Return the track with the backend's default in place of every null.

    Args:
        sharded: true if weights are spread over ranks: then the model is compiled block by block.

    Raises:
        ConfigError: the backend does not have a requested kernel, or the layout has no use for it.
        BackendUnavailable: the track uses torch.compile, and something that it needs is missing.
    """
    defaults = backend.tuned_defaults()
    chosen = {key: value for key, value in defaults.items() if getattr(track, key) is None}
    if sharded and chosen.get("compile") == "model":
        chosen["compile"] = "blocks"
    # DTensor's collectives and a pipeline's hooks are not compiled.
    cut = {} if layout.shares == layout.size else {"compile": "no"}
    if layout.tensor > 1:
        cut |= dict.fromkeys(_ON_CUT_TENSORS, STOCK)
    for key, only in cut.items():
        if getattr(track, key) not in (None, only):
            raise ConfigError(
                f"track.{key}: found {getattr(track, key)}, but a layout of {layout} has only {only}; leave "
                f"track.{key} out"
            )
        chosen[key] = only
    resolved = replace(track, **chosen)
    if resolved.compile == "no":
        if track.activation_memory_budget not in (None, 1.0):
            raise ConfigError(
                f"track.activation_memory_budget: found {track.activation_memory_budget}, but only compiled parts have "
                "one, and track.compile is no; leave it out, or set track.compile"
            )
        resolved = replace(resolved, activation_memory_budget=1.0)
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


def apply_track(model: Transformer, track: TrackConfig, backend: Backend, *, sharded: bool) -> Compilation:
    """Install the kernels of a resolved track in a model, and set it to be compiled at its first call.

    Args:
        sharded: true if weights are spread over ranks.

    Returns:
        A counter of torch.compile's graphs from now on.
    """
    known = backend.kernels()
    chosen = {name: known[name][getattr(track, name)] for name in OPERATIONS if getattr(track, name) != STOCK}
    model.use_kernels(chosen)
    if track.compile != "no":
        import torch._functorch.config as partitioning

        # A setting of the process, read when a part is compiled.
        partitioning.activation_memory_budget = track.activation_memory_budget
    if track.compile == "model":
        model.compile(dynamic=False)
    elif track.compile == "blocks":
        for layer in model.numbered_layers().values():
            if sharded and isinstance(layer, Block):
                # FSDP gathers and frees their weights in hooks around `forward`, which must run.
                for unit in (layer.attention, layer.feed_forward):
                    unit.forward = torch.compile(unit.forward, dynamic=False)  # pyright: ignore[reportAttributeAccessIssue]
            else:
                layer.compile(dynamic=False)
        for kernel in chosen.values():
            compile_kernel = getattr(kernel, "compile", None)
            if compile_kernel is not None:
                compile_kernel()
    return Compilation(track)


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
