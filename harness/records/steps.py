"""steps.jsonl: a row for each optimizer step, appended as intervals are done."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import RunFailed
from harness.records.files import _finite, _flush_to_disk, _write_failure, write_atomically

STEPS_FILE = "steps.jsonl"


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
