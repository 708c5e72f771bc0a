"""Checks before a run, reported by one process of each host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from harness import backends
from harness.backends.base import Backend
from harness.backends.host_checks import Problem
from harness.config import Config
from harness.errors import BackendUnavailable, EndedWithAll, Interrupted, UserError
from harness.world import RankError, World, has_reporter

# Time that the silent processes of a host leave to the one that reports for them.
REPORTER_GRACE_SECONDS = 5.0


@contextmanager
def report_once_per_host() -> Iterator[None]:
    """Let one process of each host report an error in the command line that all of them share."""
    try:
        yield
    except RankError:
        raise
    except UserError as error:
        if not has_reporter():
            raise
        raise _left_to_reporter(error) from error


def _left_to_reporter(error: UserError) -> UserError:
    """Return the error with which a process ends that leaves the report of `error` to the first one of its host.

    A launcher stops all processes as soon as one has ended, so that the reporting one must end first. If nobody stops
    this process, there may be no other one, and it reports the error itself.
    """
    try:
        time.sleep(REPORTER_GRACE_SECONDS)
    except (Interrupted, KeyboardInterrupt):
        return EndedWithAll(str(error), error.exit_code)
    return error


def ready_backend(config: Config, world: World) -> Backend:
    """Return this process's backend, whose preflight passed. Torch is not imported.

    Raises:
        BackendUnavailable: it cannot run here.
    """
    backend = backends.create(config.backend)
    if world.is_distributed:
        backend.join(world)
    problems = backend.preflight()
    if problems:
        raise _unavailable_error(backend, problems, config, world)
    return backend


def _unavailable_error(backend: Backend, problems: list[Problem], config: Config, world: World) -> UserError:
    """Return the error of a backend that cannot run; of processes with the same problem, only the first reports it."""
    error = backend.unavailable_error(problems)
    if not world.is_distributed:
        return error
    own = BackendUnavailable(f"rank {world.rank}: {error}")
    if world.local_rank > 0:
        first = backends.create(config.backend)
        first.join(replace(world, local_rank=0))
        if first.preflight() == problems:
            return _left_to_reporter(own)
    return own


def check_backend(config: Config) -> Backend:
    """Return the backend; before anything starts, raise BackendUnavailable if it cannot run here."""
    backend = backends.create(config.backend)
    problems = backend.preflight()
    if problems:
        raise backend.unavailable_error(problems)
    return backend
