"""Documents in files: a text file is one document; a line of JSON lines and a row of Parquet are one each.

Files that are compressed are read as what they hold: notes.txt.gz as text, corpus.jsonl.zst as JSON lines.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import DataError
from harness.file_formats import foreign_format, read_head
from harness.text import shortened
from harness.workload.data.files import Unusable

T = TypeVar("T")
# Files are read in blocks, since a string of a whole file may take four bytes for each of its characters.
BLOCK_BYTES = 1 << 16
_PARQUET_ROWS = 1024
MAX_FIRST_LINE_BYTES = 1 << 20
# Of zstd --long=31: its history, of which some dumps need 2 GiB.
_MAX_WINDOW_BYTES = 1 << 31
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
# By the name's last suffix, which is not part of the name of what is inside.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# What `foreign_format` calls files that are what their suffix says.
_FORMATS = {
    ".gz": "a gzip file",
    ".bz2": "a bzip2 file",
    ".xz": "an xz file",
    ".zst": "a Zstandard file",
    PARQUET: "a Parquet file",
}


class NotTextError(Exception):
    """A file holds no text, or not as its name says."""

    def __init__(self, kind: str, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found = Unusable(kind, found, remedy)


def read_documents(file: Path, field: str) -> Iterator[Iterable[bytes]]:
    """Yield the documents of a file, each in blocks of UTF-8; of a file of text, the blocks are the file's own.

    Args:
        field: of a line or row that holds its text.

    Raises:
        OSError: the file cannot be read.
        NotTextError: it is not what its name says, is damaged, or has no such field.
        DataError: a package that reads it is missing.
    """
    foreign = foreign_format(read_head(file), file.name)
    if foreign is not None and foreign[0] != _FORMATS.get(file.suffix.lower()):
        raise NotTextError(foreign[0], f"is {foreign[0]}", foreign[1])
    kind = kind_of(file)
    if kind == PARQUET:
        if file.suffix.lower() in COMPRESSED:
            raise NotTextError("a compressed Parquet file", "is a compressed Parquet file", "decompress it")
        yield from _parquet_rows(file, field)
        return
    if kind == ".json" and _begins_with_a_row(file, field):
        own = file.name[: -len(file.suffix)] if file.suffix.lower() in COMPRESSED else file.name
        name = f"{own[: -len('.json')]}.jsonl{file.name[len(own) :]}"
        found = f"begins as JSON lines do, with an object that has {field!r}"
        raise NotTextError("JSON lines of another name", found, f"name it {name}")
    with _Stream(file) as stream:
        if kind in JSON_LINES:
            yield from _json_lines(stream.lines(), field)
        else:
            yield stream.blocks()


def kind_of(file: Path) -> str:
    """Return the suffix that names what a file holds, in lower case."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_plain_text(file: Path) -> bool:
    """Return whether the whole file is one document."""
    return kind_of(file) not in (*JSON_LINES, PARQUET)


class _Stream:
    """The bytes of a file, through a decompressor if its name says that it is compressed."""

    def __init__(self, file: Path) -> None:
        self._suffix = file.suffix.lower() if file.suffix.lower() in COMPRESSED else ""
        opener, self._broken = _decompressor(self._suffix, file)
        self._stream = self._call(opener, file, "rb")

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def blocks(self) -> Iterator[bytes]:
        return iter(lambda: self._call(self._stream.read, BLOCK_BYTES), b"")

    def first_line(self) -> bytes:
        """Return the first line, or the beginning of a very long one."""
        return self._call(self._stream.readline, MAX_FIRST_LINE_BYTES)

    def lines(self) -> Iterator[bytes]:
        return iter(lambda: self._call(self._stream.readline), b"")

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return function(*arguments)
        except self._broken as error:
            # Of the disk, not of the content.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            found = f"is no complete {self._suffix} file: {shortened(str(error))}"
            raise NotTextError(f"a damaged {self._suffix} file", found, "copy it again") from error


def _decompressor(suffix: str, file: Path) -> tuple[Callable[..., Any], tuple[type[Exception], ...]]:
    """Return what opens a file with a suffix of COMPRESSED or none, and the errors of one that is damaged."""
    if suffix == ".gz":
        import gzip

        return gzip.open, (OSError, EOFError, zlib.error)
    if suffix == ".bz2":
        import bz2

        return bz2.open, (OSError, EOFError, ValueError)
    if suffix == ".xz":
        import lzma

        return lzma.open, (EOFError, lzma.LZMAError)
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise DataError(f"{file}: needs the package zstandard; pip install zstandard") from error

        return lambda *_: io.BufferedReader(_Frames(file)), (zstandard.ZstdError, EOFError)
    return open, ()


class _Frames(io.RawIOBase):
    """Decompresses Zstandard frames one after another. The package's own reader takes a truncated file for its end."""

    def __init__(self, file: Path) -> None:
        import zstandard

        self._file = open(file, "rb")  # noqa: SIM115 (closed by `close`)
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any, /) -> int:
        while not self._ready:
            unused = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = unused or self._file.read(BLOCK_BYTES)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._ready = self._frame.decompress(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _begins_with_a_row(file: Path, field: str) -> bool:
    """Return whether the first line is a JSON object with a field: then the file is not one text."""
    with _Stream(file) as stream:
        try:
            row = json.loads(stream.first_line())
        except (ValueError, RecursionError):
            return False
    return isinstance(row, dict) and field in row


def _json_lines(lines: Iterator[bytes], field: str) -> Iterator[Iterable[bytes]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else shortened(str(error))
            raise NotTextError(
                "damaged JSON lines", f"line {number} is no JSON: {reason}", "repair or remove the line"
            ) from error
        yield _blocks(_text(row, field, f"line {number}"))


def _text(row: Any, field: str, place: str) -> str:
    if not isinstance(row, dict):
        raise NotTextError("other JSON", f"{place} is no object with the field {field!r}", "write one object a line")
    if field not in row:
        raise _no_field(field, list(row), place)
    text = row[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise NotTextError("other JSON", f"{place}: {field} holds {type(text).__name__}", "name a text in data.field")
    return text


def _no_field(field: str, known: list[str], place: str) -> NotTextError:
    names = shortened(", ".join(map(str, known))) or "none"
    return NotTextError("other fields", f"{place} has no field {field!r}, found: {names}", "name one in data.field")


def _blocks(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), BLOCK_BYTES):
        # JSON may hold half of a surrogate pair, which no text has.
        yield text[start : start + BLOCK_BYTES].encode(errors="surrogatepass")


def _parquet_rows(file: Path, field: str) -> Iterator[Iterable[bytes]]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{file}: needs the package pyarrow; pip install pyarrow") from error
    try:
        # Its buffering ahead would hold the whole file in memory.
        with open(file, "rb") as opened, parquet.ParquetFile(opened, pre_buffer=False) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise _no_field(field, names, "it")
            kind = table.schema_arrow.field(field).type
            if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise NotTextError("another column", f"{field} holds {kind}", "name a text in data.field")
            for batch in table.iter_batches(_PARQUET_ROWS, columns=[field]):
                for text in batch.column(0):
                    yield _blocks(text.as_py() or "")
    except (arrow.ArrowException, OSError) as error:
        # Arrow has plain OSErrors for damaged pages, without the number that those of the disk have.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = shortened(str(error))
        raise NotTextError(
            "a damaged Parquet file", f"is no complete Parquet file: {reason}", "copy it again"
        ) from error
