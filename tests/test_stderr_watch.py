"""StderrWatch passes standard error on unchanged and searches it, whoever writes to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from harness.training.monitoring.stderr_watch import StderrWatch

SCRIPT = """
import os, sys
from harness.training.monitoring.stderr_watch import StderrWatch
with StderrWatch({pattern!r}) as watch:
    print("aside", file=watch.stream)
    os.write(2, b"one\\nwill fall ")
    os.write(2, b"back\\n")
    print("python", file=sys.stderr)
    os.system("echo child >&2")
print("after", file=sys.stderr)
print(repr(watch.found), sys.stderr is watch.stream)
"""


def watched(pattern: str | None) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(pattern=pattern)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), sorted(done.stderr.splitlines())


EVERYTHING = sorted(["one", "will fall back", "python", "aside", "child", "after"])


def test_finds_a_line_written_in_pieces_and_passes_everything_on() -> None:
    assert watched("fall back") == ("'will fall back' True", EVERYTHING)


def test_finds_nothing_where_there_is_nothing() -> None:
    assert watched("never") == ("None True", EVERYTHING)


def test_without_a_pattern_touches_nothing() -> None:
    assert watched(None) == ("None True", EVERYTHING)
    with StderrWatch(None) as watch:
        assert watch.stream is sys.stderr


def test_what_goes_to_its_own_stream_is_not_read() -> None:
    before = os.fstat(2)
    with StderrWatch("bar") as watch:
        print("a progress bar", file=watch.stream)
    assert watch.found is None
    assert os.fstat(2).st_ino == before.st_ino


ABORTED = """
import ctypes, os
from harness.training.monitoring.stderr_watch import StderrWatch
with StderrWatch("x"):
    os.write(2, b"the library's error\\n")
    ctypes.CDLL(None).abort()
"""
FORCE_EXITED = """
import os, sys, threading, time
from harness.training.monitoring.stderr_watch import StderrWatch
def force_exit():
    os.write(2, b"early\\n")
    StderrWatch.stop_active()
    print("our error", file=sys.stderr)
    os._exit(5)
with StderrWatch("x"):
    threading.Thread(target=force_exit).start()
    time.sleep(60)
"""


def test_the_error_of_a_library_that_aborts_is_passed_on() -> None:
    """Ten times, since a reader within the process loses it now and then."""
    for _ in range(10):
        done = subprocess.run([sys.executable, "-c", ABORTED], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGABRT
        assert done.stderr == "the library's error\n"


def test_a_process_ended_by_another_thread_passes_all_on() -> None:
    done = subprocess.run([sys.executable, "-c", FORCE_EXITED], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr == "early\nour error\n"


def test_a_closed_standard_error_does_not_block_the_writer() -> None:
    script = "import os\nfrom harness.training.monitoring.stderr_watch import StderrWatch\n"
    script += 'with StderrWatch("last") as watch:\n'
    script += '    for _ in range(1000):\n        os.write(2, b"x" * 1000 + b"\\n")\n    os.write(2, b"the last\\n")\n'
    script += "print(watch.found)"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=writing, text=True, timeout=60, check=False
    )
    os.close(writing)
    assert done.stdout == "the last\n"


def run_script(body: str, **options: Any) -> subprocess.CompletedProcess[str]:
    script = (
        f"import os, signal, subprocess, sys\nfrom harness.training.monitoring.stderr_watch import StderrWatch\n{body}"
    )
    return subprocess.run(
        [sys.executable, "-c", script], text=True, timeout=60, check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip


def test_a_killed_reader_makes_the_search_incomplete_and_does_not_block() -> None:
    done = run_script("""
with StderrWatch("last") as watch:
    watch._reader.kill(); watch._reader.wait()
    try:
        os.write(2, b"the last\\n")
    except BrokenPipeError:
        pass
print(watch.complete, watch.found)
print("after", file=sys.stderr)
""")
    assert (done.stdout, done.stderr) == ("False None\n", "after\n")


def test_an_invalid_pattern_is_an_error_at_once() -> None:
    with pytest.raises(re.error):
        StderrWatch("(")


def test_signals_to_all_processes_of_a_command_leave_the_reader_alone() -> None:
    """Signals of a terminal or scheduler: the harness ends by itself, and its output until then is searched."""
    done = run_script("""
signal.signal(signal.SIGTERM, lambda *_: os.write(2, b"ending\\n"))
with StderrWatch("ending") as watch:
    os.write(2, b"begun\\n")
    reader = watch._reader.pid
    import time
    from pathlib import Path
    def ignored():
        [line] = [each for each in Path(f"/proc/{reader}/status").read_text().splitlines() if each.startswith("SigIgn")]
        return int(line.split()[1], 16)
    # SIGTERM, SIGINT and SIGHUP, once the reader's interpreter has started.
    wanted = sum(1 << number - 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    for _ in range(600):
        if ignored() & wanted == wanted:
            break
        time.sleep(0.05)
    assert os.getsid(reader) != os.getsid(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(reader, number)
    os.kill(os.getpid(), signal.SIGTERM)
print(watch.complete, watch.found)
""")
    assert (done.stdout, done.stderr) == ("True ending\n", "begun\nending\n")


def test_a_slow_reader_that_does_not_block_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    got: list[bytes] = []
    taker = threading.Thread(
        target=lambda: got.extend(iter(lambda: (time.sleep(0.001), os.read(reading, 4096))[1], b""))
    )
    taker.start()
    done = run_script("""
with StderrWatch("last") as watch:
    for number in range(500):
        os.write(2, b"x" * 999 + b"\\n")
print(watch.complete)
""", stderr=writing)  # fmt: skip
    os.close(writing)
    taker.join()
    os.close(reading)
    assert done.stdout == "True\n"
    assert b"".join(got) == (b"x" * 999 + b"\n") * 500


def test_a_child_that_keeps_standard_error_open_is_not_waited_for_forever() -> None:
    began = time.monotonic()
    done = run_script("""
import harness.training.monitoring.stderr_watch as module
module.DRAIN_TIMEOUT_SECONDS = 5
with StderrWatch("last") as watch:
    child = subprocess.Popen(["sleep", "20"])
    os.write(2, b"the last\\n")
child.kill()
print(watch.complete, watch.found)
""")
    assert time.monotonic() - began < 15
    assert done.stdout == "True the last\n"
