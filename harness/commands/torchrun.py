"""`python -m harness torchrun`: PyTorch's launcher, which ends with the run's exit code instead of a 1 of its own.

A scheduler tells by the exit code whether to start a run again. Everything else is torchrun's: this only puts
`-m harness` between its options and the run's settings, and reads how its processes ended.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
from collections.abc import Callable, Mapping

from harness.errors import ExitCode, UserError

SECONDS_TO_SAVE = 600
HELP = """\
usage: python -m harness torchrun [--option=value ...] [peak] [key=value ...]

Starts the processes of one run with torchrun and ends with the run's own exit code; torchrun by itself ends with 1
whatever happened. Options are torchrun's, each in one word: --standalone, --nproc-per-node=8, --nnodes=4,
--rdzv-backend=c10d, --rdzv-endpoint=HOST:PORT, --node-rank=0, --max-restarts=3, ... Settings are those of a run.

  python -m harness torchrun --standalone --nproc-per-node=8 parallel=ddp backend=NAME out=eight

exit codes: as of a run; 143 or 130 after SIGTERM or SIGINT, when all processes have saved and ended\
"""


def main(words: list[str]) -> int:
    """Start the processes, wait for them, and return the run's exit code."""
    if {"-h", "--help"} & set(words):
        print(HELP)
        return ExitCode.OK
    options = [word for word in words if word.startswith("-")]
    settings = [word for word in words if not word.startswith("-")]
    for word in settings[1:] if settings[:1] == ["peak"] else settings:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"torchrun: found {word!r}, expected a setting as key=value, or an option in one word "
                "(--nproc-per-node=8); python -m harness torchrun --help"
            )
    # Here, since torch is imported with it.
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    # The processes say what happened; the launcher would say so again, at length. And the number of threads of which it
    # warns is the backend's to set.
    for name in ("torch.distributed.run", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Its own patience after SIGTERM, 30 s, is less than a save may take; the scheduler's grace time is what counts.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    try:
        run.run(_parsed([*options, "-m", "harness", *settings], run.parse_args))
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        return code_of({rank: failure.exitcode for rank, failure in failed.failures.items()})
    except (RendezvousError, ValueError) as error:
        raise UserError(f"torchrun: {' '.join(str(error).split())}; python -m harness torchrun --help") from error
    return ExitCode.OK


def _parsed(words: list[str], parse: Callable[[list[str]], argparse.Namespace]) -> argparse.Namespace:
    """Return torchrun's options, or say in one line which of them it does not know."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(words)
    except SystemExit as error:
        reason = said.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise UserError(f"torchrun: {reason}; torchrun --help lists its options") from error


def code_of(codes: Mapping[int, int]) -> int:
    """Return the exit code of a run from those of the processes that did not end well, by rank.

    The lowest rank that ended by itself knows why. One that a signal killed says nothing, and one that was told to stop
    says no more than that: the launcher tells all others as soon as one has failed.
    """
    own = [codes[rank] for rank in sorted(codes) if codes[rank] > 0]
    reasons = [code for code in own if code not in (ExitCode.SIGINT, ExitCode.SIGTERM)]
    return (reasons or own or [128 - codes[min(codes)]])[0]
