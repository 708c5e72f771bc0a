"""Search of standard error: some libraries report only there that an operation fell back to the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from harness.errors import RunFailed

READER = Path(__file__).with_name("stderr_reader.py")
# A child process may keep the descriptor open.
DRAIN_TIMEOUT_SECONDS = 10.0


class StderrWatch:
    """Passes descriptor 2 on unchanged and searches it for a pattern, line by line.

    The descriptor is watched, since C++ libraries do not write to sys.stderr. `stream` is the original standard error,
    which is not searched and may be a terminal. Only one watch can be active, since a process has one standard error.
    """

    _active: StderrWatch | None = None

    def __init__(self, pattern: str | None) -> None:
        self._pattern = pattern if pattern is None else re.compile(pattern).pattern
        self._lock = threading.Lock()
        self._reader: subprocess.Popen[bytes] | None = None
        self.found: str | None = None
        """The first line that matched; set when the watch ends."""
        self.complete = True
        """False if part of the output was not searched; set when the watch ends."""
        self.stream: TextIO = sys.stderr

    def __enter__(self) -> StderrWatch:
        if self._pattern is None:
            return self
        sys.stderr.flush()
        try:
            self._reader = subprocess.Popen(
                [sys.executable, "-I", "-S", str(READER), self._pattern],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A terminal sends signals to all processes of a session.
                start_new_session=True,
            )
        except OSError as error:
            raise RunFailed(f"the process that reads standard error cannot be started: {error}") from error
        assert self._reader.stdin is not None
        self._saved = os.dup(2)
        self.stream = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
        os.dup2(self._reader.stdin.fileno(), 2)
        self._reader.stdin.close()
        StderrWatch._active = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if self.stream is not sys.stderr:
            self.stream.close()
            self.stream = sys.stderr

    def stop(self) -> None:
        """End the watch, and wait until all output has been passed on. May be called from any thread."""
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is None:
                return
            StderrWatch._active = None
            with suppress(OSError):
                # Fails if the reader was killed.
                sys.stderr.flush()
            # Closes this process's only write end of the pipe, which ends the reader.
            os.dup2(self._saved, 2)
            os.close(self._saved)
            assert reader.stdout is not None
            try:
                self.complete = reader.wait(timeout=DRAIN_TIMEOUT_SECONDS) == 0
            except subprocess.TimeoutExpired:
                # A child process still holds the write end. This process's own output has been read.
                os.set_blocking(reader.stdout.fileno(), False)
            if line := reader.stdout.read():
                self.found = line.decode(errors="replace").strip()
            reader.stdout.close()

    @classmethod
    def stop_active(cls) -> None:
        """End the active watch, if any, for a main thread that does not return."""
        if cls._active is not None:
            cls._active.stop()
