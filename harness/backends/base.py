"""The seam: everything that differs from one kind of device to another, and nothing else.

A new accelerator subclasses `Backend` in one file. Modules under backends/ import torch inside methods only, so
that `preflight` can say what is missing on a machine where importing it would fail.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.failures import Failure, classify_common
from harness.backends.host_checks import Problem, installed_version
from harness.backends.sensors import Sensor
from harness.backends.step import NO_SYNC, EventTimer, GradientSync, TrainStep
from harness.config import BackendConfig, Config
from harness.environment import allowed_cores
from harness.errors import BackendUnavailable
from harness.world import World

if TYPE_CHECKING:
    import torch


class Backend(ABC):
    """One kind of device. An object serves one process and one device of it."""

    name: ClassVar[str]
    collective: ClassVar[str | None] = None
    """Name of the torch.distributed backend for this device."""
    collective_variables: ClassVar[Mapping[str, str]] = {}
    """Variables that keep the collective library's own threads from ending a process that has lost a peer: it is to end
    with a record. Set unless the user has."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """Installed packages, besides torch, whose versions belong in the record."""
    environment_prefixes: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the environment variables that can change what this device does."""
    pins_host_memory: ClassVar[bool] = False
    """Whether copies from page-locked host memory overlap with the device's work."""
    fallback_pattern: ClassVar[str | None] = None
    """What the device's libraries write to standard error when they run an operation on the host instead."""
    asynchronous: ClassVar[bool] = True
    """Whether work is queued: if so, a host clock around one step without a synchronise says nothing."""

    devices_share_memory: ClassVar[bool] = False
    """Whether what `memory_bytes` says of one device is there once for all of them on a host."""

    def __init__(self, settings: BackendConfig) -> None:
        self.settings = settings
        self.world = World()

    def join(self, world: World) -> None:
        """Take the place of one of several processes: the device of its number on this host, and its part of the
        host's threads. Called before everything else.
        """
        self.world = world
        self.settings = replace(self.settings, device_index=self.settings.device_index + world.local_rank)

    def threads(self) -> int:
        """Return how many host threads one operation is to use."""
        return self.settings.threads or max(1, allowed_cores() // self.world.local_size)

    def device_threads(self) -> int | None:
        """Return the host threads that a process has where they are the device itself; None for any other device."""
        return self.threads() if self.devices_share_memory else None

    # Before torch is imported

    def preflight(self) -> list[Problem]:
        """Return what is missing, most fundamental first, without importing torch or touching the device."""
        return self._thread_problems()

    # Setting up

    @abstractmethod
    def load(self) -> None:
        """Import the plug-in and open the device.

        Raises:
            BackendUnavailable: with the true reason.
        """

    @abstractmethod
    def device(self) -> torch.device:
        """Return the device, with its index where the kind has several."""

    def apply(self, precision: str) -> None:
        """Set what was asked for: threads and arithmetic modes. What took effect is probed afterwards."""
        import torch

        torch.set_num_threads(self.threads())
        torch.set_float32_matmul_precision("highest")

    def check_work(self, config: Config) -> None:
        """Refuse work that this device would do otherwise than asked for. Called once the device is open.

        Raises:
            BackendUnavailable: naming the settings, and what to set instead.
        """

    def effective_settings(self) -> dict[str, Any]:
        """Return the device's own settings as they really are now, for the record."""
        return {}

    def prepare(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        max_grad_norm: float,
        grad_sync: GradientSync = NO_SYNC,
        skip_nonfinite: bool = False,
    ) -> TrainStep:
        """Return the callable that trains one step. `model(sequences)` returns the mean loss.

        With `skip_nonfinite` a step whose gradient is not finite leaves model and optimizer as they were.
        The loss that the step returns is that of this device's sequences; the loop averages over devices.

        Eager devices share this default; a device that owns the step overrides it.
        """
        from harness.backends.eager import EagerStep

        return EagerStep(model, optimizer, self.device(), precision, max_grad_norm, grad_sync, skip_nonfinite)

    # Running

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has finished everything queued. Asynchronous errors surface here."""

    def event_timer(self) -> EventTimer | None:
        """Return a device-side timer, or None where the device has none."""
        return None

    def reset_peak_memory(self) -> None:
        """Begin a new peak for `memory`, where the device keeps one."""

    def memory(self) -> dict[str, int | None] | None:
        """Return the device's memory figures in bytes, or None where they cannot be had. Unknown is never 0."""
        return None

    def other_processes(self) -> list[str] | None:
        """Return the other processes that use the device, as `name (pid)`; None where that cannot be told."""
        return None

    def clock_state(self) -> dict[str, Any] | None:
        """Return the device's clocks and what holds them down now (`throttle_reasons`, a list), or None."""
        return None

    def telemetry(self) -> Sensor | str:
        """Return what reads the device's power and temperature, or why nothing does. Called once the device is open."""
        return f"backend {self.name} has no sensor"

    def profiler_activities(self) -> list[Any]:
        """Return the torch.profiler.ProfilerActivity of which a trace is made: the host's calls, and the device's work
        where PyTorch's profiler sees it.
        """
        from torch.profiler import ProfilerActivity

        return [ProfilerActivity.CPU]

    def kernels(self) -> Mapping[str, Mapping[str, Any]]:
        """Return this device's tuned kernels: by operation (`attention`, `rotary`, `rms_norm`, `swiglu`,
        `cross_entropy`), then by name.

        Each takes and returns what the model's own function does: `causal_attention`, `rotate`, `rms_norm`, `swiglu`
        and `mean_cross_entropy` in harness/workload/model.py. One with a method `compile` is compiled by it where the
        model's blocks are. Called once torch is imported.
        """
        from harness.backends.kernels import ChunkedCrossEntropy

        return {"cross_entropy": {"chunked": ChunkedCrossEntropy()}}

    def tuned_defaults(self) -> Mapping[str, Any]:
        """Return what track=tuned stands for on this device, by setting: what won in a measurement that is in the
        repository, and the stock choice for the rest.
        """
        return {
            "adamw": "foreach",
            "compile": "no",
            "attention": "stock",
            "rotary": "stock",
            "rms_norm": "stock",
            "swiglu": "stock",
            "cross_entropy": "stock",
            "activation_memory_budget": 1.0,
        }

    def compile_problems(self) -> list[Problem]:
        """Return what torch.compile lacks on this device."""
        return [Problem(f"torch.compile has not been tried on backend {self.name}", "set track.compile=no")]

    # Describing

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the device's facts for the record: at least `kind`, `name`, `index`, `count` of devices of the kind,
        `memory_bytes` and whether it is `emulated`.
        """

    def peak_lookup_key(self) -> str | None:
        """Return the exact name under which a chip catalogue lists this device, or None."""
        return None

    def versions(self) -> dict[str, str | None]:
        """Return the versions of torch and of this backend's packages; None for one that is not installed."""
        return {name: installed_version(name) for name in ("torch", *self.distributions)}

    def classify_error(self, error: BaseException) -> Failure | None:
        """Say what an exception raised while running means, or None if it is not the device's."""
        return classify_common(error)

    def close(self) -> None:
        """Release the device."""

    def unavailable_error(self, problems: Sequence[Problem]) -> BackendUnavailable:
        """Return the one-line error that names every problem and the first remedy."""
        causes = "; ".join(problem.what for problem in problems)
        return BackendUnavailable(
            f"backend {self.name} is not available here: {causes}. First remedy: {problems[0].remedy} "
            f"(python -m harness doctor {self.name} shows all)"
        )

    def _thread_problems(self) -> list[Problem]:
        cores = allowed_cores()
        if self.settings.threads is not None and self.settings.threads > cores:
            return [
                Problem(
                    f"backend.threads is {self.settings.threads}, but the process may use only {cores} cores",
                    f"set backend.threads={cores} or less, or null for all of them",
                )
            ]
        return []
