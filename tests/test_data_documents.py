"""Documents in JSON lines, Parquet and compressed files."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
import zstandard
from pyarrow import parquet

from harness.errors import DataError
from tests.test_data_text import open_text, tokens_of, write
from tests.test_file_formats import LFS

TEXTS = ["one", "zwei äöü", "", "three\nlines\n", "x" * 200_000]
TOKENS = [byte for text in TEXTS if text for byte in (*text.encode(), 0)]


def json_lines(texts: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": n, field: text}).encode() + b"\n" for n, text in enumerate(texts))


def parquet_file(file: Path, texts: list[Any], field: str = "text", **options: Any) -> Path:
    parquet.write_table(arrow.table({"id": list(range(len(texts))), field: texts}), file, **options)
    return file


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
ALL = pytest.mark.parametrize("suffix", COMPRESSORS)


@ALL
@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.ndjson"])
def test_lines_of_json_are_documents(name: str, suffix: str, tmp_path: Path) -> None:
    write(tmp_path, {name + suffix: COMPRESSORS[suffix](json_lines(TEXTS))})
    assert tokens_of(tmp_path) == TOKENS
    found = open_text(tmp_path).describe()
    assert (found["documents"], found["documents_empty"], found["files_read"]) == (4, 1, 1)
    assert found["characters"] == sum(map(len, TEXTS))


@ALL
def test_a_compressed_text_is_the_text(suffix: str, tmp_path: Path) -> None:
    text = "ä" * 100_000
    one = write(tmp_path / "one", {f"a.txt{suffix}": COMPRESSORS[suffix](text.encode())})
    assert tokens_of(one) == [*text.encode(), 0]
    plain = write(tmp_path / "plain", {"a.txt": text})
    assert open_text(plain).describe()["content_sha256"] == open_text(one).describe()["content_sha256"]


def test_frames_one_after_another(tmp_path: Path) -> None:
    content = b"".join(zstandard.compress(part) for part in (b"a" * 100_000, b"", b"b"))
    write(tmp_path, {"a.txt.zst": content})
    assert tokens_of(tmp_path) == list(b"a" * 100_000 + b"b\0")


@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "row_group_size": 2}])
def test_rows_of_parquet_are_documents(options: dict[str, Any], tmp_path: Path) -> None:
    parquet_file(tmp_path / "a.parquet", [*TEXTS, None], **options)
    assert tokens_of(tmp_path) == TOKENS
    assert open_text(tmp_path).describe()["documents"] == 4


def test_another_field(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": json_lines(["a"], "body")})
    parquet_file(tmp_path / "b.parquet", ["b"], "body")
    assert tokens_of(tmp_path, field="body") == list(b"a\0b\0")


def test_where_a_document_ends_is_part_of_the_content(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a.jsonl": json_lines(["ab", "c"])})
    other = write(tmp_path / "other", {"a.jsonl": json_lines(["a", "bc"])})
    assert open_text(one).describe()["content_sha256"] != open_text(other).describe()["content_sha256"]


def test_kinds_together(tmp_path: Path) -> None:
    write(tmp_path, {"b.jsonl": json_lines(["b"]), "a.txt": "a", "d.txt.gz": gzip.compress(b"d")})
    parquet_file(tmp_path / "c.parquet", ["c"])
    assert tokens_of(tmp_path) == list(b"a\0b\0c\0d\0")


TRUNCATED = {name: compress(json_lines(TEXTS))[:-20] for name, compress in COMPRESSORS.items() if name}
BAD: dict[str, tuple[str, bytes, str]] = {
    **{
        f"a truncated {suffix} file": (f"a.jsonl{suffix}", content, rf"is no complete \{suffix} file")
        for suffix, content in TRUNCATED.items()
    },
    "no gzip": ("a.txt.gz", b"plain text", r"is no complete \.gz file: Not a gzipped file"),
    "no Zstandard": ("a.txt.zst", b"plain text", r"is no complete \.zst file"),
    "a broken line": ("a.jsonl", b'{"text": "a"}\n\n{"text": "b\n', r"a.jsonl: line 3 is no JSON: Invalid control"),
    "no object": ("a.jsonl", b'"text"\n', r"line 1 is no object with the field 'text'"),
    "no field": (
        "a.jsonl",
        json_lines(["a"], "body"),
        r"line 1 has no field 'text', found: id, body, expected UTF-8",
    ),
    "a number": (
        "a.jsonl",
        b'{"text": 3}\n',
        r"line 1: text holds int, expected UTF-8 text; name a text",
    ),
    "nested": ("a.jsonl", b"[" * 100_000, r"line 1 is no JSON: nested too deeply"),
    "half a surrogate pair": ("a.jsonl", b'{"text": "\\ud800"}\n', r"not UTF-8 text at byte 0"),
    "a NUL": ("a.jsonl", b'{"text": "a\\u0000"}\n', r"holds a NUL at byte 1"),
    "no Parquet": ("a.parquet", b"PAR1, it says", r"is no complete Parquet file"),
    "a pointer as JSON lines": ("a.jsonl", LFS, r"a\.jsonl: is a pointer file of Git LFS.*git lfs pull"),
    "a pointer as Parquet": ("a.parquet", LFS, "is a pointer file of Git LFS"),
    "a pointer as gzip": ("a.txt.gz", LFS, "is a pointer file of Git LFS"),
    "a pointer as Zstandard": ("a.jsonl.zst", LFS, "is a pointer file of Git LFS"),
    "gzip as JSON lines": ("a.jsonl", gzip.compress(b'{"text": "a"}\n'), "is a gzip file.*decompress it"),
    "UTF-16 as JSON lines": ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "is UTF-16 text"),
    "compressed Parquet": ("a.parquet.gz", gzip.compress(b"PAR1"), "is a compressed Parquet file.*; decompress it"),
    "JSON lines as JSON": (
        "a.json",
        b'{"text": "a"}\n{"text": "b"}\n',
        r"begins as JSON lines do.*; name it a\.jsonl,",
    ),
    "of several dots": ("b.c.json", b'{"text": "a"}\n', r"; name it b\.c\.jsonl,"),
    "compressed ones": ("b.c.json.gz", gzip.compress(b'{"text": "a"}\n'), r"; name it b\.c\.jsonl\.gz,"),
    "an archive inside": ("a.txt.gz", gzip.compress(b"PK\x03\x04" + b"x" * 99), r"is a zip archive"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_or_skipped(name: str, tmp_path: Path) -> None:
    file, content, message = BAD[name]
    write(tmp_path, {file: content, "z.txt": "z"})
    with pytest.raises(DataError, match=message) as caught:
        open_text(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / file) in str(caught.value)
    # All of it, or nothing.
    assert tokens_of(tmp_path, invalid_files="skip") == list(b"z\0")


def test_json_that_is_no_lines_is_text(tmp_path: Path) -> None:
    content = '{\n "text": "a"\n}\n'
    write(tmp_path, {"a.json": content, "b.json": '{"other": 1}\n'})
    assert tokens_of(tmp_path) == list(f'{content}\0{{"other": 1}}\n\0'.encode())


def test_a_damaged_page_of_parquet(tmp_path: Path) -> None:
    file = parquet_file(tmp_path / "a.parquet", ["text " * 99 for _ in range(99)], compression="snappy")
    content = bytearray(file.read_bytes())
    # Its pages come first, and its footer is intact.
    content[40 : len(content) // 3] = bytes(len(content) // 3 - 40)
    file.write_bytes(content)
    write(tmp_path, {"z.txt": "z"})
    with pytest.raises(DataError, match=r"a\.parquet: is no complete Parquet file: .*; copy it again"):
        open_text(tmp_path)
    assert tokens_of(tmp_path, invalid_files="skip") == list(b"z\0")


def test_frames_with_a_long_history(tmp_path: Path) -> None:
    """As of zstd --long=31."""
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    # Of a known size the history would be as short.
    frame = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    content = frame.compress(b"text") + frame.flush()
    assert zstandard.get_frame_parameters(content).window_size == 1 << 30
    (tmp_path / "a.txt.zst").write_bytes(content)
    assert tokens_of(tmp_path) == list(b"text\0")


def test_a_column_that_is_none_is_one_line(tmp_path: Path) -> None:
    parquet_file(tmp_path / "a.parquet", ["a"], "body")
    with pytest.raises(
        DataError, match=r"it has no field 'text', found: id, body, expected .*; name one in data.field"
    ):
        open_text(tmp_path)
    with pytest.raises(DataError, match=r"id holds int64, expected UTF-8 text; name a text in data.field"):
        open_text(tmp_path, field="id")
