"""Addresses of the store at which the processes of a run meet: names that do not resolve, and hosts that do not answer.

PyTorch's own connection heeds no signal while it tries, for minutes, and logs a stack for every attempt.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress

from harness import log
from harness.errors import ConfigError

LOOPBACK = "127.0.0.1"
# A name can be new: a cluster's name server learns the names of pods while they start.
RESOLVE_TIMEOUT_SECONDS = 60.0
QUIET_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 0.5


def check_loopback() -> None:
    """Raise ConfigError if the processes of this host cannot reach each other: PyTorch tries for minutes."""
    # Of a datagram socket, this sends nothing.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((LOOPBACK, 9))
        except OSError as error:
            raise ConfigError(
                f"{LOOPBACK}: cannot be reached: {error.strerror}; start this host's loopback interface: "
                "ip link set lo up"
            ) from error


def resolvable_host(host: str, *, is_here: bool, name: str = "MASTER_ADDR",
                    timeout_seconds: float = RESOLVE_TIMEOUT_SECONDS) -> str:  # fmt: skip
    """Return a host name that resolves: `host`, or the loopback address if `host` does not and is this host's name.

    Args:
        is_here: whether the store is on this host.
        name: the variable or option that names the host, for messages.

    Raises:
        ConfigError: it does not resolve within the limit.
    """
    limit = time.monotonic() + timeout_seconds
    said = False
    while True:
        try:
            socket.getaddrinfo(host, None)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        else:
            return host
        if is_here:
            return LOOPBACK
        if time.monotonic() >= limit:
            raise ConfigError(
                f"{name}: found {host!r}, which does not resolve: {reason}; give a name that this host resolves, or an "
                "IP address"
            )
        if not said:
            log.info(f"{name}: {host!r} does not resolve: {reason}; trying again for {timeout_seconds:g} s")
            said = True
        time.sleep(RETRY_SECONDS)


def wait_for_answer(host: str, port: int, *, who: str, timeout_seconds: float,
                    clock: Callable[[], float] = time.monotonic) -> bool:  # fmt: skip
    """Wait until a program listens at an address, and return whether one does; if it takes long, log it once.

    Args:
        who: the process that waits, for the message.
    """
    began = clock()
    said = False
    while clock() - began < timeout_seconds:
        with suppress(OSError):
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_SECONDS).close()
            return True
        if not said and clock() - began >= QUIET_SECONDS:
            log.info(
                f"{who}: waits for rank 0 at {host}:{port}, where nothing answers yet (limit {timeout_seconds:g} s)"
            )
            said = True
        time.sleep(RETRY_SECONDS)
    return False
