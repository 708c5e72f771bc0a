"""The seam: everything that differs from one kind of device to another, and nothing else.

A new accelerator subclasses `Backend` in one file. Modules under backends/ import torch inside methods only, so
that `preflight` can say what is missing on a machine where importing it would fail.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from harness.backends.sensors import Sensor
from harness.config import BackendConfig, Config
from harness.environment import allowed_cores
from harness.errors import BackendUnavailable
from harness.world import World

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Problem:
    """One thing that stands between the user and this backend, and the command or change that mends it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Failure:
    """What an exception from the device means. `status` goes into the record."""

    status: str
    cause: str
    remedy: str
    echo: bool = False
    """Whether it may only tell of what befell another process of the same run."""


class StepOutput(NamedTuple):
    """Scalars that stay on the device until the timed window is over."""

    loss: torch.Tensor
    """Mean cross-entropy over the global batch, in nats per token, before the update."""
    gradient_norm: torch.Tensor
    """Global 2-norm of the gradients before clipping."""


@dataclass(frozen=True)
class GradientExchange:
    """What a training step does for gradients that are added up over several devices, beside calling the model."""

    devices: int = 1
    """How many devices' gradients are added up: each divides its loss by that before the backward pass, so that they
    are of the size that one device would have, which fp16 needs."""
    accumulating: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context in which forward and backward keep their gradients to this device."""
    exchanged: Callable[[], None] = lambda: None
    """To be called when the last backward pass of a step has returned."""
    evaluated: Callable[[], None] = lambda: None
    """To be called after a forward pass that no backward pass follows."""


ALONE = GradientExchange()

PARTS = ("host_to_device", "forward", "backward", "communication", "optimizer")
Part = Callable[[str], AbstractContextManager[None]]
"""Given the name of a part of the step, what it runs within."""


class TrainStep(Protocol):
    """One optimizer step as the device performs it. Devices that compile or own the step bring their own."""

    def __call__(self, micro_batches: Sequence[torch.Tensor], learning_rate: float) -> StepOutput:
        """Train on one global batch: host int64 tensors of shape [micro_batch_size, seq_len + 1]."""
        ...

    def evaluate(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return the mean loss (a device scalar) over host int64 sequences [count, seq_len + 1], no update."""
        ...

    def skipped_steps(self) -> int:
        """Return how many updates a loss scaler has dropped so far. May synchronise."""
        ...

    def watch_parts(self, part: Part | None) -> bool:
        """Run every part of the next steps (PARTS) within what `part` returns for it; None ends that.

        Returns False where the step is one piece, in which no parts can be told from each other.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what the step keeps beside model and optimizer (a loss scale), for a checkpoint: JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        ...


class WholeStep:
    """What a step has to say that is one piece and keeps nothing beside model and optimizer: a TrainStep lacks only
    `__call__` and `evaluate`.
    """

    def skipped_steps(self) -> int:
        return 0

    def watch_parts(self, part: Part | None) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """There is nothing to go on from."""


class EventTimer(Protocol):
    """Device-side time stamps, read after the window. Extra columns beside the host clock, never the headline."""

    def mark(self) -> None:
        """Put one time stamp into the device's queue without waiting."""
        ...

    def intervals_seconds(self) -> list[float]:
        """Return the times between successive marks and forget them. Call after a synchronise."""
        ...


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

    def effective(self) -> dict[str, Any]:
        """Return the device's own settings as they really are now, for the record."""
        return {}

    def prepare(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        gradient_clip_norm: float,
        exchange: GradientExchange = ALONE,
        skip_nonfinite: bool = False,
    ) -> TrainStep:
        """Return the callable that trains one step. `model(sequences)` returns the mean loss.

        With `skip_nonfinite` a step whose gradient is not finite leaves model and optimizer as they were.
        The loss that the step returns is that of this device's sequences; the loop averages over devices.

        Eager devices share this default; a device that owns the step overrides it.
        """
        from harness.backends.eager import EagerStep

        return EagerStep(model, optimizer, self.device(), precision, gradient_clip_norm, exchange, skip_nonfinite)

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

    def condition(self) -> dict[str, Any] | None:
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

    def tuned(self) -> Mapping[str, Any]:
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

    def classify(self, error: BaseException) -> Failure | None:
        """Say what an exception raised while running means, or None if it is not the device's."""
        return classify_common(error)

    def close(self) -> None:
        """Release the device."""

    def refuse(self, problems: Sequence[Problem]) -> BackendUnavailable:
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


def installed_version(distribution: str) -> str | None:
    """Return an installed package's version without importing it, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def torch_build() -> dict[str, str | None]:
    """Return what the installed torch was built for. Keys `version`, `cuda`, `hip`, ...; empty without torch."""
    return version_file("torch", "torch/version.py")


def version_file(distribution: str, file_name: str) -> dict[str, str | None]:
    """Return the names that a package's version.py sets, read without importing it; empty if there is none."""
    try:
        path = metadata.distribution(distribution).locate_file(file_name)
        with open(os.fspath(str(path)), encoding="utf-8") as file:
            text = file.read()
    except (metadata.PackageNotFoundError, OSError):
        return {}
    found = re.findall(r"^(\w+)\s*(?::[^=]+)?=\s*(None|'[^']*'|\"[^\"]*\")\s*$", text, re.MULTILINE)
    return {name.strip("_"): None if value == "None" else value[1:-1] for name, value in found}


def hostile_variable_problems(
    hostile: Mapping[str, tuple[tuple[str, ...], str]], variables: Mapping[str, str] = os.environ
) -> list[Problem]:
    """Return the variables that would make a run something else than it says.

    Args:
        hostile: by name, the values that do no harm, and why the others do.
    """
    return [
        Problem(f"{name}={variables[name]} {why}", f"unset {name}")
        for name, (harmless, why) in hostile.items()
        if variables.get(name, "").strip() not in harmless
    ]


def torch_problems() -> list[Problem]:
    """Return the problem that torch is not installed, if so."""
    if installed_version("torch") is None:
        return [Problem("the package torch is not installed", "pip install torch")]
    return []


OUT_OF_MEMORY_REMEDY = (
    "lower workload.micro_batch_size, then set model.activation_checkpointing=true, then shorten "
    "workload.seq_len or choose a smaller model"
)


PEER_REMEDY = "look for the first error in the other ranks' output, or the rank that is missing"
# PyTorch's own errors of torch.distributed, and gloo's, which come as plain RuntimeErrors.
_COLLECTIVE_FAILURE = re.compile(
    r"^Dist\w*Error: |gloo/|Connection closed by peer|Connection reset by peer|Application timeout caused pair closure"
)


def classify_common(error: BaseException) -> Failure | None:
    """Recognise the failures that look alike on every device."""
    import torch

    text = str(error)
    cause = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(phrase in text for phrase in ("out of memory", "can't allocate memory", "not enough memory"))
    )
    if out_of_memory:
        return Failure("oom", cause, OUT_OF_MEMORY_REMEDY)
    if _COLLECTIVE_FAILURE.search(f"{type(error).__name__}: {text}"):
        return Failure("rank_lost", f"the connection to another process of the run broke: {cause}", PEER_REMEDY, True)
    return None
