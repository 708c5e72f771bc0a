"""`python -m harness torchrun`: PyTorch's launcher with the run's own exit code.

torchrun itself ends with 1 after any failure, and a scheduler decides by the exit code whether to start a run again.
This verb only puts `-m harness` between torchrun's options and the run's settings, and maps the exit codes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
from collections.abc import Callable, Mapping

from harness import environment, log
from harness.addresses import LOOPBACK, check_loopback, resolvable_host, wait_for_answer
from harness.commands.arguments import Parser
from harness.errors import ConfigError, ExitCode, UserError
from harness.signals import STOP_SIGNALS, stop_signals
from harness.text import shortened

SHUTDOWN_TIMEOUT_SECONDS = 600
STORE_TIMEOUT_SECONDS = 600
# torchrun's own, of an endpoint without one.
C10D_PORT = 29400
_TORCH_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"


def build_parser() -> Parser:
    """Return the parser of the verb, which leaves torchrun's options to torchrun."""
    return Parser(
        "torchrun",
        "Launches the processes of one run with torchrun, and ends with the run's own exit code; torchrun itself ends "
        "with 1 after any failure. The options are torchrun's, each in one word: --standalone, --nproc-per-node=8, "
        "--nnodes=4, --rdzv-backend=c10d, --rdzv-endpoint=HOST:PORT, --node-rank=0, --max-restarts=3, ... The settings "
        "are those of a run.",
        "as of a run; after a signal to stop 128 and its number, once all processes have saved and ended",
        usage="%(prog)s [--option=value ...] [peak] [key=value ...]",
        notes="example:\n  python -m harness torchrun --standalone --nproc-per-node=8 backend=NAME parallel=ddp "
        "experiment=gpt2",
    )


def main(argv: list[str]) -> int:
    """Launch the processes, wait for them, and return the run's exit code."""
    _, rest = build_parser().parse_known_args(argv)
    environment.check_working_directory()
    options = [word for word in rest if word.startswith("-")]
    settings = [word for word in rest if not word.startswith("-")]
    for word in settings[1:] if settings[:1] == ["peak"] else settings:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"torchrun: found {word!r}, expected a setting as key=value, or an option in one word "
                "(--nproc-per-node=8); python -m harness torchrun --help"
            )
    # Imported here, because it imports torch.
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    # The processes report their failures; the launcher would repeat them, at length. And it warns about the number of
    # threads, which the backend sets.
    quiet = ("torch.distributed.run", "torch.distributed.elastic")
    # Each module's logger has a level of its own.
    for name in (*quiet, *logging.root.manager.loggerDict):
        if name.startswith(quiet):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # A save can take longer than torchrun's 30 s after SIGTERM; the scheduler's grace time is the limit.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT_SECONDS))
    try:
        run.run(completed(_parsed([*options, "-m", "harness", *settings], run.parse_args)))
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        if killed := killed_ranks(codes):
            log.error(f"torchrun: killed by a signal: {', '.join(killed)}; for SIGKILL see the host's memory (dmesg)")
        return code_of(codes)
    except DistError as error:
        # With --master-addr the launchers open the store themselves, which no rendezvous reports.
        raise UserError(f"torchrun: {_store_failure(error)}") from error
    except RendezvousError as error:
        raise UserError(f"torchrun: {_rendezvous_failure(error)}; see harness/docs/distributed.md") from error
    except ValueError as error:
        raise UserError(f"torchrun: {' '.join(str(error).split())}; python -m harness torchrun --help") from error
    return ExitCode.OK


def _store_failure(error: Exception) -> str:
    """Return why the launchers of a run did not meet at --master-addr."""
    text = " ".join(str(error).split())
    if "EADDRINUSE" in text or "already in use" in text:
        return "--master-port is taken on this host, perhaps by another run; give another one, or --standalone"
    if "timed out" in text.casefold():
        return (
            "not all nodes have joined in time; start the same command on each, with the same --nnodes, --master-addr "
            "and --master-port, and a --node-rank of its own"
        )
    return shortened(text)


def _rendezvous_failure(error: Exception) -> str:
    """Return why the nodes did not meet; torchrun's own errors have no text, or refer to their cause."""
    from torch.distributed.elastic.rendezvous import api

    if isinstance(error, api.RendezvousTimeoutError):
        return (
            "not all nodes have joined in time; start the same command on each, with the same --nnodes, --rdzv-id and "
            "--rdzv-endpoint, or raise --rdzv-conf=join_timeout=SECONDS (600)"
        )
    if isinstance(error, api.RendezvousClosedError):
        return "the run of this --rdzv-id has ended on another node; give all nodes a new --rdzv-id"
    if isinstance(error, api.RendezvousConnectionError) and error.__cause__ is not None:
        return f"--rdzv-endpoint: {str(error.__cause__).strip().splitlines()[0]}"
    return " ".join(str(error).split()) or type(error).__name__


def _parsed(argv: list[str], parse: Callable[[list[str]], argparse.Namespace]) -> argparse.Namespace:
    """Return torchrun's options.

    Raises:
        UserError: torchrun does not know one of them.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return parse(argv)
    except SystemExit as error:
        reason = output.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise UserError(f"torchrun: {reason}; torchrun --help lists its options") from error


def completed(options: argparse.Namespace) -> argparse.Namespace:
    """Return torchrun's options with those that the user left out and that the harness decides.

    Raises:
        ConfigError: the address at which the nodes meet does not resolve, or no launcher answers there.
    """
    from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

    if not hasattr(options, "signals_to_handle"):
        _heed_stop_signals()
    elif options.signals_to_handle == _TORCH_SIGNALS:
        # By default torchrun stops at a SIGHUP also where nohup has it ignored, and dies of Slurm's SIGUSR1.
        options.signals_to_handle = ",".join(number.name for number in (*stop_signals(), signal.SIGQUIT))
    if options.standalone:
        check_loopback()
        # Otherwise the processes meet at this host's name, which need not resolve.
        options.local_addr = options.local_addr or LOOPBACK
    elif options.rdzv_backend == "static" and not options.rdzv_endpoint:
        is_first = options.node_rank == 0
        options.master_addr = resolvable_host(options.master_addr, is_here=is_first, name="--master-addr")
        if not is_first:
            _wait_for_store("--master-addr", options.master_addr, options.master_port, f"node {options.node_rank}")
    elif options.rdzv_endpoint:
        host, port = parse_rendezvous_endpoint(options.rdzv_endpoint, C10D_PORT)
        resolvable_host(host, is_here=False, name="--rdzv-endpoint")
        if options.rdzv_backend == "c10d" and not _may_hold_store(host, options.rdzv_conf):
            _wait_for_store("--rdzv-endpoint", host, port, "this node")
    if not options.standalone and options.nnodes not in ("1", "1:1"):
        log.info(f"torchrun: waits for {options.nnodes} nodes, all started with this --nnodes")
    return options


def _heed_stop_signals() -> None:
    """Have torchrun stop at the signals at which a run does: that of torch 2.9 has no option for it."""
    from torch.distributed.elastic.multiprocessing import api

    heeded, start = stop_signals(), api.PContext.start

    def start_and_heed(self: api.PContext) -> None:
        start(self)
        for number in STOP_SIGNALS:
            signal.signal(number, api._terminate_process_handler if number in heeded else signal.SIG_IGN)

    api.PContext.start = start_and_heed


def _may_hold_store(host: str, rendezvous_config: str) -> bool:
    """Return whether torchrun may open the nodes' store here: by its own rule, or by the user's --rdzv-conf=is_host."""
    from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname

    if "is_host" in rendezvous_config:
        return True
    try:
        return _matches_machine_hostname(host)
    except OSError:
        # This host's own name does not resolve.
        return True


def _wait_for_store(option: str, host: str, port: int, node: str) -> None:
    """Wait for the launcher that holds the nodes' store.

    Raises:
        ConfigError: it does not answer.
    """
    if not wait_for_answer(host, port, who=node, timeout_seconds=STORE_TIMEOUT_SECONDS):
        raise ConfigError(
            f"{option}: no launcher answers at {host}:{port}; check that it was started there with the same port, and "
            "that this host reaches it"
        )


def code_of(codes: Mapping[int, int]) -> int:
    """Return the exit code of a run from those of its failed processes, by rank.

    It is that of the lowest rank that ended by itself, else that of the lowest that a signal killed (a negative code).
    A process that ended with a signal's code was stopped by the launcher, which stops all others as soon as one has
    failed.
    """
    own, killed = _reasons(codes), list(_killed(codes).values())
    stopped = [code for _, code in sorted(codes.items()) if code > 0]
    return [*own, *(128 + number for number in killed), *stopped, 128 - codes[min(codes)]][0]


def killed_ranks(codes: Mapping[int, int]) -> list[str]:
    """Return the ranks that a signal killed, with its name, if no process ended with a code of its own."""
    names = {number.value: number.name for number in signal.Signals}
    killed = {} if _reasons(codes) else _killed(codes)
    return [f"rank {rank} ({names.get(number, f'signal {number}')})" for rank, number in killed.items()]


def _reasons(codes: Mapping[int, int]) -> list[int]:
    """Return the exit codes of processes that ended by themselves, in the order of their ranks."""
    stopped = [128 + number for number in STOP_SIGNALS]
    return [code for _, code in sorted(codes.items()) if code > 0 and code not in stopped]


def _killed(codes: Mapping[int, int]) -> dict[int, int]:
    """Return the signal that killed each rank, but for the SIGTERM of the launcher."""
    return {rank: -code for rank, code in sorted(codes.items()) if code < 0 and -code != signal.SIGTERM}
