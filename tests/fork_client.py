"""Stand-in for `python` that gets its process from a zygote (see tests/zygote.py), which saves the import of torch.

    python -I -S tests/fork_client.py SOCKET ARGUMENTS...

ARGUMENTS are Python's own. `-m harness ...` becomes a fork of the zygote with this process's streams, folder and
variables; signals are passed on, and the exit code comes back. Any other arguments go to a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

FORKED_MODULES = ("harness", "tests.ranks")
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def send_order(
    connection: socket.socket, argv: list[str], folder: str, env: dict[str, str], streams: list[int]
) -> None:
    """Order `python -m ARGV...` with three streams."""
    order = json.dumps({"argv": argv, "folder": folder, "env": env}).encode()
    socket.send_fds(connection, [len(order).to_bytes(4, "big")], streams)
    connection.sendall(order)


def main() -> None:
    address, *arguments = sys.argv[1:]
    module = arguments[1:] if arguments[:1] == ["-u"] else arguments
    if module[:1] != ["-m"] or module[1] not in FORKED_MODULES:
        os.execv(sys.executable, [sys.executable, *arguments])
    # A signal that comes early waits until it can be passed on.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    send_order(connection, module[1:], os.getcwd(), dict(os.environ), [0, 1, 2])
    answers = connection.makefile("r")
    child = int(answers.readline())

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    code = int(answers.readline())
    if code < 0:
        # End as the process did: by the same signal.
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
