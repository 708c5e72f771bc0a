"""What track=tuned comes to on a backend: which implementations run, and how the model is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from harness.backends.base import Backend
from harness.config import OPERATIONS, STOCK, TrackConfig
from harness.errors import ConfigError
from harness.training.observer import LoopObserver
from harness.workload.model import Transformer


def resolve_track(track: TrackConfig, backend: Backend, *, sharded: bool) -> TrackConfig:
    """Return the track with the backend's own choice in place of every null.

    Args:
        sharded: whether weights come and go while the model runs, which cannot be compiled.

    Raises:
        ConfigError: a kernel is asked for that the backend does not have.
        BackendUnavailable: torch.compile is asked for, or the backend's choice, and something is missing.
    """
    own = backend.tuned_defaults()
    chosen = {key: value for key, value in own.items() if getattr(track, key) is None}
    if sharded and track.compile is None:
        chosen["compile"] = "no"
    resolved = replace(track, **chosen)
    if resolved.compile == "no":
        if track.activation_memory_budget not in (None, 1.0):
            raise ConfigError(
                f"track.activation_memory_budget: found {track.activation_memory_budget}, but only compiled parts keep "
                "to it, and track.compile is no here; leave it out, or compile"
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


def apply_track(model: Transformer, track: TrackConfig, backend: Backend) -> Compilation:
    """Give a model the kernels of a resolved track and have it compiled, which happens at its first call.

    Returns a counter of what torch.compile does from now on.
    """
    known = backend.kernels()
    chosen = {name: known[name][getattr(track, name)] for name in OPERATIONS if getattr(track, name) != STOCK}
    model.use_kernels(chosen)
    if track.compile != "no":
        import torch._functorch.config as partitioning

        # Of the process, and read when a part is compiled.
        partitioning.activation_memory_budget = track.activation_memory_budget
    if track.compile == "model":
        model.compile(dynamic=False)
    elif track.compile == "blocks":
        for block in (*model.blocks, model.norm):
            block.compile(dynamic=False)
        for kernel in chosen.values():
            compile_kernel = getattr(kernel, "compile", None)
            if compile_kernel is not None:
                compile_kernel()
    return Compilation(track)


class Compilation(LoopObserver):
    """Counts what torch.compile does while a run lasts, and what of it falls into timed blocks, where none belongs."""

    def __init__(self, track: TrackConfig) -> None:
        self._on = track.compile != "no"
        self._graphs_before: int | None = None
        self._graphs_in_window = 0

    def interval_begins(self, phase: str) -> None:
        self._graphs_before = _graphs() if self._on and phase == "measured" else None

    def interval_ended(self) -> None:
        if self._graphs_before is not None:
            self._graphs_in_window += _graphs() - self._graphs_before

    def to_record(self) -> dict[str, Any] | None:
        """Return graphs, graph breaks, seconds, and graphs that were compiled in timed blocks; None if it is off."""
        if not self._on:
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
    """Return a context in which a compiled model runs operation by operation, so that its parts can be watched."""
    import contextlib

    return contextlib.nullcontext() if track.compile == "no" else torch.compiler.set_stance("force_eager")
