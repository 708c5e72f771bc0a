"""Copies standard input to standard error, and writes the first line that matches a pattern to standard output.

`stderr_watch` starts it as a separate process, so that the error message of a C++ library that aborts the training
process is still passed on.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys

MAX_LINE_BYTES = 65_536
MAX_FOUND_BYTES = 4096


def main(pattern: str) -> None:
    """Read until all writers have closed the pipe."""
    # The launcher's signals are for the training process; this one ends after it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    compiled = re.compile(pattern.encode())
    found, line = False, b""
    while chunk := os.read(0, MAX_LINE_BYTES):
        _pass_on(chunk)
        *lines, line = (line + chunk).split(b"\n")
        for candidate in (*lines, line):
            if not found and compiled.search(candidate):
                found = True
                os.write(1, candidate[:MAX_FOUND_BYTES])
        line = line[-MAX_LINE_BYTES:]


def _pass_on(chunk: bytes) -> None:
    while chunk:
        try:
            chunk = chunk[os.write(2, chunk) :]
        except BlockingIOError:
            select.select([], [2], [])
        except OSError:
            # Nobody reads standard error any more, which must not block the writer.
            return


if __name__ == "__main__":
    main(sys.argv[1])
