"""Loading of records from the paths that a user gives: record files, run folders, folders of repeats, bundles."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.file_formats import special_file
from harness.records.bundle import is_bundle, read_bundle
from harness.records.files import measurement_digest, unreadable
from harness.records.record import RECORD_FILE, read_record
from harness.records.run_folder import AUTOTUNE_FILE, CONFIG_FILE
from harness.records.schema import record_problems
from harness.records.steps import STEPS_FILE

MAX_FOLDER_DEPTH = 3
# Folders below which no record counts: runs put aside, searches, checkpoints.
NOT_SEARCHED = ("interrupted", "autotune", "checkpoints", "profile", "tensorboard", "tracker")


@dataclass(frozen=True)
class LoadedRecord:
    """A run's record and the file that it was read from."""

    path: Path
    record: dict[str, Any]


def get_path(record: Any, *keys: str) -> Any:
    """Return record[key1][key2]..., or None where a key is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def shown_speed(record: dict[str, Any]) -> float | None:
    """Return a run's tokens/s; None if it measured none, or its device is emulated, whose speed says nothing."""
    return None if get_path(record, "device", "emulated") else get_path(record, "timing", "tokens_per_second")


def load_runs(path: Path) -> tuple[LoadedRecord, ...]:
    """Read every record below a path, in the natural order of the folders' names.

    Raises:
        RecordError: there is none, a run is unfinished, or a record is damaged, edited or inconsistent.
    """
    return tuple(LoadedRecord(file, _checked(file, found)) for file, found in _records_at(path, record_files))


def record_files(path: Path) -> list[Path]:
    """Return the record files below a path; an unfinished run among them is an error, never skipped."""
    try:
        return _record_files(path)
    except OSError as error:
        raise unreadable(Path(error.filename or path), error) from error


def _record_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.exists() and (kind := special_file(path)) is not None:
        raise RecordError(f"{path}: is {kind}, expected a run's folder, a folder of runs, or a record.json")
    if not path.is_dir():
        raise RecordError(f"{path}: no such file or folder; give a run's folder, a folder of runs, or a record.json")
    found = list(_search(path, MAX_FOLDER_DEPTH))
    if not found:
        raise RecordError(f"{path}: holds no run, nor do its sub-folders; give the folder named by out=")
    return found


def _search(folder: Path, depth: int) -> Iterable[Path]:
    if (folder / RECORD_FILE).is_file():
        yield folder / RECORD_FILE
        return
    if (folder / CONFIG_FILE).exists() or (folder / STEPS_FILE).exists():
        raise RecordError(
            f"{folder}: the run is still running or was interrupted (no {RECORD_FILE}); wait for it, run "
            "it again, or move the folder away"
        )
    if (folder / AUTOTUNE_FILE).exists():
        raise RecordError(
            f"{folder}: holds a search (autotune), not repeats of one run; give one of its folders "
            f"({AUTOTUNE_FILE} names the fastest)"
        )
    if depth > 0:
        for child in sorted((item for item in folder.iterdir() if item.is_dir()), key=_natural_key):
            yield from _search(child, depth - 1)


def load_tree(paths: Sequence[Path]) -> tuple[list[LoadedRecord], list[str]]:
    """Read every record below some folders, however deep, and return them with what could not be read.

    Unlike `load_runs` it leaves out what is unfinished or damaged, with a line that says so, since one of a thousand
    records should not hide the others. Interrupted runs that a comparison or a suite has put aside are not looked for.

    Raises:
        RecordError: a path does not exist, or there is no record below any.
    """
    runs, problems, seen = list[LoadedRecord](), list[str](), set[str]()
    for path in paths:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise RecordError(f"{path}: no such file or folder; give folders of runs, or record.json files") from None
        except OSError as error:
            raise unreadable(path, error) from error

        def files_of(path: Path) -> list[Path]:
            return _files_in_order(path, problems)

        for file, found in _records_at(path, files_of):
            try:
                record = _checked(file, found)
            except RecordError as error:
                problems.append(str(error))
                continue
            if (digest := measurement_digest(record)) in seen:
                problems.append(f"{file}: the same record as another one; it counts once")
                continue
            seen.add(digest)
            runs.append(LoadedRecord(file, record))
    if not runs:
        first = f": {problems[0]}" if problems else "; give the folders named by out="
        raise RecordError(f"{', '.join(map(str, paths))}: found no record to use{first}")
    return runs, problems


def _files_in_order(path: Path, problems: list[str]) -> list[Path]:
    return [path] if os.path.isfile(path) else sorted(_record_files_below(path, problems), key=_natural_path)


def _record_files_below(folder: Path, problems: list[str]) -> Iterable[Path]:
    """Yield the record files below a folder and what links in it lead to, and add the folders that cannot be read.

    A folder counts once, under its own name if that is below the folder too.
    """
    seen = set[str]()

    def add_problem(error: OSError) -> None:
        problems.append(str(unreadable(Path(error.filename), error)))

    waiting = [str(folder)]
    while waiting:
        links = list[str]()
        for start in sorted(waiting):
            for place, folders, files in os.walk(start, onerror=add_problem):
                paths = {name: os.path.join(place, name) for name in folders
                         if name not in NOT_SEARCHED and not name.startswith(".")}  # fmt: skip
                if (real := os.path.realpath(place)) in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = [name for name, path in paths.items() if not os.path.islink(path)]
                links += [path for path in paths.values() if os.path.islink(path)]
                if RECORD_FILE in files:
                    yield Path(place) / RECORD_FILE
        waiting = links


def _records_at(
    path: Path, files_of: Callable[[Path], Iterable[Path]]
) -> Iterator[tuple[Path, dict[str, Any] | RecordError]]:
    """Yield the records of a bundle, or those of the files at a path, or why one cannot be read."""
    if is_bundle(path):
        try:
            yield from read_bundle(path)
        except RecordError as error:
            yield path, error
        return
    for file in files_of(path):
        try:
            yield file, read_record(file)
        except RecordError as error:
            yield file, error


def _natural_path(path: Path) -> list[list[tuple[int, str]]]:
    return [_natural_key(part) for part in path.parents[::-1]]


def _natural_key(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _checked(file: Path, found: dict[str, Any] | RecordError) -> dict[str, Any]:
    if isinstance(found, RecordError):
        raise found
    for problem in record_problems(found):
        raise RecordError(f"{file}: {problem}")
    return found
