"""Standard streams in odd states: closed, full, without a reader, on a terminal that went away."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# A command that prints a result and ends with the code of its first argument, without the import of torch. It writes
# the descriptor of the next opened file to its second argument.
COMMAND = """
import contextlib, os, sys
import harness.__main__ as door
import harness.commands.doctor as doctor
def main(words):
    with open(words[1], "w") as file:
        file.write(str(file.fileno()))
    print("a result")
    print("progress", file=sys.stderr)
    with contextlib.suppress(OSError):
        os.write(2, b"from a C library")
    return int(words[0])
doctor.main = main
sys.exit(door.main(["doctor", *sys.argv[1:]]))
"""


def full() -> int:
    return os.open("/dev/full", os.O_RDWR)


def without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def without_peer() -> int:
    one, other = socket.socketpair()
    other.close()
    return one.detach()


def gone_terminal() -> int:
    own, other = pty.openpty()
    os.close(own)
    return other


def for_reading() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def run(tmp_path: Path, code: int, streams: dict[int, int | None]) -> tuple[int, str, str, int]:
    """Run the command with descriptors in place of its streams, None for a closed one.

    Returns exit code, standard output, standard error, and the descriptor of the file that the command opened.
    """
    files = {number: tmp_path / f"stream-{number}" for number in (1, 2)}

    def set_streams() -> None:
        for number in range(3):
            given = streams.get(number, -1)
            if given is None:
                os.close(number)
            else:
                os.dup2(
                    os.open(files.get(number, os.devnull), os.O_RDWR | os.O_CREAT) if given == -1 else given, number
                )

    opened = [descriptor for descriptor in streams.values() if descriptor is not None]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(code), str(tmp_path / "opened")],
        preexec_fn=set_streams, pass_fds=opened, timeout=60, check=False,
    )  # fmt: skip
    for descriptor in opened:
        os.close(descriptor)
    out, err = (file.read_text() if file.exists() else "" for file in files.values())
    return done.returncode, out, err, int((tmp_path / "opened").read_text())


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("state", [None, without_reader, without_peer, gone_terminal])
def test_a_stream_that_nobody_reads_changes_nothing(
    state: Callable[[], int] | None, number: int, tmp_path: Path
) -> None:
    code = 4 if number == 2 else 0
    found, out, err, opened = run(tmp_path, code, {number: None if state is None else state()})
    assert found == code
    # A later file never gets the descriptor of a stream, to which libraries write by number.
    assert opened > 2
    assert out == ("" if number == 1 else "a result\n")
    assert sorted(err) == sorted("" if number == 2 else "progress\nfrom a C library")


@pytest.mark.parametrize("state", [full, for_reading])
def test_lost_results_are_a_failure(state: Callable[[], int], tmp_path: Path) -> None:
    code, _, err, _ = run(tmp_path, 0, {1: state()})
    assert code == 5
    assert (
        err.splitlines()[-1].removeprefix("from a C library").startswith("error: standard output: cannot be written: ")
    )
    assert run(tmp_path, 4, {1: state()})[0] == 4


@pytest.mark.parametrize("state", [full, for_reading])
def test_lost_progress_is_none(state: Callable[[], int], tmp_path: Path) -> None:
    assert run(tmp_path, 0, {2: state()})[:2] == (0, "a result\n")


def test_all_closed(tmp_path: Path) -> None:
    code, _, _, opened = run(tmp_path, 4, {0: None, 1: None, 2: None})
    assert (code, opened > 2) == (4, True)


def test_a_slow_reader_of_a_non_blocking_pipe_gets_all() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    program = "from harness import streams; streams.prepare(); print('x' * 300_000); streams.lost_output()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        with os.fdopen(reader) as file:
            assert len(file.read()) == 300_001
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode != -signal.SIGPIPE
