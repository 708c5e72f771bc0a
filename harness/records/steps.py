"""steps.jsonl: one row per optimizer step, appended after every interval."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import RunFailed
from harness.records.files import flush_to_disk, replace_nonfinite, write_atomically, write_failure

STEPS_FILE = "steps.jsonl"


class StepsWriter:
    """Appends finished steps to steps.jsonl, so that a crash loses none of them.

    Args:
        done: the step of the checkpoint that the run is resumed from; later rows are dropped, since their steps are
            trained again.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        self._path = folder / STEPS_FILE
        try:
            if done:
                write_atomically(self._path, _rows_up_to(self._path, done))
            self._file = open(self._path, "a" if done else "x", encoding="utf-8")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise write_failure(self._path, error) from error

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write one line per row and wait until they are on disk.

        Raises:
            RunFailed: the disk is full or not writable. Rows written before stay readable.
        """
        text = "".join(json.dumps(replace_nonfinite(row)) + "\n" for row in rows)
        try:
            self._file.write(text)
            self._file.flush()
            flush_to_disk(self._file.fileno())
        except OSError as error:
            raise write_failure(self._path, error) from error

    def close(self) -> None:
        # An error of the flush was raised by append.
        with suppress(OSError):
            self._file.close()


def _rows_up_to(path: Path, step: int) -> str:
    """Return the lines of the first `step` steps, without a partial last line that a crash left."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:step]
    try:
        found = [json.loads(line)["step"] for line in lines]
    except (ValueError, KeyError, TypeError):
        found = []
    if found != list(range(1, step + 1)):
        raise RunFailed(
            f"{path}: does not hold the steps 1 to {step} that precede the checkpoint; restore the file, or start "
            "again in another out=DIR"
        )
    return "".join(lines)
