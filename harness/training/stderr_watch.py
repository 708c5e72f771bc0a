"""Reads along what device libraries write to standard error: some say only there that work ran on the host."""

from __future__ import annotations

import os
import re
import sys
import threading
from types import TracebackType
from typing import TextIO


class StderrWatch:
    """Passes descriptor 2 on unchanged while looking for a pattern in it, line by line.

    C++ libraries write to the descriptor, not to sys.stderr, so that is what is watched. `stream` is the standard
    error as it was before: what goes there is not read, and a terminal is still a terminal to it.
    """

    def __init__(self, pattern: str | None) -> None:
        self._pattern = re.compile(pattern.encode()) if pattern is not None else None
        self.found: str | None = None
        """The first line that matched."""
        self.stream: TextIO = sys.stderr

    def __enter__(self) -> StderrWatch:
        if self._pattern is not None:
            sys.stderr.flush()
            self._saved = os.dup(2)
            self.stream = os.fdopen(os.dup(self._saved), "w", buffering=1, encoding="utf-8", errors="replace")
            reading, writing = os.pipe()
            os.dup2(writing, 2)
            os.close(writing)
            self._thread = threading.Thread(target=self._pass_on, args=(reading,), name="stderr", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pattern is not None:
            sys.stderr.flush()
            os.dup2(self._saved, 2)  # closes the pipe's only writing end, which ends the thread
            self._thread.join(timeout=10)
            os.close(self._saved)
            self.stream.close()
            self.stream = sys.stderr

    def _pass_on(self, reading: int) -> None:
        assert self._pattern is not None
        line = b""
        with os.fdopen(reading, "rb", buffering=0) as source:
            while chunk := source.read(65536):
                os.write(self._saved, chunk)
                *lines, line = (line + chunk).split(b"\n")
                for whole in (*lines, line):
                    if self.found is None and self._pattern.search(whole):
                        self.found = whole.decode(errors="replace").strip()
