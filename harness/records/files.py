"""Reading and writing of own files: whole or not at all, never through a link, JSON with a checksum."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import ConfigError, RunFailed
from harness.schemas import MAX_INTEGER, MAX_NUMBER

# An integer in a record: a seed has 64 bits.
MAX_DIGITS = len(str(MAX_INTEGER))
# A larger file would fill the memory; the manifest of a million steps has a fifth of this.
MAX_FILE_BYTES = 1 << 30


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


def replace_file(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a complete file or none, through a new file under a temporary name, so that no link is followed.

    Args:
        durable: wait until the file is on disk; not for one that is replaced every few seconds.

    Raises:
        OSError: the disk is full or not writable; no partial file is left behind.
    """
    partial = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    with open(partial, "x", encoding="utf-8") as file:
        try:
            file.write(text)
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


def content_digest(record: dict[str, Any]) -> str:
    """Return the SHA-256 of a record's content without `content_sha256` itself.

    It detects accidental edits and damaged copies, not forgery: anybody can compute it.
    """
    content = {key: value for key, value in record.items() if key != "content_sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum `content_sha256`."""
    return {**content, "content_sha256": content_digest(content)}


def has_valid_seal(content: dict[str, Any]) -> bool:
    """Return whether a JSON object is as `seal` made it."""
    return content.get("content_sha256") == content_digest(content)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """Open a regular file. A named pipe or a device could block, or never end.

    Args:
        flags: of os.open. With O_RDWR, a link is not followed.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    guard = os.O_NONBLOCK | (os.O_NOFOLLOW if flags & os.O_RDWR else 0)
    descriptor = os.open(path, flags | guard)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "rb")


def read_file(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger than any file of this harness.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"has {size} bytes, expected at most {MAX_FILE_BYTES}", str(path))
        return file.read(MAX_FILE_BYTES)


def load_json(path: Path, parse: Callable[[str], Any] = json.loads) -> Any:
    """Return the JSON value in a regular file.

    Args:
        parse: `strict_json` for a file whose numbers are used.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is not UTF-8 (a UnicodeDecodeError) or not JSON (a JSONDecodeError), or is nested too deeply.
    """
    text = read_file(path).decode("utf-8")
    try:
        return parse(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def strict_json(text: str) -> Any:
    """Parse JSON in which every number is finite and of a plausible size.

    Raises:
        ValueError: it is not JSON (then a JSONDecodeError), or holds NaN, infinity or an absurdly large number.
    """
    return json.loads(text, parse_int=_parse_int, parse_float=_parse_float, parse_constant=_parse_float)


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"holds a number of {len(text)} digits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    # Every comparison with NaN is false.
    if not abs(value) < MAX_NUMBER:
        raise ValueError(f"holds the number {text[:MAX_DIGITS]}")
    return value


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
