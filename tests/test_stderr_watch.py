"""Standard error is passed on unchanged and read along, whoever writes to it."""

from __future__ import annotations

import os
import subprocess
import sys

from harness.training.stderr_watch import StderrWatch

SCRIPT = """
import os, sys
from harness.training.stderr_watch import StderrWatch
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
