"""Passes standard input on to standard error, and writes the first line in which a pattern is found to standard output.

`stderr_watch` starts it, as a process of its own: the last words of a process that a C++ library aborts are passed on
although nobody is left in it to do so.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys

MAX_LINE = 65_536
MAX_FOUND = 4096


def main(pattern: str) -> None:
    """Read until the other end is closed by everybody who has it."""
    # What the launcher stops is the other process; this one ends after it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wanted = re.compile(pattern.encode())
    found, line = False, b""
    while chunk := os.read(0, MAX_LINE):
        _pass_on(chunk)
        *lines, line = (line + chunk).split(b"\n")
        for whole in (*lines, line):
            if not found and wanted.search(whole):
                found = True
                os.write(1, whole[:MAX_FOUND])
        line = line[-MAX_LINE:]


def _pass_on(chunk: bytes) -> None:
    while chunk:
        try:
            chunk = chunk[os.write(2, chunk) :]
        except BlockingIOError:
            select.select([], [2], [])
        except OSError:
            # Nobody reads it any more. Whoever writes must not be held up for that.
            return


if __name__ == "__main__":
    main(sys.argv[1])
