"""steps.jsonl: one row per optimizer step, appended after every interval."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from harness.records.files import flush_to_disk, replace_nonfinite, write_failure
from harness.regular_files import open_regular

STEPS_FILE = "steps.jsonl"


class StepsWriter:
    """Appends finished steps to steps.jsonl, so that a crash loses none of them.

    Args:
        done: the step of the checkpoint that the run is resumed from, which has verified the rows up to there; later
            rows are dropped, since their steps are trained again.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        self._path = folder / STEPS_FILE
        try:
            if done:
                self._file = open_regular(self._path, os.O_RDWR)
                self._file.truncate(_read_rows(self._file, done).bytes)
                self._file.seek(0, os.SEEK_END)
            else:
                self._file = open(self._path, "xb")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise write_failure(self._path, error) from error

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write one line per row and wait until they are on disk.

        Raises:
            RunFailed: the disk is full or not writable. Rows written before stay readable.
        """
        text = "".join(json.dumps(replace_nonfinite(row)) + "\n" for row in rows)
        try:
            self._file.write(text.encode())
            self._file.flush()
            flush_to_disk(self._file.fileno())
        except OSError as error:
            raise write_failure(self._path, error) from error

    def close(self) -> None:
        # An error of the flush was raised by append.
        with suppress(OSError):
            self._file.close()


def steps_digest(folder: Path, steps: int) -> str | None:
    """Return the SHA-256 of the rows of the first `steps` steps, or None if there are not as many.

    A checkpoint holds it, so that a resumed run does not go on with rows that were damaged or edited.

    Raises:
        OSError: steps.jsonl cannot be read.
    """
    with open_regular(folder / STEPS_FILE) as file:
        rows = _read_rows(file, steps)
    return rows.sha256 if rows.number == steps else None


class _Rows(NamedTuple):
    number: int
    bytes: int
    sha256: str


def _read_rows(file: BinaryIO, steps: int) -> _Rows:
    """Read the first `steps` complete lines: a crash may leave part of a last one."""
    digest, number, size = hashlib.sha256(), 0, 0
    for line in islice(file, steps):
        if line.endswith(b"\n"):
            digest.update(line)
            number, size = number + 1, size + len(line)
    return _Rows(number, size, digest.hexdigest())
