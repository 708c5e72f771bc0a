"""Zygote: forks processes that have imported torch already, since that import is most of the time of a short run.

A zygote is a Python process that has imported the modules of a run and used none of them; each process that a test
starts is a fork of it, with its own variables, folder, arguments and streams. Tests of the start of an interpreter
(which module is imported when) use fresh interpreters instead.

`python -m tests.zygote [MODULE ...]` is the zygote; it reads one JSON line for each process to start.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Imports of a run of several ranks with checkpoints.
IMPORTED = (
    "torch",
    # What torch's optimizers import when the first is made.
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "harness.commands.train",
    "harness.report.summary",
    "harness.training.run",
    "harness.training.distributed.parallel",
    "harness.training.checkpoint_manager",
    "harness.backends.cpu",
    "tests.ranks",
)
PROJECT = Path(__file__).resolve().parent.parent


class Forked:
    """A process forked by a zygote, with the part of subprocess.Popen that tests use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.returncode: int | None = None
        self.pid = int(self._await("pid", 30))

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def poll(self) -> int | None:
        if self.returncode is None and (self._folder / "code").exists():
            self.returncode = int((self._folder / "code").read_text())
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        limit = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait for the end and return standard output and standard error."""
        self.wait(timeout)
        return self.output("out"), self.output("err")

    def output(self, stream: str) -> str:
        file = self._folder / stream
        # A process that was killed at once may not have opened it.
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _await(self, name: str, seconds: float) -> str:
        limit = time.monotonic() + seconds
        while not (self._folder / name).exists():
            if time.monotonic() > limit:
                raise TimeoutError(f"the zygote wrote no {name}")
            time.sleep(0.005)
        return (self._folder / name).read_text()


class Zygote:
    """A running zygote.

    Args:
        modules: imports in addition to IMPORTED.
        variables: environment at its start, such as the loader's path.
    """

    def __init__(self, modules: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", *modules],
            cwd=PROJECT,
            env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **(variables or {})},
            stdin=subprocess.PIPE,
            text=True,
        )

    def start(self, argv: Sequence[str], folder: Path, env: Mapping[str, str]) -> Forked:
        """Start `python -m ARGV...` in a folder. `env` is the whole environment of the process."""
        self._count += 1
        own = Path(self._scratch.name) / str(self._count)
        own.mkdir()
        order = {"argv": list(argv), "folder": str(folder), "env": dict(env), "own": str(own)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Forked(own)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._scratch.cleanup()


def serve(modules: Sequence[str]) -> None:
    for module in (*IMPORTED, *modules):
        importlib.import_module(module)
    # Never wait for children: each has its own parent, which ends with it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            wait_for(order)


def wait_for(order: dict[str, Any]) -> None:
    """Start one process, and write its process id and exit code."""
    own = Path(order["own"])
    pid = os.fork()
    if pid == 0:
        become(order, own)
    write(own / "pid", str(pid))
    _, status = os.waitpid(pid, 0)
    write(own / "code", str(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def become(order: dict[str, Any], own: Path) -> None:
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    for name, descriptor in (("/dev/null", 0), (own / "out", 1), (own / "err", 2)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    module, *arguments = order["argv"]
    sys.argv = [module, *arguments]
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


def write(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, file)


if __name__ == "__main__":
    serve(sys.argv[1:])
