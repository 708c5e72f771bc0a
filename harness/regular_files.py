"""Reading of files that anybody may have written: regular ones only, within a size, JSON with plausible numbers."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from harness.schemas import MAX_INTEGER, MAX_NUMBER

# An integer in a record: a seed has 64 bits.
MAX_DIGITS = len(str(MAX_INTEGER))
# A larger file would fill the memory; the manifest of a million steps has a fifth of this.
MAX_FILE_BYTES = 1 << 30


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
    return parse_json(read_file(path), parse)


def parse_json(content: bytes, parse: Callable[[str], Any] = json.loads) -> Any:
    """Return the JSON value in a file's content; arguments and errors are those of `load_json`."""
    text = content.decode("utf-8")
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
