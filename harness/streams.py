"""Standard streams in any state: closed, full, without a reader, or on a terminal that went away. No torch.

A run outlives them. What cannot be written is dropped, and the first reason decides at the end of the command.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from contextlib import suppress
from typing import Any


class DroppingFile(io.FileIO):
    """A descriptor whose failed writes are dropped, so that no print and no flush raises."""

    failure: OSError | None = None
    """The first write that failed."""

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes


def prepare() -> None:
    """Open the streams that are closed, and make output drop what cannot be written."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Takes the closed stream's descriptor, the lowest free one, which a file of the run would get otherwise.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    sys.stdout = _dropping(sys.stdout, errors="backslashreplace")
    sys.stderr = _dropping(sys.stderr, errors="backslashreplace")


def lost_output() -> OSError | None:
    """Flush the streams, and return why results on standard output were lost, or None.

    A reader that has seen enough (| head) and a terminal that went away lose nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        # A stream that is not dropping is a test's.
        with suppress(OSError):
            stream.flush()
    failure = failure_of(sys.stdout)
    return None if failure is None or _reader_is_gone(failure) else failure


def failure_of(stream: Any) -> OSError | None:
    """Return the first failure of a stream to write, or None."""
    buffer = getattr(stream, "buffer", None)
    return getattr(getattr(buffer, "raw", buffer), "failure", None)


def _dropping(stream: Any, errors: str) -> Any:
    """Return a stream like this one that drops what cannot be written; a test's own stream is returned as it is."""
    # With errors: a character that the terminal's encoding lacks is printed as an escape.
    if type(stream) is not io.TextIOWrapper or stream.name == os.devnull:
        return stream
    with suppress(OSError):
        stream.flush()
    descriptor = stream.fileno()
    with suppress(OSError):
        # Shared with a program that made it non-blocking, it would lose what a slow reader does not take at once.
        os.set_blocking(descriptor, True)
    try:
        file = DroppingFile(descriptor, "w", closefd=False)
    except OSError:
        # Not a file to write to, such as a folder.
        file = DroppingFile(os.devnull, "w")
    # Without a buffer after `python -u`, as Python has it.
    buffer: Any = file if stream.write_through else io.BufferedWriter(file)
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors=errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _reader_is_gone(failure: OSError) -> bool:
    if failure.errno in (errno.EPIPE, errno.ECONNRESET):
        return True
    # A terminal that went away; of a disk, the same error is a defect.
    return failure.errno == errno.EIO and stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode)
