"""Zygote: forks processes that have imported torch already, since that import is most of the time of a short run.

A zygote is a Python process that has imported the modules of a run and used none of them; each process that a test
starts is a fork of it, with its own variables, folder, arguments and streams. `Zygote.python` is a program to use in
place of `python`: what it runs with `-m harness` is a fork too, and so is what that starts with `sys.executable`
(repeats, torchrun's workers). Tests of the start of an interpreter (which module is imported when) use fresh ones.

`python -m tests.zygote DESCRIPTOR PYTHON [MODULE ...]` is the zygote. It answers on a listening Unix socket: a client
sends its order and three streams (see tests/fork_client.py) and gets the process id and later the exit code, a line
each. A process whose client is gone is killed.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness.text import override_key
from tests.fork_client import send_order

# Imports of a run of several ranks with checkpoints.
IMPORTED = (
    "torch",
    # What torch's optimizers import when the first is made.
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.distributed.tensor",
    "harness.commands.compare",
    "harness.commands.train",
    "matplotlib.backends.backend_svg",
    "harness.report.summary",
    "harness.training.run",
    "harness.training.distributed.parallel",
    "harness.training.checkpoint_manager",
    "harness.backends.cpu",
    "tests.ranks",
)
PROJECT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.01


class Forked:
    """A process forked by a zygote, with the part of subprocess.Popen that tests use. It ends with this object."""

    def __init__(self, connection: socket.socket, streams: Mapping[str, Path]) -> None:
        self._connection = connection
        self._streams = streams
        self.returncode: int | None = None
        self.pid = self._answer()

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def __del__(self) -> None:
        self._connection.close()

    def poll(self) -> int | None:
        return self._await(0.0)

    def wait(self, timeout: float = 60) -> int:
        code = self._await(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a forked process", timeout)
        return code

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait for the end and return standard output and standard error."""
        self.wait(timeout)
        return self.output("out"), self.output("err")

    def output(self, stream: str) -> str:
        return self._streams[stream].read_text(encoding="utf-8", errors="replace")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _await(self, seconds: float) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
            self.returncode = self._answer()
        return self.returncode

    def _answer(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            letter = self._connection.recv(1)
            assert letter, "the zygote has ended"
            line += letter
        return int(line)


def last_values(argv: Sequence[str]) -> list[str]:
    """Return a command line with the last value of each setting."""
    if "--run" in argv:
        # Its words are those of several runs.
        return list(argv)
    words: dict[str, str] = {}
    for place, word in enumerate(argv):
        is_setting = "=" in word and not word.startswith("-")
        words[override_key(word) if is_setting else f"={place}"] = word
    return list(words.values())


class Zygote:
    """A running zygote.

    Args:
        modules: imports in addition to IMPORTED.
        variables: environment at its start, such as the loader's path.
    """

    def __init__(self, modules: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._numbers = itertools.count(1)
        folder = Path(self._scratch.name)
        self._address = str(folder / "socket")
        self.python = str(folder / "python")
        client = [sys.executable, "-I", "-S", str(PROJECT / "tests" / "fork_client.py"), self._address]
        Path(self.python).write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n', encoding="utf-8")
        os.chmod(self.python, 0o700)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            # Clients wait here until the imports are done.
            listener.listen(128)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(listener.fileno()), self.python, *modules],
                cwd=PROJECT,
                # A process that crashes prints where.
                env={
                    **os.environ,
                    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
                    "PYTHONFAULTHANDLER": "1",
                    **(variables or {}),
                },
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )

    def start(self, argv: Sequence[str], folder: Path, env: Mapping[str, str]) -> Forked:
        """Start `python -m ARGV...` in a folder. `env` is the whole environment of the process.

        Of two values of a setting the later one counts, so that a test can change a constant's; the harness itself
        refuses a setting that is given twice.
        """
        argv = last_values(argv)
        # Threads start processes too.
        number = next(self._numbers)
        streams = {name: Path(self._scratch.name) / f"{number}.{name}" for name in ("out", "err")}
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        with open(os.devnull) as nothing, streams["out"].open("a") as out, streams["err"].open("a") as err:
            send_order(connection, list(argv), str(folder), dict(env), [nothing.fileno(), out.fileno(), err.fileno()])
        return Forked(connection, streams)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._scratch.cleanup()


def serve(descriptor: int, python: str, modules: Sequence[str]) -> None:
    for module in (*IMPORTED, *modules):
        importlib.import_module(module)
    # A collection of garbage in a child need not look through what was imported, nor copy its pages.
    gc.collect()
    gc.freeze()
    # Never wait for children: each has its own parent, which ends with it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as listener:
        # Standard input is closed at the end of the tests.
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                attend(connection, python)
            connection.close()


def attend(connection: socket.socket, python: str) -> NoReturn:
    """Start the process that a client orders, tell the client of it, and end with it."""
    head, streams, *_ = socket.recv_fds(connection, 4, 3)
    body = b""
    while len(body) < int.from_bytes(head, "big"):
        body += connection.recv(1 << 16)
    child = os.fork()
    if child == 0:
        connection.close()
        become(json.loads(body), streams, python)
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{child}\n".encode())
    ended, status = 0, 0
    while not ended:
        if select.select([connection], [], [], POLL_SECONDS)[0] and not connection.recv(1):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os._exit(0)
        ended, status = os.waitpid(child, os.WNOHANG)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(order: dict[str, Any], streams: Sequence[int], python: str) -> NoReturn:
    """Run the module of an order as the interpreter would."""
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    # Found by the zygote's own variables.
    tempfile.tempdir = None
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    # Made again: whether a stream can seek is found out when its object is made.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.path[:0] = filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))
    module, *arguments = order["argv"]
    sys.argv = [module, *arguments]
    sys.executable, sys.orig_argv = python, ["python", "-m", *order["argv"]]
    code: Any = 1
    try:
        code = importlib.import_module("harness.__main__" if module == "harness" else module).main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 (the end of a process)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
