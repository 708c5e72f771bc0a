"""Reads along on standard error: some libraries say only there that an operation ran on the host, not on the device."""

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
# A process that was started meanwhile can keep the descriptor open.
SECONDS_FOR_THE_REST = 10.0


class StderrWatch:
    """Passes descriptor 2 on unchanged while looking for a pattern in it, line by line.

    C++ libraries write to the descriptor, not to sys.stderr, so that is what is watched. `stream` is the standard
    error as it was before: what goes there is not read, and a terminal is still a terminal to it. There is one watch
    at a time, as there is one standard error.
    """

    _active: StderrWatch | None = None

    def __init__(self, pattern: str | None) -> None:
        self._pattern = pattern if pattern is None else re.compile(pattern).pattern
        self._lock = threading.Lock()
        self._reader: subprocess.Popen[bytes] | None = None
        self.found: str | None = None
        """The first line that matched; known when the watch is over."""
        self.complete = True
        """Whether everything that was written has been looked at; known when the watch is over."""
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
                # Out of reach of what a terminal sends to all processes of a command.
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
        """End the watch, and wait until all that was written has been passed on. From any thread."""
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is None:
                return
            StderrWatch._active = None
            with suppress(OSError):
                # What a reader that was killed does not take any more.
                sys.stderr.flush()
            # Closes this process's only writing end of the pipe, which ends the reader.
            os.dup2(self._saved, 2)
            os.close(self._saved)
            assert reader.stdout is not None
            try:
                self.complete = reader.wait(timeout=SECONDS_FOR_THE_REST) == 0
            except subprocess.TimeoutExpired:
                # A process that was started meanwhile writes on, and may go on doing so. This one's part is read.
                os.set_blocking(reader.stdout.fileno(), False)
            if line := reader.stdout.read():
                self.found = line.decode(errors="replace").strip()
            reader.stdout.close()

    @classmethod
    def stop_active(cls) -> None:
        """End the watch that is on, if there is one, on behalf of a main thread that does not come back."""
        if cls._active is not None:
            cls._active.stop()
