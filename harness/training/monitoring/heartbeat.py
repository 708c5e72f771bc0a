"""Heartbeat of a run: counted by the loop, written to a file by a thread for `python -m harness health`. No torch."""

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
from harness.records.files import replace_file
from harness.regular_files import load_json
from harness.training.observer import LoopObserver

WRITE_PERIOD_SECONDS = 2.0
# Before the end of the first step, which may be compiled, the duration of a step is unknown.
SETUP_LIMIT_SECONDS = 3600.0
# A run is hung after a silence of this multiple of its longest pause so far.
HUNG_PAUSE_FACTOR = 10.0


class Heartbeat:
    """Counter of the steps and other stages that this process has completed; `beat` is cheap enough for every step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.beats = self.signs = 0
        """Steps and stages that were completed; signs of life within one."""
        self.last_beat_at = clock()
        """Seconds on the host's monotonic clock."""
        self.longest_pause_seconds = 0.0

    def beat(self) -> None:
        """Count a completed step or stage."""
        self._note()
        self.beats += 1

    def alive(self) -> None:
        """Count a sign of life within a long stage, by which no rank is further than another."""
        self._note()
        self.signs += 1

    def _note(self) -> None:
        now = self.clock()
        self.longest_pause_seconds = max(self.longest_pause_seconds, now - self.last_beat_at)
        self.last_beat_at = now


@dataclass(frozen=True)
class HeartbeatState:
    """The state of a training process, as last written to its file."""

    pid: int
    started: str
    """Start time of the process, in the kernel's clock ticks: process ids are reused."""
    folder: str
    phase: str
    beats: int
    """Steps, evaluations and other stages completed."""
    last_beat_at: float
    """Seconds on the host's monotonic clock."""
    allowed_silence_seconds: float

    def silence_seconds(self, now: float) -> float:
        """Return the time since the last progress."""
        return max(0.0, now - self.last_beat_at)

    def is_hung(self, now: float) -> bool:
        return self.silence_seconds(now) > self.allowed_silence_seconds


class HeartbeatWriter(LoopObserver):
    """Writes the heartbeat to a file every few seconds if there was progress since."""

    def __init__(self, heartbeat: Heartbeat, *, timeout_seconds: float, folder: Path | None = None) -> None:
        """
        Args:
            timeout_seconds: the shortest silence that counts as hung, once the first step is done.
            folder: of the heartbeat files; None for `heartbeat_folder()`.
        """
        self._heartbeat, self._timeout_seconds, self._folder = heartbeat, timeout_seconds, folder
        self._run_folder, self._phase = "", "setting up"
        self._written_at = heartbeat.last_beat_at
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._file: Path | None = None

    def start(self) -> None:
        """Write the first state and start the thread. A file that cannot be written is a warning; the run continues."""
        try:
            folder = heartbeat_folder() if self._folder is None else self._folder
            file = folder / f"{os.getpid()}.json"
            self._write(file)
        except OSError as error:
            log.warning(f"`harness health` cannot see this run: {error}; set TMPDIR to a folder of this user")
            return
        self._file = file
        self._thread = threading.Thread(target=self._keep_writing, name="heartbeat", daemon=True)
        self._thread.start()

    def set_run_folder(self, folder: Path) -> None:
        """Set the run's folder, once it is known."""
        self._run_folder = str(folder)
        self._heartbeat.beat()
        self._write_now()

    def interval_ended(self) -> None:
        """Count an interval; from the first one on, the longest pause is that of a step."""
        first = self._phase != "training"
        if first:
            self._phase, self._heartbeat.longest_pause_seconds = "training", 0.0
        self._heartbeat.beat()
        if first:
            self._write_now()

    def state(self) -> HeartbeatState:
        """Return the current state."""
        allowed = max(self._timeout_seconds, HUNG_PAUSE_FACTOR * self._heartbeat.longest_pause_seconds)
        if self._phase != "training":
            allowed = max(self._timeout_seconds, SETUP_LIMIT_SECONDS)
        return HeartbeatState(
            pid=os.getpid(),
            started=read_start_time(os.getpid()) or "",
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

    def _keep_writing(self) -> None:
        while not self._stopping.wait(WRITE_PERIOD_SECONDS):
            if self._written_at != self._heartbeat.last_beat_at:
                self._write_now()

    def _write_now(self) -> None:
        if self._file is not None:
            with suppress(OSError), self._lock:
                self._write(self._file)

    def _write(self, file: Path) -> None:
        self._written_at = self._heartbeat.last_beat_at
        replace_file(file, json.dumps(asdict(self.state())))


def heartbeat_folder() -> Path:
    """Return the folder of this user's heartbeats on this host, created if it is missing.

    Raises:
        OSError: it cannot be created, or belongs to another user.
    """
    folder = Path(tempfile.gettempdir()) / f"training-harness-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # In a world-writable folder, another user may have created it first.
    found = folder.lstat()
    if found.st_uid != os.getuid() or folder.is_symlink() or found.st_mode & 0o022:
        raise OSError(f"{folder} belongs to another user, or others may write to it")
    return folder


def read_start_time(pid: int) -> str | None:
    """Return the start time of a process in the kernel's clock ticks, or None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold anything; the 22nd field is the start time.
    return text.rpartition(")")[2].split()[19]


def _is_alive(state: HeartbeatState) -> bool:
    """Return whether the process that wrote a heartbeat still exists."""
    started = read_start_time(state.pid)
    if started is not None or state.started:
        return started == state.started
    # Without /proc nobody knows when it began.
    try:
        os.kill(state.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def read_heartbeats(folder: Path) -> list[HeartbeatState]:
    """Return the heartbeats of the processes that still exist, by process id; files of ended ones are removed."""
    found = []
    for file in folder.glob("*.json"):
        try:
            state = HeartbeatState(**load_json(file))
        except (OSError, ValueError, TypeError):
            continue
        if _is_alive(state):
            found.append(state)
        else:
            with suppress(OSError):
                file.unlink()
    return sorted(found, key=lambda state: state.pid)
