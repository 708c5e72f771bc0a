"""A run's folder: its lock, its config.yaml, and the attempts of a run that is resumed. No torch."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from harness.config import Config, flatten, is_part_of_the_work, to_dict, to_yaml, workload_id
from harness.errors import ConfigError
from harness.records.files import archive_file, flush_to_disk, write_atomically, write_failure
from harness.records.record import RECORD_FILE, read_record
from harness.records.steps import STEPS_FILE
from harness.text import utc_now, utc_stamp

CONFIG_FILE = "config.yaml"
AUTOTUNE_FILE = "autotune.json"
# Only of a run that writes checkpoints.
ATTEMPTS_FILE = "attempts.json"
STACKS_FILE = "hung.txt"
CHECKPOINT_FOLDER = "checkpoints"
PROFILE_FOLDER = "profile"
TENSORBOARD_FOLDER = "tensorboard"
# The name of a complete checkpoint.
STEP_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass
class RunFolder:
    """A run's folder, locked by this process until the context ends or the process does."""

    path: Path
    existing_record: dict[str, Any] | None = None
    """The record of an earlier attempt that ended well; None if there is none."""
    resuming: bool = False
    """True if the folder holds an earlier attempt at this run."""
    _lock: IO[str] | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()


def acquire_run_folder(config: Config, label: str) -> RunFolder:
    """Create a folder and lock it, or with `resume=auto` lock the folder of an interrupted run.

    Raises:
        ConfigError: the folder holds another run, or another process is running this one.
    """
    folder = Path(config.out).expanduser() if config.out is not None else None
    if config.checkpoint.every and folder is not None:
        _check_checkpoint_link(folder / CHECKPOINT_FOLDER)
    if config.resume is not None and folder is not None and (folder / CONFIG_FILE).exists():
        acquired = RunFolder(folder, resuming=True, _lock=_acquire_lock(folder))
        try:
            _check_same_work(folder, config)
            record = read_record(folder) if (folder / RECORD_FILE).exists() else None
            if record is not None and record["status"] == "ok":
                acquired.existing_record, acquired.resuming = record, False
            elif record is not None:
                # The record of a failed attempt is kept under another name.
                archive_file(folder / RECORD_FILE)
        except Exception:
            acquired.__exit__()
            raise
        return acquired
    folder = create_run_folder(config.out, label)
    write_config(folder, to_yaml(config))
    return RunFolder(folder, _lock=_acquire_lock(folder))


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a run's folder, oldest first."""
    with suppress(FileNotFoundError):
        entries = (folder / CHECKPOINT_FOLDER).iterdir()
        return sorted(
            int(found[1]) for path in entries if (found := STEP_FOLDER.fullmatch(path.name)) and path.is_dir()
        )
    return []


def begin_attempt(folder: Path, *, from_step: int, world_size: int, host: str | None) -> list[dict[str, Any]]:
    """Append an attempt to attempts.json, and return all attempts so far, this one included."""
    attempts = read_attempts(folder)
    attempts.append(
        {
            "started_at": utc_now(),
            "finished_at": None,
            "status": None,
            "from_step": from_step,
            "to_step": None,
            "world_size": world_size,
            "host": host,
        }
    )
    _write_attempts(folder, attempts)
    return attempts


def end_attempt(folder: Path, *, status: str, to_step: int) -> list[dict[str, Any]]:
    """Write the outcome of the current attempt, and return all attempts. One that was killed has no outcome."""
    attempts = read_attempts(folder)
    attempts[-1] |= {"finished_at": utc_now(), "status": status, "to_step": to_step}
    _write_attempts(folder, attempts)
    return attempts


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """Return the attempts of the run in a folder, oldest first.

    Raises:
        ConfigError: attempts.json is damaged.
    """
    file = folder / ATTEMPTS_FILE
    try:
        attempts = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(attempts, list):
            raise ValueError("not a list")
        return attempts
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}; fix or delete it to resume") from error


def _check_same_work(folder: Path, config: Config) -> None:
    """Raise ConfigError if the run in a folder was started with settings that compute something else."""
    file = folder / CONFIG_FILE
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}; choose another out=DIR") from error
    # Settings outside the workload, such as the untimed steps, may differ.
    now = flatten(to_dict(config))
    differing = [
        f"{key} was {value!r}, now {now.get(key)!r}"
        for key, value in flatten(before if isinstance(before, dict) else {}).items()
        if is_part_of_the_work(key) and now.get(key) != value
    ]
    if differing or not isinstance(before, dict):
        raise ConfigError(
            f"resume: {folder} holds a run of another workload than {workload_id(config)}: "
            f"{'; '.join(differing) or 'its config.yaml is empty'}; resume with the settings that it started with, or "
            "choose another out=DIR"
        )


def _check_checkpoint_link(folder: Path) -> None:
    """Raise ConfigError if the checkpoints' folder is a link whose target is missing: a disk not mounted, say."""
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(
            f"out: {folder} is a link to {os.readlink(folder)}, which does not exist; mount or create it, or remove "
            "the link"
        )


def _acquire_lock(folder: Path) -> IO[str] | None:
    """Lock the folder until the file is closed or this process ends; None on file systems without locks."""
    file = open(folder / CONFIG_FILE, encoding="utf-8")  # noqa: SIM115 (open as long as the lock is held)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ConfigError(
                f"out: the run in {folder} is locked by another process; wait until it has ended, or choose another "
                "out=DIR"
            ) from error
        # Some network file systems have no locks.
        return None
    return file


def _write_attempts(folder: Path, attempts: list[dict[str, Any]]) -> None:
    write_atomically(folder / ATTEMPTS_FILE, json.dumps(attempts, indent=1) + "\n")


def create_run_folder(out: str | None, label: str, parent: Path = Path("runs")) -> Path:
    """Create the run's folder and return it. Nothing that exists is ever overwritten.

    Args:
        out: the folder that the user gave, or None for parent/<UTC time>-<label>.

    Raises:
        ConfigError: the folder holds a run already, or cannot be created.
    """
    try:
        if out is None:
            return _create_default_folder(label, parent)
        folder = Path(out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        check_no_existing_run(folder)
        return folder
    except OSError as error:
        raise ConfigError(
            f"out: cannot create the folder {error.filename or out}: {error.strerror}; choose another out=DIR"
        ) from error


def check_no_existing_run(folder: Path) -> None:
    """Raise ConfigError if the folder holds a run, finished or not, repeats of one, or a search over batch sizes."""
    remedy = "choose another out=DIR, or delete that folder first"
    if (folder / RECORD_FILE).exists():
        raise ConfigError(f"out: {folder} holds a finished run; {remedy}")
    if (folder / CONFIG_FILE).exists() or (folder / STEPS_FILE).exists():
        raise ConfigError(
            f"out: {folder} holds a run that is still running or was interrupted (no {RECORD_FILE}); its "
            f"finished steps are in {STEPS_FILE}; {remedy}"
        )
    if (folder / AUTOTUNE_FILE).exists() or any(folder.glob("micro-batch-*")):
        raise ConfigError(f"out: {folder} holds a search over micro-batch sizes (autotune); {remedy}")
    with suppress(FileNotFoundError):
        if any(child.name.isdigit() and child.is_dir() for child in folder.iterdir()):
            raise ConfigError(f"out: {folder} holds the repeats of a run; {remedy}")
    # Fixed names that a run writes: an existing one is an earlier run's, or another program's.
    for name in (ATTEMPTS_FILE, STACKS_FILE, PROFILE_FOLDER, TENSORBOARD_FOLDER):
        if os.path.lexists(folder / name):
            raise ConfigError(f"out: {folder} holds {name}, which a run would overwrite; choose another out=DIR")
    if any((folder / CHECKPOINT_FOLDER).glob("step-*")):
        raise ConfigError(
            f"out: {folder / CHECKPOINT_FOLDER} holds checkpoints of another run; choose another out=DIR, or move them"
        )


def _create_default_folder(label: str, parent: Path) -> Path:
    stamp = utc_stamp()
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = parent / (f"{stamp}-{label}" if number == 1 else f"{stamp}-{label}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ConfigError(f"out: a thousand runs named {stamp}-{label} exist already; give out=DIR")


def write_config(folder: Path, text: str) -> None:
    """Write config.yaml: the first file of a run, whose creation reserves the folder.

    Raises:
        ConfigError: another process reserved the folder first.
        RunFailed: the disk is full or not writable.
    """
    path = folder / CONFIG_FILE
    try:
        file = open(path, "x", encoding="utf-8")  # noqa: SIM115 (closed below)
    except FileExistsError as error:
        raise ConfigError(f"out: {folder} was taken by another run just now; choose another out=DIR") from error
    except OSError as error:
        raise write_failure(path, error) from error
    try:
        with file:
            file.write(text)
            flush_to_disk(file.fileno())
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise write_failure(path, error) from error
