"""What is checked before anything runs, and reported once per host."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from harness import backends
from harness.backends.base import Backend
from harness.backends.host_checks import Problem
from harness.config import Config
from harness.errors import BackendUnavailable, EndedWithAll, Interrupted, UserError
from harness.world import RankError, World

# How long the processes of a host that say nothing wait for the one that speaks for them.
REPORTER_GRACE_SECONDS = 5.0


@contextmanager
def report_once_per_host() -> Iterator[None]:
    """Have one process of a host say what is wrong with the words that all of them were given."""
    try:
        yield
    except RankError:
        raise
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "").strip() in ("", "0"):
            raise
        # The launcher stops all others as soon as one has gone: the one that says it is to come first.
        with suppress(Interrupted, KeyboardInterrupt):
            time.sleep(REPORTER_GRACE_SECONDS)
        raise EndedWithAll(str(error), error.exit_code) from error


def ready_backend(config: Config, world: World) -> Backend:
    """Return this process's backend, which has said that it can run. Torch is not imported.

    Raises:
        BackendUnavailable: it cannot.
    """
    backend = backends.create(config.backend)
    if world.is_distributed:
        backend.join(world)
    problems = backend.preflight()
    if problems:
        raise _refusal(backend, problems, config, world)
    return backend


def _refusal(backend: Backend, problems: list[Problem], config: Config, world: World) -> UserError:
    """Return the refusal of a backend that is not there, which of the processes of a host one has to say."""
    refusal = backend.unavailable_error(problems)
    if not world.is_distributed:
        return refusal
    if world.local_rank > 0:
        first = backends.create(config.backend)
        first.join(replace(world, local_rank=0))
        if first.preflight() == problems:
            return EndedWithAll(str(refusal), refusal.exit_code)
    return BackendUnavailable(f"rank {world.rank}: {refusal}")


def refuse_missing_backend(config: Config) -> None:
    """Raise BackendUnavailable, before anything is begun, if the backend cannot run here."""
    backend = backends.create(config.backend)
    problems = backend.preflight()
    if problems:
        raise backend.unavailable_error(problems)
