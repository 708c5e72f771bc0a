"""Interface of a backend: everything that differs between kinds of devices, and nothing else.

A new accelerator subclasses `Backend` in one file. Modules under backends/ import torch inside methods only, so that
`preflight` can name what is missing on a machine where the import would fail.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.failures import Failure, classify_common
from harness.backends.host_checks import Problem, installed_version
from harness.backends.sensors import Sensor
from harness.backends.step import NO_SYNC, EventTimer, GradientSync, TrainStep
from harness.config import STOCK_TRACK, BackendConfig, Config
from harness.environment import allowed_cores
from harness.errors import BackendUnavailable
from harness.text import counted
from harness.world import World

if TYPE_CHECKING:
    import torch


class Backend(ABC):
    """One kind of device. An object serves one process and one of its devices."""

    name: ClassVar[str]
    collective: ClassVar[str | None] = None
    """Name of the torch.distributed backend for this device."""
    collective_variables: ClassVar[Mapping[str, str]] = {}
    """Variables that keep the collective library's own threads from killing a process that lost a peer before it has
    written its record. Set unless the user has set them."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """Distributions besides torch whose versions are recorded."""
    environment_prefixes: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the environment variables that can change what this device does."""
    pins_host_memory: ClassVar[bool] = False
    """True if copies from pinned host memory overlap with the device's work."""
    fallback_pattern: ClassVar[str | None] = None
    """Matches the message on standard error of an operation that ran on the host instead of the device."""
    compiler_settings: ClassVar[Mapping[str, bool]] = {}
    """Settings of torch._functorch.config for what torch.compile compiles on this device."""
    asynchronous: ClassVar[bool] = True
    """True if the device queues work, so that the host clock measures it only up to a synchronize."""
    devices_share_memory: ClassVar[bool] = False
    """True if all devices of a host share the `memory_bytes` of one."""

    def __init__(self, settings: BackendConfig) -> None:
        self.settings = settings
        self.world = World()

    def join(self, world: World) -> None:
        """Become one process of several, with the device of its local rank and its share of the host's threads. Called
        before all other methods.
        """
        self.world = world
        self.settings = replace(self.settings, device_index=self.settings.device_index + world.local_rank)

    def threads(self) -> int:
        """Return the number of host threads for one operation."""
        return self.settings.threads or max(1, allowed_cores() // self.world.local_size)

    def device_threads(self) -> int | None:
        """Return the number of host threads if they are the device itself; None for any other device."""
        return self.threads() if self.devices_share_memory else None

    # Before torch is imported

    def preflight(self) -> list[Problem]:
        """Return what is missing, most fundamental first. Neither imports torch nor touches the device."""
        return self._thread_problems()

    # Setting up

    @abstractmethod
    def load(self) -> None:
        """Import the plug-in and open the device.

        Raises:
            BackendUnavailable: it cannot be opened, for the reason in the message.
        """

    @abstractmethod
    def device(self) -> torch.device:
        """Return the device, with its index if there can be several."""

    def apply(self, precision: str) -> None:
        """Set threads and arithmetic modes for a precision. Their effect is probed afterwards.

        Raises:
            BackendUnavailable: the device does not have the precision.
        """
        import torch

        torch.set_num_threads(self.threads())
        torch.set_float32_matmul_precision("highest")

    def check_work(self, config: Config) -> None:
        """Check that the device can do the work as configured. Called once the device is open.

        Raises:
            BackendUnavailable: it cannot; the message names the settings, and those to use instead.
        """

    def effective_settings(self) -> dict[str, Any]:
        """Return the device's own settings, read back, for the record."""
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
        """Return the callable that trains one step. Eager devices share this one; others override it.

        Args:
            model: `model(sequences)` returns the mean loss of host int64 sequences [count, seq_len + 1] on the device.
            skip_nonfinite: leave model and optimizer unchanged in a step whose gradient is not finite.

        The step's loss is the mean over this device's sequences; the loop averages over devices.
        """
        from harness.backends.eager import EagerStep

        return EagerStep(model, optimizer, self.device(), precision, max_grad_norm, grad_sync, skip_nonfinite)

    # Running

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has finished all queued work. Asynchronous errors surface here."""

    def event_timer(self) -> EventTimer | None:
        """Return a device-side timer, or None if the device has none."""
        return None

    def reset_peak_memory(self) -> None:
        """Reset the peaks that `memory` returns, if the device keeps any."""

    def memory(self) -> dict[str, int | None] | None:
        """Return the device's memory figures in bytes, or None. An unknown figure is None, never 0."""
        return None

    def other_processes(self) -> list[str] | None:
        """Return the other processes that use the device, as `name (pid)`; None if unknown."""
        return None

    def clock_state(self) -> dict[str, Any] | None:
        """Return the sensor's reading of the clock now (`Reading.clock_state`), or None if it has no answer."""
        try:
            sensor = self.telemetry()
            if isinstance(sensor, str):
                return None
            with closing(sensor):
                return sensor.read().clock_state()
        except Exception:  # noqa: BLE001 (no error of a vendor's library may cost the run)
            return None

    def telemetry(self) -> Sensor | str:
        """Return a new sensor of the device, or the reason why there is none. Called once the device is open."""
        return f"backend {self.name} has no sensor"

    def profiler_activities(self) -> list[Any]:
        """Return the torch.profiler.ProfilerActivity members to trace: the host's calls, and the device's work if
        PyTorch's profiler supports it.
        """
        from torch.profiler import ProfilerActivity

        return [ProfilerActivity.CPU]

    def kernels(self) -> Mapping[str, Mapping[str, Any]]:
        """Return this device's tuned kernels: by operation (`attention`, `rotary`, `rms_norm`, `swiglu`,
        `cross_entropy`, `gradient_accumulation`), then by name.

        Each has the signature of the model's own function: `causal_attention`, `rotate`, `rms_norm`, `swiglu`,
        `mean_cross_entropy` and `autograd_accumulation` in harness/workload/model.py. If it has a method `compile`,
        that is called where the model's blocks are compiled. Called once torch is imported.
        """
        from harness.backends.kernels import ChunkedCrossEntropy

        return {"cross_entropy": {"chunked": ChunkedCrossEntropy()}}

    def tuned_defaults(self, config: Config) -> Mapping[str, Any]:
        """Return the settings of track=tuned on this device for a run's work: the winners of the measurements in
        harness/docs/tuning.md, or of published ones where it says so, and the stock choice for the rest.
        """
        return STOCK_TRACK

    def compile_problems(self) -> list[Problem]:
        """Return the reasons why torch.compile does not work on this device."""
        return [Problem(f"torch.compile is untested on backend {self.name}", "set track.compile=no")]

    # Describing

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the description of the device for the record: at least `kind`, `name`, `index`, `count` of devices of
        the kind, `memory_bytes` and whether it is `emulated`.
        """

    def peak_lookup_key(self) -> str | None:
        """Return the exact name of this device in the chip catalogue, or None."""
        return None

    def versions(self) -> dict[str, str | None]:
        """Return the versions of torch and of this backend's packages; None for one that is not installed."""
        return {name: installed_version(name) for name in ("torch", *self.distributions)}

    def classify_error(self, error: BaseException) -> Failure | None:
        """Return the failure that an exception means, or None if the device did not cause it."""
        return classify_common(error)

    def close(self) -> None:
        """Release the device."""

    def unavailable_error(self, problems: Sequence[Problem]) -> BackendUnavailable:
        """Return the error of a failed preflight. Its one line names every problem and the first remedy."""
        causes = "; ".join(problem.what for problem in problems)
        return BackendUnavailable(
            f"backend {self.name} is not available here: {causes}. First remedy: {problems[0].remedy} "
            f"(python -m harness doctor {self.name} shows all)"
        )

    def _single_device_problems(self, kind: str) -> list[Problem]:
        if self.settings.device_index == 0:
            return []
        return [
            Problem(
                f"backend.device_index is {self.settings.device_index}, but there is one {kind}",
                "leave backend.device_index=0",
            )
        ]

    def _thread_problems(self) -> list[Problem]:
        cores = allowed_cores()
        allowed = counted(cores, "core")
        if self.settings.threads is not None and self.settings.threads > cores:
            return [
                Problem(
                    f"backend.threads is {self.settings.threads}, but the process may use only {allowed}",
                    f"set backend.threads={cores} or less, or null for all of them",
                )
            ]
        return []
