"""Files that are whole or absent, and JSON whose numbers are finite."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, RunFailed

# Of whole numbers in a record: a seed has 64 bits. Of others: losses that blow up come from 32 bits.
MAX_DIGITS = 20


MAX_NUMBER = 1e100


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


def archive_file(path: Path) -> Path:
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


def strict_json(text: str) -> Any:
    """Return JSON values, of which every number is one that arithmetic can use.

    Raises:
        ValueError: it is not JSON (then a JSONDecodeError), or has a number that is beyond all measure.
    """
    return json.loads(text, parse_int=_whole_number, parse_float=_number, parse_constant=_number)


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"holds a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    # NaN is below nothing.
    if not abs(value) < MAX_NUMBER:
        raise ValueError(f"holds the number {text[:MAX_DIGITS]}")
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
