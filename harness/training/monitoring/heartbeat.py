"""The heartbeat of a run: counted by the loop, written by a thread for `python -m harness health`. No torch."""

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
from harness.training.observer import LoopObserver

SECONDS_BETWEEN_WRITES = 2.0
# Until the first step, which may be compiled, is done, no pause so far says how long a step takes here.
SETUP_LIMIT_SECONDS = 3600.0
# A run is hung after a silence of this many times its longest pause so far.
PATIENCE = 10.0


class Heartbeat:
    """Counts the steps and other stages that this process has completed. `beat` is cheap enough for every step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.beats = 0
        self.last_beat_at = clock()
        """Seconds on the host's steady clock."""
        self.longest_pause_seconds = 0.0

    def beat(self) -> None:
        """Note that a step or another stage is done."""
        now = self.clock()
        self.longest_pause_seconds = max(self.longest_pause_seconds, now - self.last_beat_at)
        self.last_beat_at = now
        self.beats += 1


@dataclass(frozen=True)
class HeartbeatState:
    """The state of one process that trains, as it last wrote it."""

    pid: int
    started: str
    """When the process began, in the kernel's count: process numbers are used again."""
    folder: str
    phase: str
    beats: int
    """Steps, evaluations and other stages completed."""
    last_beat_at: float
    """Seconds on the host's steady clock."""
    allowed_silence_seconds: float

    def silence_seconds(self, now: float) -> float:
        """Return the time since the last progress."""
        return max(0.0, now - self.last_beat_at)

    def is_hung(self, now: float) -> bool:
        return self.silence_seconds(now) > self.allowed_silence_seconds


class HeartbeatWriter(LoopObserver):
    """Writes the heartbeat to a file every few seconds, and only if there was progress since."""

    def __init__(self, heartbeat: Heartbeat, *, timeout_seconds: float, folder: Path | None = None) -> None:
        """
        Args:
            timeout_seconds: the shortest silence that counts as hung, once the first step is done.
            folder: where heartbeats lie; None for the host's own place.
        """
        self._heartbeat, self._timeout_seconds, self._folder = heartbeat, timeout_seconds, folder
        self._run_folder, self._phase = "", "setting up"
        self._written_beats = 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._file: Path | None = None

    def start(self) -> None:
        """Write the first state. Where none can be written, a warning says so, and the run goes on."""
        try:
            folder = heartbeat_folder() if self._folder is None else self._folder
            file = folder / f"{os.getpid()}.json"
            self._write(file)
        except OSError as error:
            log.warning(f"`harness health` cannot see this run: {error}; name a folder of this user in TMPDIR")
            return
        self._file = file
        self._thread = threading.Thread(target=self._write_on, name="heartbeat", daemon=True)
        self._thread.start()

    def set_run_folder(self, folder: Path) -> None:
        """Note the run's folder, once it is known."""
        self._run_folder = str(folder)
        self._heartbeat.beat()
        self._write_now()

    def interval_ended(self) -> None:
        """Note the end of the first step: from here on the longest pause is that of a step."""
        first = self._phase != "training"
        if first:
            self._phase, self._heartbeat.longest_pause_seconds = "training", 0.0
        self._heartbeat.beat()
        if first:
            self._write_now()

    def state(self) -> HeartbeatState:
        """Return the state as it is now."""
        allowed = max(self._timeout_seconds, PATIENCE * self._heartbeat.longest_pause_seconds)
        if self._phase != "training":
            allowed = max(self._timeout_seconds, SETUP_LIMIT_SECONDS)
        return HeartbeatState(
            pid=os.getpid(),
            started=started(os.getpid()) or "",
            folder=self._run_folder,
            phase=self._phase,
            beats=self._heartbeat.beats,
            last_beat_at=self._heartbeat.last_beat_at,
            allowed_silence_seconds=allowed,
        )

    def stop(self) -> None:
        """Remove the file: the run has ended."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10)
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink()

    def _write_on(self) -> None:
        while not self._stopping.wait(SECONDS_BETWEEN_WRITES):
            if self._written_beats != self._heartbeat.beats:
                self._write_now()

    def _write_now(self) -> None:
        if self._file is not None:
            with suppress(OSError), self._lock:
                self._write(self._file)

    def _write(self, file: Path) -> None:
        self._written_beats = self._heartbeat.beats
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self.state())), encoding="utf-8")
        os.replace(partial, file)


def heartbeat_folder() -> Path:
    """Return the folder of this user's heartbeats on this host, made if need be.

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
    """Return when a process began, in the kernel's count, or None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold anything; the 22nd field is the time.
    return text.rpartition(")")[2].split()[19]


def read_heartbeats(folder: Path) -> list[HeartbeatState]:
    """Return the heartbeats of the processes that still exist, by process number; files of others are removed."""
    found = []
    for file in folder.glob("*.json"):
        try:
            state = HeartbeatState(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if started(state.pid) == state.started:
            found.append(state)
        else:
            with suppress(OSError):
                file.unlink()
    return sorted(found, key=lambda state: state.pid)
