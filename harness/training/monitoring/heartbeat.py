"""Leaves a sign that this process still gets further, where `python -m harness health` finds it.

The loop only counts; a thread writes, every few seconds and only if something has advanced since.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from harness import log
from harness.health import PATIENCE, Pulse, pulse_folder, started

SECONDS_BETWEEN_WRITES = 2.0
# Until the first step is done, which holds compilation, nothing tells how long anything takes here.
SECONDS_TO_BEGIN = 3600.0


class PulseWriter:
    """Counts advances and tells of them."""

    def __init__(
        self, folder: Path | None = None, *, patience_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            folder: where pulses lie; None for the host's own place.
            patience_seconds: the shortest silence that counts as hung, once the first step is done.
        """
        self._clock, self._patience_seconds = clock, patience_seconds
        self._folder, self._run_folder, self._phase = folder, "", "setting up"
        self._advances = self._written = 0
        self._advanced_at = clock()
        self._longest_pause = 0.0
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._file: Path | None = None

    def start(self) -> None:
        """Leave the first sign. Where none can be left, that is said, and the run goes on."""
        try:
            folder = pulse_folder() if self._folder is None else self._folder
            self._file = folder / f"{os.getpid()}.json"
            self._write()
        except OSError as error:
            self._file = None
            log.warning(f"no sign for `harness health` can be left: {error}; name a folder of this user in TMPDIR")
            return
        self._thread = threading.Thread(target=self._write_on, name="pulse", daemon=True)
        self._thread.start()

    def runs_in(self, folder: Path) -> None:
        """Say where the run lies, once it is known."""
        self._run_folder = str(folder)
        self.advanced()
        self._write_now()

    def advanced(self) -> None:
        """Note that a step or another stage is done. Cheap enough for every step."""
        now = self._clock()
        self._longest_pause = max(self._longest_pause, now - self._advanced_at)
        self._advanced_at = now
        self._advances += 1

    def block_begins(self, phase: str) -> None:
        """Nothing has advanced by that."""

    def block_ended(self) -> None:
        """Note the end of the first step: from here on the longest pause says what is usual."""
        first = self._phase != "training"
        if first:
            self._phase, self._longest_pause = "training", 0.0
        self.advanced()
        if first:
            self._write_now()

    def pulse(self) -> Pulse:
        """Return the state as it is now."""
        allowed = max(self._patience_seconds, PATIENCE * self._longest_pause)
        if self._phase != "training":
            allowed = max(self._patience_seconds, SECONDS_TO_BEGIN)
        return Pulse(
            pid=os.getpid(),
            started=started(os.getpid()) or "",
            folder=self._run_folder,
            phase=self._phase,
            advances=self._advances,
            advanced_at=self._advanced_at,
            allowed_silence_seconds=allowed,
        )

    def stop(self) -> None:
        """Take the sign away: the run has ended."""
        self._enough.set()
        if self._thread is not None:
            self._thread.join(10)
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink()

    def _write_on(self) -> None:
        while not self._enough.wait(SECONDS_BETWEEN_WRITES):
            if self._written != self._advances:
                self._write_now()

    def _write_now(self) -> None:
        if self._file is not None:
            with suppress(OSError), self._lock:
                self._write()

    def _write(self) -> None:
        assert self._file is not None
        self._written = self._advances
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self.pulse())), encoding="utf-8")
        os.replace(partial, self._file)
