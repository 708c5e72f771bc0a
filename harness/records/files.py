"""Writing of own files: whole or not at all, never through a link, JSON with a checksum."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, RecordError, RunFailed
from harness.regular_files import load_json


def write_atomically(path: Path, text: str) -> Path:
    """Write a complete file or none, and wait until it is on disk. No link is followed.

    Raises:
        RunFailed: the disk is full or not writable; no partial file is left behind.
    """
    try:
        replace_file(path, text, durable=True)
    except OSError as error:
        raise write_failure(path, error) from error
    return path


def write_with_folders(path: Path, content: bytes, option: str) -> None:
    """Write a complete file or none, with the folders that it is in, and wait until it is on disk.

    Args:
        option: which names the file, for the message.

    Raises:
        RunFailed: it cannot be written; no partial file is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content, durable=True)
    except OSError as error:
        raise RunFailed(f"{path}: cannot be written: {error.strerror or error}; choose another {option}") from error


def replace_file(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a complete file or none, through a new file under a temporary name, so that no link is followed.

    Args:
        content: a text is written as UTF-8.
        durable: wait until the file is on disk; not for one that is replaced every few seconds.

    Raises:
        OSError: the disk is full or not writable; no partial file is left behind.
    """
    partial = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    with open(partial, "xb") as file:
        try:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                flush_to_disk(file.fileno())
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise
    if durable:
        sync_folder(path.parent)


def check_report_folder(folder: Path, names: Iterable[str], *, marker: str, key: str) -> None:
    """Check that a report overwrites only the files of an earlier report.

    Args:
        names: of the report's files.
        marker: name of the JSON file among them that is written first.
        key: a key of the object in it, which no other program's file of that name has.

    Raises:
        ConfigError: one of the files exists, but no marker with that key.
    """
    existing = [name for name in names if os.path.lexists(folder / name)]
    if not existing:
        return
    try:
        found = load_json(folder / marker)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or key not in found:
        raise ConfigError(
            f"--out: {folder} holds {existing[0]}, which is not from an earlier report; choose another folder"
        )


def archive_file(path: Path) -> Path:
    """Rename a file to the first free name of NAME-1.SUFFIX, NAME-2.SUFFIX, ..., and return that."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.stem}-{number}{path.suffix}")):
        number += 1
    os.rename(path, kept)
    return kept


def to_json_text(value: Any, indent: str = "") -> str:
    """Return an indented JSON text in which a list of numbers is one line, and so is each flat object of a list.

    A curve of a million numbers is shorter so than with a line for each.
    """
    inner = indent + " "
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(str(key))}: {to_json_text(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        lines = [json.dumps(item) if _is_flat(item) else to_json_text(item, inner) for item in value]
        return "[\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}]"
    return json.dumps(value, separators=(",", ": "))


def _is_flat(value: Any) -> bool:
    return isinstance(value, dict) and not any(isinstance(item, dict | list) for item in value.values())


def content_digest(record: dict[str, Any]) -> str:
    """Return the SHA-256 of a record's content without `content_sha256` itself.

    It detects accidental edits and damaged copies, not forgery: anybody can compute it.
    """
    content = {key: value for key, value in record.items() if key != "content_sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def measurement_digest(record: Mapping[str, Any]) -> str:
    """Return a digest of a run's measurements, the same of its record and of a redacted copy, and of no other run.

    A run without any has that of its whole record: others may have failed in the same second.
    """
    seconds = [interval["seconds"] for interval in record["timing"]["intervals"]]
    if not seconds:
        return str(record["content_sha256"])
    return hashlib.sha256(repr([record["started_at"], seconds, record["losses"]["train"]]).encode()).hexdigest()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum `content_sha256`."""
    return {**content, "content_sha256": content_digest(content)}


def has_valid_seal(content: dict[str, Any]) -> bool:
    """Return whether a JSON object is as `seal` made it."""
    return content.get("content_sha256") == content_digest(content)


def replace_nonfinite(value: Any) -> Any:
    """Return the value with None in place of every NaN and infinity, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(item) for item in value]
    return value


def flush_to_disk(descriptor: int) -> None:
    """Call fsync, where the file system has it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and in-memory file systems have no fsync; a full disk must still be reported.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def write_failure(path: Path, error: OSError) -> RunFailed:
    """Return the failure to raise when a file of the run cannot be written."""
    return RunFailed(
        f"{path}: cannot be written: {error.strerror or error}; free some space or choose another out=DIR "
        "(earlier files are kept)"
    )


def unreadable(path: Path, error: OSError) -> RecordError:
    """Return the error of a path that cannot be read."""
    return RecordError(f"{path}: cannot be read: {error.strerror or error}; check its permissions")
