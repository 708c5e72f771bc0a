"""The record: one versioned JSON file that says what was asked, where, what took effect and what came out.

A run's folder holds config.yaml (what was asked, written first), steps.jsonl (a row a step, appended block by
block) and record.json (written once, at the end, atomically). A folder without record.json is an unfinished run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, RecordError, RunFailed

SCHEMA_VERSION = 1
RECORD_FILE = "record.json"
STEPS_FILE = "steps.jsonl"
CONFIG_FILE = "config.yaml"
AUTOTUNE_FILE = "autotune.json"
ATTEMPTS_FILE = "attempts.json"
STACKS_FILE = "hung.txt"
CHECKPOINT_FOLDER = "checkpoints"
PROFILE_FOLDER = "profile"
TENSORBOARD_FOLDER = "tensorboard"
# Of whole numbers in a record: a seed has 64 bits. Of others: losses that blow up come from 32 bits.
MOST_DIGITS = 20
LARGEST_NUMBER = 1e100
STATUSES = (
    "ok",
    "diverged",
    "loss_spike",
    "oom",
    "device_fault",
    "interrupted",
    "failed",
    "rank_lost",
    "hung",
    "ranks_differ",
    "bad_checkpoint",
)


def claim_folder(out: str | None, label: str, parent: Path = Path("runs")) -> Path:
    """Make the run's folder and return it. Nothing that exists is ever overwritten.

    Args:
        out: the folder asked for, or None for parent/<UTC time>-<label>.

    Raises:
        ConfigError: the folder holds a run already, or cannot be made.
    """
    try:
        if out is None:
            return _fresh_default_folder(label, parent)
        folder = Path(out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        refuse_existing_run(folder)
        return folder
    except OSError as error:
        raise ConfigError(
            f"out: cannot make the folder {error.filename or out}: {error.strerror}; choose another out=DIR"
        ) from error


def refuse_existing_run(folder: Path) -> None:
    """Raise ConfigError if the folder holds a run, finished or not, repeats of one, or a search over sizes."""
    remedy = "choose another out=DIR, or delete that folder first"
    if (folder / RECORD_FILE).exists():
        raise ConfigError(f"out: {folder} holds a finished run; {remedy}")
    if (folder / CONFIG_FILE).exists() or (folder / STEPS_FILE).exists():
        raise ConfigError(
            f"out: {folder} holds a run that is under way or was cut off (no {RECORD_FILE}); its finished "
            f"steps are in {STEPS_FILE}; {remedy}"
        )
    if (folder / AUTOTUNE_FILE).exists() or any(folder.glob("micro-batch-*")):
        raise ConfigError(f"out: {folder} holds a search over micro-batch sizes (autotune); {remedy}")
    with suppress(FileNotFoundError):
        if any(child.name.isdigit() and child.is_dir() for child in folder.iterdir()):
            raise ConfigError(f"out: {folder} holds the repeats of a run; {remedy}")
    # What a run writes under a fixed name: one of that name is somebody else's, or an earlier run's.
    for name in (ATTEMPTS_FILE, STACKS_FILE, PROFILE_FOLDER, TENSORBOARD_FOLDER):
        if os.path.lexists(folder / name):
            raise ConfigError(f"out: {folder} holds {name}, which a run would overwrite; choose another out=DIR")
    if any((folder / CHECKPOINT_FOLDER).glob("step-*")):
        raise ConfigError(
            f"out: {folder / CHECKPOINT_FOLDER} holds checkpoints of another run; choose another out=DIR, or move them"
        )


def _fresh_default_folder(label: str, parent: Path) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
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
    """Write config.yaml: the first file of a run, and what claims the folder.

    Raises:
        ConfigError: another process claimed the folder first.
        RunFailed: the disk is full or not writable.
    """
    path = folder / CONFIG_FILE
    try:
        file = open(path, "x", encoding="utf-8")  # noqa: SIM115 (closed below)
    except FileExistsError as error:
        raise ConfigError(f"out: {folder} was taken by another run just now; choose another out=DIR") from error
    except OSError as error:
        raise _write_failure(path, error) from error
    try:
        with file:
            file.write(text)
            _flush_to_disk(file.fileno())
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise _write_failure(path, error) from error


class StepsWriter:
    """Appends finished steps to steps.jsonl, so that a crash loses nothing already done.

    Args:
        done: of a run that goes on from a checkpoint, its step: later rows, which are made again, are dropped.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        self._path = folder / STEPS_FILE
        try:
            if done:
                write_atomically(self._path, _rows_up_to(self._path, done))
            self._file = open(self._path, "a" if done else "x", encoding="utf-8")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise _write_failure(self._path, error) from error

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write one line a row and wait until the disk has them.

        Raises:
            RunFailed: the disk is full or not writable. Rows written before stay readable.
        """
        text = "".join(json.dumps(_finite(row)) + "\n" for row in rows)
        try:
            self._file.write(text)
            self._file.flush()
            _flush_to_disk(self._file.fileno())
        except OSError as error:
            raise _write_failure(self._path, error) from error

    def close(self) -> None:
        # What could not be flushed was reported when it was appended.
        with suppress(OSError):
            self._file.close()


class NoWriter:
    """Stands in for steps.jsonl on the ranks that write nothing."""

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        return None

    def close(self) -> None:
        return None


def _rows_up_to(path: Path, step: int) -> str:
    """Return the lines of the first `step` steps; a last one that was cut off by a crash is not among them."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:step]
    try:
        found = [json.loads(line)["step"] for line in lines]
    except (ValueError, KeyError, TypeError):
        found = []
    if found != list(range(1, step + 1)):
        raise RunFailed(
            f"{path}: does not hold the steps 1 to {step} that the checkpoint goes on from; bring it back, or begin "
            "anew in another out=DIR"
        )
    return "".join(lines)


def write_record(folder: Path, record: dict[str, Any], name: str = RECORD_FILE) -> Path:
    """Write a record atomically: a reader sees the whole file or none. NaN and infinity become null.

    A checksum of the content is added, so that a record that was changed afterwards is not taken for evidence.

    Raises:
        RunFailed: the disk is full or not writable; no partial record is left behind.
    """
    sealed = _finite(record)
    sealed["content_sha256"] = content_digest(sealed)
    return write_atomically(folder / name, json.dumps(sealed, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> Path:
    """Write a file whole or not at all. The file under another name until then is new: no link is followed.

    Raises:
        RunFailed: the disk is full or not writable; no partial file is left behind.
    """
    partial = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    try:
        file = open(partial, "x", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise _write_failure(path, error) from error
    try:
        with file:
            file.write(text)
            file.flush()
            _flush_to_disk(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise _write_failure(path, error) from error
    return path


def refuse_foreign_report(folder: Path, names: Iterable[str], *, marker: str, key: str) -> None:
    """Refuse to write a report over files that are not an earlier report's.

    Args:
        names: of the files that the report consists of.
        marker: name of the JSON file among them that is written first, and so tells whose they are.
        key: of an object in it, which no other program's file of that name has.

    Raises:
        ConfigError: one of the files exists and the marker does not vouch for it.
    """
    existing = [name for name in names if os.path.lexists(folder / name)]
    if not existing:
        return
    try:
        found = json.loads((folder / marker).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or key not in found:
        raise ConfigError(
            f"--out: {folder} holds {existing[0]}, which is not from an earlier report; choose another folder"
        )


def set_aside(path: Path) -> Path:
    """Rename a file to the first free name of NAME-1.SUFFIX, NAME-2.SUFFIX, ..., and return that."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.stem}-{number}{path.suffix}")):
        number += 1
    os.rename(path, kept)
    return kept


def content_digest(record: dict[str, Any]) -> str:
    """Return the SHA-256 of a record's content, `content_sha256` itself left out.

    It guards against slips of an editor and damaged copies, not against forgery: whoever wants to can compute it.
    """
    content = {key: value for key, value in record.items() if key != "content_sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """Read one record, given its file or its run's folder.

    Raises:
        RecordError: it is missing, damaged, of a stranger's making, or of a newer version.
    """
    file = path / RECORD_FILE if path.is_dir() else path
    try:
        record = strict_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        unfinished = path.is_dir() and (path / STEPS_FILE).exists()
        why = "the run is under way or was cut off" if unfinished else "there is no run"
        raise RecordError(f"{file}: no such file: {why}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{file}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise RecordError(f"{file}: not whole JSON (line {error.lineno}); copy it again") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file}: {error}; it was not written by this harness, or was edited") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise RecordError(f"{file}: not a record of this harness: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{file}: schema_version {version} is newer than this harness reads ({SCHEMA_VERSION}); upgrade it"
        )
    return record


def strict_json(text: str) -> Any:
    """Return JSON values, of which every number is one that arithmetic can use.

    Raises:
        ValueError: it is not JSON (then a JSONDecodeError), or has a number that is beyond all measure.
    """
    return json.loads(text, parse_int=_whole_number, parse_float=_number, parse_constant=_number)


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"holds a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    # NaN is below nothing.
    if not abs(value) < LARGEST_NUMBER:
        raise ValueError(f"holds the number {text[:MOST_DIGITS]}")
    return value


def _finite(value: Any) -> Any:
    """Return the value with every NaN and infinity, which JSON lacks, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _flush_to_disk(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and in-memory file systems have no fsync; a full disk must still be heard.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def _write_failure(path: Path, error: OSError) -> RunFailed:
    return RunFailed(
        f"{path}: cannot be written: {error.strerror or error}; free some space or choose another out=DIR "
        "(what was written before is kept)"
    )
