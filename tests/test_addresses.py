"""Addresses at which processes meet: names that do not resolve, and hosts that do not answer."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from harness import addresses
from harness.addresses import LOOPBACK, resolvable_host, wait_for_answer
from harness.errors import ConfigError, Interrupted
from tests.ranks import free_port


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without a name server: nothing resolves, and no time passes."""

    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    now = [0.0]
    monkeypatch.setattr(addresses.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(addresses.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


def test_a_name_that_resolves_stays() -> None:
    assert resolvable_host("127.0.0.1", is_here=False) == "127.0.0.1"
    assert resolvable_host("::1", is_here=True) == "::1"


@pytest.mark.usefixtures("no_names")
def test_this_hosts_own_name_need_not_resolve() -> None:
    assert resolvable_host("this-host", is_here=True) == LOOPBACK


@pytest.mark.usefixtures("no_names")
def test_another_hosts_name_is_reported_at_once_and_then_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from harness import log

    log.set_up([])
    with pytest.raises(ConfigError, match=r"^MASTER_ADDR: found 'node0', which does not resolve: Name or service not"):
        resolvable_host("node0", is_here=False)
    [line] = capsys.readouterr().err.splitlines()
    assert line == "MASTER_ADDR: 'node0' does not resolve: Name or service not known; trying again for 60 s"


@pytest.mark.parametrize("name", ["a" * 70, "a..b", "no host", "nöde.invalid"])
def test_a_name_that_cannot_be_one(name: str) -> None:
    assert resolvable_host(name, is_here=True) == LOOPBACK
    with pytest.raises(ConfigError, match="does not resolve"):
        resolvable_host(name, is_here=False, timeout_seconds=0)


def test_a_store_that_comes_late_is_found() -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        assert wait_for_answer(*listener.getsockname(), who="rank 1 of 2", timeout_seconds=5)


def test_one_that_never_comes_is_waited_for_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness import log

    log.set_up([])
    now = [0.0]
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    port = free_port()
    assert not wait_for_answer(LOOPBACK, port, who="rank 1 of 2", timeout_seconds=60, clock=lambda: now[0])
    [line] = capsys.readouterr().err.splitlines()
    assert line == (f"rank 1 of 2: waits for rank 0 at 127.0.0.1:{port}, where nothing answers yet (limit 60 s)")


def test_a_signal_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise Interrupted(15)

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(Interrupted):
        wait_for_answer(LOOPBACK, free_port(), who="rank 1 of 2", timeout_seconds=60)
