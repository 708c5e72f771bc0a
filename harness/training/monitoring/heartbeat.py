"""Leaves a sign that this process still gets further, where `python -m harness health` finds it.

The loop only counts; a thread writes, every few seconds and only if something has advanced since.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import log

SECONDS_BETWEEN_WRITES = 2.0
# Until the first step is done, which holds compilation, nothing tells how long anything takes here.
SECONDS_TO_BEGIN = 3600.0


class HeartbeatWriter:
    """Counts advances and tells of them."""

    def __init__(
        self, folder: Path | None = None, *, patience_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            folder: where heartbeats lie; None for the host's own place.
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
            folder = heartbeat_folder() if self._folder is None else self._folder
            self._file = folder / f"{os.getpid()}.json"
            self._write()
        except OSError as error:
            self._file = None
            log.warning(f"no sign for `harness health` can be left: {error}; name a folder of this user in TMPDIR")
            return
        self._thread = threading.Thread(target=self._write_on, name="heartbeat", daemon=True)
        self._thread.start()

    def set_run_folder(self, folder: Path) -> None:
        """Say where the run lies, once it is known."""
        self._run_folder = str(folder)
        self.beat()
        self._write_now()

    def beat(self) -> None:
        """Note that a step or another stage is done. Cheap enough for every step."""
        now = self._clock()
        self._longest_pause = max(self._longest_pause, now - self._advanced_at)
        self._advanced_at = now
        self._advances += 1

    def interval_begins(self, phase: str) -> None:
        """Nothing has advanced by that."""

    def interval_ended(self) -> None:
        """Note the end of the first step: from here on the longest pause says what is usual."""
        first = self._phase != "training"
        if first:
            self._phase, self._longest_pause = "training", 0.0
        self.beat()
        if first:
            self._write_now()

    def heartbeat(self) -> Heartbeat:
        """Return the state as it is now."""
        allowed = max(self._patience_seconds, PATIENCE * self._longest_pause)
        if self._phase != "training":
            allowed = max(self._patience_seconds, SECONDS_TO_BEGIN)
        return Heartbeat(
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
        partial.write_text(json.dumps(asdict(self.heartbeat())), encoding="utf-8")
        os.replace(partial, self._file)


# Of the longest pause so far, how many times as long a silence may be.
PATIENCE = 10.0


@dataclass(frozen=True)
class Heartbeat:
    """The state of one process that trains, as it last said it."""

    pid: int
    started: str
    """When the process began, as the kernel counts: numbers of processes are used again."""
    folder: str
    phase: str
    advances: int
    """Steps, evaluations and other stages that it has got through."""
    advanced_at: float
    """When it last did, seconds on the host's steady clock."""
    allowed_silence_seconds: float

    def silence(self, now: float) -> float:
        """Return for how long nothing has been heard."""
        return max(0.0, now - self.advanced_at)

    def hung(self, now: float) -> bool:
        return self.silence(now) > self.allowed_silence_seconds


def heartbeat_folder() -> Path:
    """Return where this user's runs leave their heartbeats, made if need be.

    Raises:
        OSError: it cannot be made, or is somebody else's.
    """
    folder = Path(tempfile.gettempdir()) / f"training-harness-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # In a folder that all may write to, anybody could have been first.
    found = folder.lstat()
    if found.st_uid != os.getuid() or folder.is_symlink() or found.st_mode & 0o022:
        raise OSError(f"{folder} is not this user's own")
    return folder


def started(pid: int) -> str | None:
    """Return when a process began, in the kernel's words, or None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold anything; the 22nd field is the time.
    return text.rpartition(")")[2].split()[19]


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """Return the heartbeats of processes that are there still, by number."""
    found = []
    for file in folder.glob("*.json"):
        try:
            heartbeat = Heartbeat(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if started(heartbeat.pid) == heartbeat.started:
            found.append(heartbeat)
        else:
            with suppress(OSError):
                file.unlink()
    return sorted(found, key=lambda heartbeat: heartbeat.pid)
