"""Rank and world size of this process, from torchrun's environment variables. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import ConfigError
from harness.text import shortened

# Variables that torchrun sets, with the smallest value of each.
_NUMBERS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
# How many processes a job launcher started with this one. A batch script itself has none of them.
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
TORCHRUN = "torchrun --nproc-per-node=N -m harness ..."


class RankError(ConfigError):
    """RANK or LOCAL_RANK is impossible; since it differs between processes, each reports its own."""


@dataclass(frozen=True)
class World:
    """Rank and size of this process in its run and on its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this host; it selects the device."""
    local_size: int = 1
    restarts: int = 0
    """Number of times that torchrun has restarted the processes of this run."""
    is_distributed: bool = False
    """True if the run has a process group, even of a single process."""

    @property
    def is_main(self) -> bool:
        """Return whether this process writes the files and reports for all."""
        return self.rank == 0

    def name(self) -> str:
        """Return `rank R of N`."""
        return f"rank {self.rank} of {self.size}"


def from_environment(parallel: str, variables: Mapping[str, str] = os.environ) -> World:
    """Return rank and size of this process from torchrun's variables and `parallel=`.

    Raises:
        ConfigError: they contradict each other, or a variable is missing or impossible.
    """
    if parallel == "single":
        if _whole_number(variables, "WORLD_SIZE", "1") > 1:
            raise ConfigError(
                f"parallel: single trains in one process, but WORLD_SIZE is {variables['WORLD_SIZE']}; "
                "choose parallel=ddp, fsdp or mesh, or run python -m harness without torchrun and "
                "with WORLD_SIZE unset"
            )
        return World()
    missing = [name for name in (*_NUMBERS, *_ADDRESS) if not variables.get(name, "").strip()]
    if missing:
        raise ConfigError(
            f"parallel: {parallel} needs one process per device, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; launch it with {TORCHRUN}"
        )
    values = {name: _whole_number(variables, name) for name in _NUMBERS}
    for name, minimum in _NUMBERS.items():
        if values[name] < minimum:
            raise _wrong(name, f"found {values[name]}, expected at least {minimum}")
    for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("LOCAL_WORLD_SIZE", "WORLD_SIZE")):
        limit = values[size] if name != "LOCAL_WORLD_SIZE" else values[size] + 1
        if values[name] >= limit:
            raise _wrong(name, f"found {values[name]}, expected less than {limit} ({size} is {values[size]})")
    port = _whole_number(variables, "MASTER_PORT")
    if not 0 < port < 1 << 16:
        raise ConfigError(f"MASTER_PORT: found {port}, expected a port from 1 to 65535; choose a free one")
    return World(
        rank=values["RANK"],
        size=values["WORLD_SIZE"],
        local_rank=values["LOCAL_RANK"],
        local_size=values["LOCAL_WORLD_SIZE"],
        restarts=_whole_number(variables, "TORCHELASTIC_RESTART_COUNT", "0"),
        is_distributed=True,
    )


def lone_tasks(variables: Mapping[str, str] = os.environ) -> str | None:
    """Return the caution that a job launcher started several processes, if it did: each trains by itself."""
    for name in _TASKS:
        text = variables.get(name, "")
        if text.isdecimal() and int(text) > 1:
            return (
                f"{name} is {text}, but with parallel=single every task trains the whole work by itself; to train one "
                f"model on all, launch {TORCHRUN} parallel=ddp, once on each host"
            )
    return None


def has_reporter() -> bool:
    """Return whether another process of this host, the one of local rank 0, reports what all of them find alike.

    A launcher's variables that are incomplete or impossible name no such process: one may be left over from another
    program.
    """
    try:
        return from_environment("ddp", os.environ).local_rank > 0
    except ConfigError:
        return False


def _whole_number(variables: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = (variables.get(name) or default or "").strip()
    try:
        return int(text)
    except ValueError:
        raise _wrong(name, f"found {shortened(text)!r}, expected a whole number") from None


def _wrong(name: str, mismatch: str) -> ConfigError:
    kind = RankError if name in ("RANK", "LOCAL_RANK") else ConfigError
    return kind(f"{name}: {mismatch}; launch the run with {TORCHRUN}")
