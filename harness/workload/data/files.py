"""Files of a data set: those below a folder in a fixed order, links followed, and a count of all that is left out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from harness.errors import DataError
from harness.file_formats import special_file


class Unusable(NamedTuple):
    """A file that is no data, with words for the record, for an error message, and the remedy."""

    kind: str
    found: str
    remedy: str


@dataclass
class FoundFiles:
    """The files of a folder that match a pattern, and what is left out."""

    paths: list[Path] = field(default_factory=list)
    """Files to read, in the order of their relative POSIX paths."""
    unusable: dict[Path, Unusable] = field(default_factory=dict)
    """Matching names that lead to no regular file."""
    not_matched: int = 0
    """Files that do not match the pattern."""
    repeated: int = 0
    """Symbolic links to a file or folder that is read under another name."""


def regular_file(path: Path, key: str, expected: str) -> os.stat_result:
    """Return the status of a file that can be opened without waiting for anybody.

    Args:
        key: setting that names it.
        expected: kind of file, for the message about another.

    Raises:
        DataError: it does not exist, or is a folder, a FIFO, a socket or a device.
    """
    try:
        kind = "a folder" if path.is_dir() else special_file(path)
        if kind is not None:
            raise DataError(f"{path}: is {kind}, expected {expected}; name the file in {key}")
        return path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; check {key} and permissions") from error


def find_files(path: Path, pattern: str, key: str = "data.path") -> FoundFiles:
    """Return the file itself, or the matching files below a folder in an order that is the same on every file system.

    Symbolic links are followed. What several names lead to is read once: under the name without a link if there is
    one, so that links among the files change nothing, and loops end.

    Args:
        pattern: file-name pattern, matched at the end of the relative path; `**` stands for any number of folders.
        key: setting that an error message names.

    Raises:
        DataError: there is none, or a folder cannot be read.
    """
    try:
        if not path.is_dir():
            regular_file(path, key, "a file or folder")
            return FoundFiles([path])
        found = _matching(path, _pattern_parts(pattern))
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror}; check its permissions") from error
    if not found.paths and not found.unusable:
        raise DataError(
            f"{path}: no file below it matches data.glob={pattern!r}, of {found.not_matched}; change data.glob or {key}"
        )
    return found


def check_separate(train: Sequence[Path], held_out: Sequence[Path], *, same_content: bool) -> None:
    """Check that no file is both trained on and held out.

    Args:
        same_content: whether both hold the same data under different names.

    Raises:
        DataError: one is; the evaluation loss would measure memory.
    """
    trained = {_identity(path) for path in train}
    shared = next((path for path in held_out if _identity(path) in trained), None)
    if shared is None and same_content:
        shared = held_out[0]
    if shared is not None:
        raise DataError(
            f"data.eval_path: {shared} is part of data.path too, so that held-out data would be trained on; name other "
            "data, or leave data.eval_path out to hold out data.eval_fraction of data.path"
        )


def _identity(path: Path) -> tuple[int, int] | str:
    """Return what is the same for every name of a file; some network file systems number no inodes."""
    status = path.stat()
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _pattern_parts(pattern: str) -> list[str]:
    parts = list(PurePosixPath(pattern).parts)
    if not parts or pattern.startswith("/") or ".." in parts:
        raise DataError(f"data.glob: found {pattern!r}, expected a file-name pattern such as '*.txt'")
    return ["**", *parts]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _matching(root: Path, pattern: list[str]) -> FoundFiles:
    found, read = FoundFiles(), set[str]()
    for path, real in _Walk(root, found):
        if not _matches(path.relative_to(root).parts, pattern):
            found.not_matched += 1
        elif real in read:
            found.repeated += 1
        elif (reason := _unusable(path)) is not None:
            found.unusable[path] = reason
        else:
            read.add(real)
            found.paths.append(path)
    found.paths.sort(key=lambda item: item.relative_to(root).as_posix())
    return found


def _unusable(path: Path) -> Unusable | None:
    try:
        kind = special_file(path)
        return None if kind is None else Unusable(kind, f"is {kind}", "remove it")
    except OSError:
        if not path.is_symlink():
            raise
    target = os.readlink(path)
    remedy = "fetch it with git annex get" if "annex/objects/" in target else "remove or repair the link"
    return Unusable("a broken symbolic link", f"is a symbolic link to {target}, which is not there", remedy)


class _Walk:
    """Iteration over (path, path without links) of all that is no folder; names without a link come first."""

    def __init__(self, root: Path, found: FoundFiles) -> None:
        self._root, self._real_root, self._found = root, os.path.realpath(root), found
        self._seen: set[str] = set()
        self._links: deque[Path] = deque()

    def __iter__(self) -> Iterator[tuple[Path, str]]:
        yield from self._folder(self._root, self._real_root)
        while self._links:
            link = self._links.popleft()
            real = os.path.realpath(link)
            if not link.is_dir():
                yield link, real
            elif self._real_root.startswith(os.path.join(real, "")):
                raise DataError(f"{link}: is a symbolic link to {real}, which contains {self._root}; remove the link")
            else:
                yield from self._folder(link, real)

    def _folder(self, top: Path, real_top: str) -> Iterator[tuple[Path, str]]:
        waiting = [(top, real_top)]
        while waiting:
            folder, real = waiting.pop()
            if real in self._seen:
                self._found.repeated += 1
                continue
            self._seen.add(real)
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda item: item.name):
                    if entry.is_symlink():
                        self._links.append(folder / entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append((folder / entry.name, os.path.join(real, entry.name)))
                    else:
                        yield folder / entry.name, os.path.join(real, entry.name)
