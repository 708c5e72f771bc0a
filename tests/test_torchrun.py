"""Which exit code a run of several processes has, from those of its processes."""

from __future__ import annotations

import errno
import functools
import signal
import socket

import pytest
from torch.distributed import DistStoreError, run
from torch.distributed.elastic.rendezvous import api

from harness import log
from harness.commands import torchrun
from harness.commands.torchrun import _store_failure, code_of, completed, killed_ranks, main
from harness.errors import ConfigError, UserError
from tests.ranks import free_port


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 5, 1: 5}, 5),
        ({1: 2}, 2),
        # Rank 1 was killed; rank 0 says that it was lost.
        ({0: 5, 1: -9}, 5),
        # Rank 1 refused its settings; rank 0 had not come so far when it was told to stop.
        ({0: 143, 1: 2}, 2),
        ({0: 143, 1: 143}, 143),
        ({0: 138, 1: 5}, 5),
        ({0: 129, 1: 129}, 129),
        # SIGKILL ended rank 1, and the launcher then sent SIGTERM to rank 0.
        ({0: 143, 1: -9}, 137),
        ({0: -15, 1: -9}, 137),
        ({0: -15, 1: -15}, 143),
        # Nobody is left to say anything.
        ({0: -9, 1: -9}, 137),
        ({1: -11}, 139),
    ],
)
def test_the_one_that_ended_by_itself_knows(codes: dict[int, int], expected: int) -> None:
    assert code_of(codes) == expected


def test_who_was_killed_is_named_if_nobody_else_says_it() -> None:
    assert killed_ranks({0: 143, 1: -9, 2: -11, 3: -15}) == ["rank 1 (SIGKILL)", "rank 2 (SIGSEGV)"]
    assert killed_ranks({0: 5, 1: -9}) == []
    assert killed_ranks({0: 143, 1: 143}) == []


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=r"^torchrun: --master-port is taken on this host, perhaps by another run"):
            main([f"--master-port={port}", "--nproc-per-node=2", "parallel=ddp", "experiment=smoke"])


def test_nodes_that_do_not_meet_are_told_so() -> None:
    error = DistStoreError("Timed out after 601 seconds waiting for clients. 1/2 clients joined.")
    assert _store_failure(error).startswith("not all nodes have joined in time; start the same command on each")


def test_an_option_in_two_words_is_refused() -> None:
    with pytest.raises(UserError, match=r"found '2', expected a setting as key=value, or an option in one word"):
        main(["--nproc-per-node", "2", "parallel=ddp"])


def test_an_option_that_torchrun_lacks_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^torchrun: unrecognized arguments: --nope; "):
        main(["--nope", "parallel=ddp"])


@pytest.mark.skipif(
    not hasattr(run.parse_args(["x"]), "signals_to_handle"), reason="torchrun of torch 2.9 has no --signals-to-handle"
)
@pytest.mark.parametrize("ignored", [None, signal.SIGHUP, signal.SIGUSR1])
def test_the_launcher_handles_the_signals_that_its_caller_does_not_ignore(ignored: signal.Signals | None) -> None:
    before = None if ignored is None else signal.signal(ignored, signal.SIG_IGN)
    try:
        options = completed(run.parse_args(["--standalone", "-m", "harness"]))
    finally:
        if ignored is not None:
            signal.signal(ignored, before)
    expected = {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT"} - ({ignored.name} if ignored else set())
    assert set(options.signals_to_handle.split(",")) == expected
    # The user's own choice stays.
    chosen = run.parse_args(["--standalone", "-m", "harness"])
    chosen.signals_to_handle = "SIGTERM"
    assert completed(chosen).signals_to_handle == "SIGTERM"


def test_one_host_needs_no_name() -> None:
    assert completed(run.parse_args(["--standalone", "-m", "harness"])).local_addr == "127.0.0.1"
    own = completed(run.parse_args(["--standalone", "--local-addr=127.0.0.2", "-m", "harness"]))
    assert own.local_addr == "127.0.0.2"


def test_a_host_whose_loopback_interface_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a network namespace in which nobody has started it."""

    def connect(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("harness.addresses.socket.socket.connect", connect)
    with pytest.raises(
        ConfigError, match=r"^127\.0\.0\.1: cannot be reached: Network is .*; start .*ip link set lo up"
    ):
        completed(run.parse_args(["--standalone", "-m", "harness"]))


def test_the_first_node_need_not_resolve_its_own_name_and_the_others_say_what_they_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = ["--nnodes=2", "--master-addr=nowhere.invalid", "--master-port=29500", "-m", "harness"]
    assert completed(run.parse_args(["--node-rank=0", *nodes])).master_addr == "127.0.0.1"
    monkeypatch.setattr("harness.addresses.time.sleep", lambda seconds: pytest.fail("retried"))
    monkeypatch.setattr(torchrun, "resolvable_host", functools.partial(torchrun.resolvable_host, timeout_seconds=0))
    with pytest.raises(ConfigError, match=r"^--master-addr: found 'nowhere.invalid', which does not resolve"):
        completed(run.parse_args(["--node-rank=1", *nodes]))
    with pytest.raises(ConfigError, match=r"^--rdzv-endpoint: found 'nowhere.invalid', which does not resolve"):
        completed(run.parse_args(["--rdzv-backend=c10d", "--rdzv-endpoint=nowhere.invalid:29500", "-m", "harness"]))


def c10d(endpoint: str) -> list[str]:
    return ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=7", f"--rdzv-endpoint={endpoint}", "-m", "harness"]


def test_nodes_wait_for_the_launcher_that_holds_their_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log.set_up([])
    asked = []

    def nobody_answers(host: str, port: int, **_: object) -> bool:
        asked.append((host, port))
        return False

    monkeypatch.setattr(torchrun, "wait_for_answer", nobody_answers)
    for holder in (c10d("127.0.0.1:29500"), c10d(f"{socket.gethostname()}:29500")):
        completed(run.parse_args(holder))
        assert capsys.readouterr().err == "torchrun: waits for 2 nodes, all started with this --nnodes\n"
    # A service's address, by which the other nodes reach this one.
    completed(run.parse_args(["--rdzv-conf=is_host=1", *c10d("192.0.2.1:29500")]))
    assert asked == [], "this node holds the store"
    with pytest.raises(ConfigError, match=r"^--rdzv-endpoint: no launcher answers at 192\.0\.2\.1:29500; check"):
        completed(run.parse_args(c10d("192.0.2.1:29500")))
    with pytest.raises(ConfigError, match=r"^--rdzv-endpoint: no launcher answers at 192\.0\.2\.1:29400; check"):
        completed(run.parse_args(c10d("192.0.2.1")))
    with pytest.raises(ConfigError, match=r"^--master-addr: no launcher answers at 192\.0\.2\.1:29501; check"):
        completed(
            run.parse_args(["--nnodes=2", "--node-rank=1", "--master-addr=192.0.2.1", "--master-port=29501", "x"])
        )


def test_the_launcher_says_why_the_nodes_did_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's own errors have no text, or one that refers to their cause."""

    def fails(error: Exception) -> str:
        def run_nodes(options: object) -> None:
            raise error

        monkeypatch.setattr(run, "run", run_nodes)
        with pytest.raises(UserError) as failure:
            main(c10d("127.0.0.1:29500")[:-2])
        return str(failure.value)

    assert "not all nodes have joined in time; start the same command on each" in fails(api.RendezvousTimeoutError())
    assert "the run of this --rdzv-id has ended on another node" in fails(api.RendezvousClosedError())
    error = api.RendezvousConnectionError("The connection to the C10d store has failed. See inner exception.")
    error.__cause__ = TimeoutError("Ping failed\nException raised from ping\n")
    assert fails(error) == "torchrun: --rdzv-endpoint: Ping failed; see harness/docs/distributed.md"
    assert fails(api.RendezvousStateError()).startswith("torchrun: RendezvousStateError; ")


def test_a_rendezvous_in_which_a_node_is_missing_ends_with_one_line() -> None:
    options = c10d(f"127.0.0.1:{free_port()}")[:-2]
    with pytest.raises(UserError, match=r"^torchrun: not all nodes have joined in time"):
        main([*options, "--rdzv-conf=join_timeout=1,last_call_timeout=1", "parallel=ddp"])


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--nproc-per-node=8" in capsys.readouterr().out
