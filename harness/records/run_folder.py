"""A run's folder: created or resumed, locked, and never another run's. No torch."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.config import Config, to_dict, to_yaml, work_differences, workload_id
from harness.errors import ConfigError, RecordError
from harness.records.attempts import ATTEMPTS_FILE
from harness.records.files import archive_file, has_valid_seal, write_failure
from harness.records.folder_lock import FolderLock, LockUnavailable, is_locked
from harness.records.record import RECORD_FILE, read_record
from harness.records.schema import schema_problem
from harness.records.steps import STEPS_FILE
from harness.regular_files import read_file
from harness.text import utc_stamp

CONFIG_FILE = "config.yaml"
AUTOTUNE_FILE = "autotune.json"
STACKS_FILE = "hung.txt"
CHECKPOINT_FOLDER = "checkpoints"
PROFILE_FOLDER = "profile"
MAX_CONFIG_DEPTH = 4
TENSORBOARD_FOLDER = "tensorboard"
TRACKER_FOLDER = "tracker"
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
    _lock: FolderLock | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()


def acquire_run_folder(config: Config, label: str) -> RunFolder:
    """Create a folder and lock it, or with `resume=auto` lock the folder of an interrupted run.

    Raises:
        ConfigError: the folder holds another run, another process is running this one, or it cannot be locked.
        RecordError: the folder's record is damaged.
        RunFailed: config.yaml cannot be written.
    """
    if config.checkpoint.every and config.out is not None:
        _check_checkpoint_link(Path(config.out).expanduser() / CHECKPOINT_FOLDER)
    folder = _make_folder(config.out, label, Path("runs"))
    if config.resume is None:
        check_no_existing_run(folder)
    lock = _acquire_lock(folder, resume=config.resume is not None)
    acquired = RunFolder(folder, _lock=lock)
    try:
        if lock.is_empty:
            _begin(lock, folder, to_yaml(config))
        else:
            _check_same_work(folder, config)
            _take_over(acquired)
    except BaseException:
        lock.discard()
        raise
    return acquired


def _begin(lock: FolderLock, folder: Path, text: str) -> None:
    """Write config.yaml, the first file of a run."""
    check_no_existing_run(folder, own_config=True)
    try:
        lock.write(text.encode())
    except OSError as error:
        raise write_failure(folder / CONFIG_FILE, error) from error


def _take_over(acquired: RunFolder) -> None:
    """Resume the run in a folder that this process has locked, unless it has ended well."""
    acquired.resuming = True
    file = acquired.path / RECORD_FILE
    if not os.path.lexists(file):
        return
    try:
        record = read_record(file)
        if not has_valid_seal(record) or schema_problem(record) is not None:
            raise RecordError(f"{file}: was changed after the run had written it (content_sha256 differs)")
    except RecordError as error:
        raise RecordError(f"{error}; or move it elsewhere to resume the run") from error
    if record["status"] == "ok":
        acquired.existing_record, acquired.resuming = record, False
    else:
        # The record of a failed attempt is kept under another name.
        archive_file(file)


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a run's folder, oldest first."""
    with suppress(FileNotFoundError):
        entries = (folder / CHECKPOINT_FOLDER).iterdir()
        return sorted(
            int(found[1]) for path in entries if (found := STEP_FOLDER.fullmatch(path.name)) and path.is_dir()
        )
    return []


def _check_same_work(folder: Path, config: Config) -> None:
    """Raise ConfigError if the run in a folder was started with settings that compute something else."""
    file = folder / CONFIG_FILE
    before = _read_config(file)
    # Settings outside the workload, such as the untimed steps, may differ.
    differences = work_differences(before, to_dict(config))
    if differences:
        differing = [f"{key} was {then!r}, now {now!r}" for key, (then, now) in differences.items()]
        raise ConfigError(
            f"resume: {folder} holds a run of another workload than {workload_id(config)}: {'; '.join(differing)}; "
            "resume with the settings that it started with, or choose another out=DIR"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the run in a folder, as nested dictionaries.

    Raises:
        ConfigError: its config.yaml is missing, or not as this harness writes it.
    """
    return _read_config(folder / CONFIG_FILE)


def _read_config(file: Path) -> dict[str, Any]:
    """Return the settings in a run's config.yaml.

    Raises:
        ConfigError: it is not as this harness writes it.
    """
    try:
        text = read_file(file).decode("utf-8")
        _check_yaml(text)
        settings = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}; choose another out=DIR") from error
    if not isinstance(settings, dict) or not settings:
        raise ConfigError(f"{file}: holds no settings; choose another out=DIR")
    return settings


def _check_yaml(text: str) -> None:
    """Raise ValueError for YAML that takes long to read: with aliases, which multiply, or nested too deeply."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_CONFIG_DEPTH:
            raise ValueError("it is nested too deeply")


def _check_checkpoint_link(folder: Path) -> None:
    """Raise ConfigError if the checkpoints' folder is a link whose target is missing: a disk not mounted, say."""
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(
            f"out: {folder} is a link to {os.readlink(folder)}, which does not exist; mount or create it, or remove "
            "the link"
        )


def _acquire_lock(folder: Path, *, resume: bool) -> FolderLock:
    """Create and lock config.yaml, with `resume` also an existing one, until it is released or this process ends."""
    file, remedy = folder / CONFIG_FILE, "choose another out=DIR"
    try:
        return FolderLock(file, new=not resume)
    except FileExistsError as error:
        found = "holds a config.yaml that is a link" if file.is_symlink() else "was taken by another run just now"
        raise ConfigError(f"out: {folder} {found}; {remedy}") from error
    except BlockingIOError as error:
        raise _locked(folder) from error
    except LockUnavailable as error:
        raise ConfigError(
            f"resume: {folder} is on a file system without locks ({error}), so that two processes could resume the "
            "same run; choose out=DIR on another one, or mount it with locks (for Lustre: -o flock)"
        ) from error
    except OSError as error:
        found = "it is a link" if file.is_symlink() else error.strerror
        raise ConfigError(f"out: {file} cannot be opened for writing: {found}; {remedy}") from error


def _locked(folder: Path) -> ConfigError:
    return ConfigError(
        f"out: the run in {folder} is locked by another process; wait until it has ended, or choose another out=DIR"
    )


def create_run_folder(out: str | None, label: str, parent: Path = Path("runs")) -> Path:
    """Create the run's folder and return it. Nothing that exists is ever overwritten.

    Args:
        out: the folder that the user gave, or None for parent/<UTC time>-<label>.

    Raises:
        ConfigError: the folder holds a run already, or cannot be created.
    """
    folder = _make_folder(out, label, parent)
    check_no_existing_run(folder)
    return folder


def _make_folder(out: str | None, label: str, parent: Path) -> Path:
    try:
        if out is None:
            return _create_default_folder(label, parent)
        folder = Path(out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError as error:
        raise ConfigError(
            f"out: cannot create the folder {error.filename or out}: {error.strerror}; choose another out=DIR"
        ) from error


def check_no_existing_run(folder: Path, *, own_config: bool = False) -> None:
    """Raise ConfigError if the folder holds a run, finished or not, repeats of one, or a search over batch sizes.

    Args:
        own_config: this process has created the folder's config.yaml.
    """
    has_config = (folder / CONFIG_FILE).exists() and not own_config
    if has_config and is_locked(folder / CONFIG_FILE):
        raise _locked(folder)
    status = _status(folder)
    remedy = "choose another out=DIR, or delete that folder first"
    if has_config and status not in ("ok", "unknown"):
        if steps := checkpoint_steps(folder):
            remedy = f"add resume=auto to go on from step {steps[-1]}, or choose another out=DIR"
        elif (folder / CONFIG_FILE).stat().st_size:
            remedy = (
                "add resume=auto (and checkpoint.every, if it is not set) to begin it again, or choose another out=DIR"
            )
    if status is not None:
        state = "a finished run" if status in ("ok", "unknown") else f"a run that ended with status {status}"
        raise ConfigError(f"out: {folder} holds {state}; {remedy}")
    if own_config and (folder / STEPS_FILE).exists():
        raise ConfigError(
            f"out: {folder} holds the steps of a run whose {CONFIG_FILE} is missing or empty; restore that file to "
            "resume the run, or choose another out=DIR"
        )
    if has_config or (folder / STEPS_FILE).exists():
        kept = f"; its finished steps are in {STEPS_FILE}" if (folder / STEPS_FILE).exists() else ""
        raise ConfigError(
            f"out: {folder} holds a run that is still running or was interrupted (no {RECORD_FILE}){kept}; {remedy}"
        )
    if (folder / AUTOTUNE_FILE).exists() or any(folder.glob("micro-batch-*")):
        raise ConfigError(f"out: {folder} holds a search (autotune); {remedy}")
    with suppress(FileNotFoundError):
        if any(child.name.isdigit() and child.is_dir() for child in folder.iterdir()):
            raise ConfigError(f"out: {folder} holds the repeats of a run; {remedy}")
    # Fixed names that a run writes: an existing one is an earlier run's, or another program's.
    for name in (ATTEMPTS_FILE, STACKS_FILE, PROFILE_FOLDER, TENSORBOARD_FOLDER, TRACKER_FOLDER):
        if os.path.lexists(folder / name):
            raise ConfigError(f"out: {folder} holds {name}, which a run would overwrite; choose another out=DIR")
    if any((folder / CHECKPOINT_FOLDER).glob("step-*")):
        raise ConfigError(
            f"out: {folder / CHECKPOINT_FOLDER} holds checkpoints of another run; choose another out=DIR, or move them"
        )


def _create_default_folder(label: str, parent: Path) -> Path:
    stamp, label = utc_stamp(), re.sub(r"[^\w.,=+-]+", "-", label)
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = parent / (f"{stamp}-{label}" if number == 1 else f"{stamp}-{label}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ConfigError(f"out: a thousand runs named {stamp}-{label} exist already; give out=DIR")


def _status(folder: Path) -> str | None:
    """Return the status of the record in a folder, "unknown" if it cannot be read, or None if there is none."""
    if not os.path.lexists(folder / RECORD_FILE):
        return None
    try:
        return str(read_record(folder / RECORD_FILE).get("status"))
    except RecordError:
        return "unknown"
