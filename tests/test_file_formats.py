"""Recognition of files that are not what their names say, and of those that are."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import socket
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from harness.file_formats import HEAD_BYTES, foreign_format, special_file

TEXT = b"Some text in plain ASCII.\n" * 100


def tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(TEXT)
        archive.addfile(entry, io.BytesIO(TEXT))
    return content.getvalue()


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", TEXT)
    return content.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"
FOREIGN: dict[str, tuple[str, bytes, str]] = {
    "Git LFS": ("t.bin", LFS, "pointer file of Git LFS"),
    "git-annex": ("t.txt", b"/annex/objects/SHA256E-s123--abc.txt\n", "pointer file of git-annex"),
    "DVC": ("t.txt.dvc", b"outs:\n- md5: a304afb9\n  size: 37\n  path: t.txt\n", "pointer file of DVC"),
    "gzip": ("t.txt", gzip.compress(TEXT), "gzip"),
    "bzip2": ("t.txt", bz2.compress(TEXT), "bzip2"),
    "xz": ("t.txt", lzma.compress(TEXT), "xz"),
    "Zstandard": ("t.jsonl", b"\x28\xb5\x2f\xfd" + TEXT, "Zstandard"),
    "tar": ("t.txt", tar(), "tar archive"),
    "zip": ("t.npy", zipped(), "zip archive"),
    "pickle": ("t.bin", pickle.dumps(list(range(1000)), protocol=4), "pickle"),
    "Parquet": ("t.txt", b"PAR1" + TEXT, "Parquet"),
    "safetensors": ("t.bin", (90).to_bytes(8, "little") + b'{"a":{}}' + TEXT, "safetensors"),
    "PDF": ("t.txt", b"%PDF-1.4\n" + TEXT, "PDF"),
    "UTF-16": ("t.txt", TEXT.decode().encode("utf-16"), "UTF-16"),
    "UTF-16 big-endian": ("t.csv", ("\ufeff" + TEXT.decode() + "🎉").encode("utf-16-be"), "UTF-16"),
    "UTF-32": ("t.txt", TEXT.decode().encode("utf-32"), "UTF-32"),
    "HTML": ("t.txt", b"\n<!DOCTYPE html>\n<html><head>", "page of HTML"),
    "HTML with a comment": ("t.json", b"<!-- 404 -->\n<HTML lang=en>", "page of HTML"),
    "XHTML": ("t.bin", b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "">', "page of HTML"),
    "cloud error": ("t.bin", b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "error message"),
    "GitHub's error": ("t.txt", b"404: Not Found", "error message"),
    "Hugging Face's error": ("t.json", b'{"error":"Repository not found"}', "error message"),
    "GitHub's answer": (
        "t.txt",
        b'{"message": "Not Found", "documentation_url": "x", "status": "404"}',
        "error message",
    ),
    "HTML without html": ("t.txt", b"<head><title>Sign in</title>", "page of HTML"),
    "submodule": ("t.txt", b"Subproject commit " + b"0a1b" * 10 + b"\n", "pointer file of Git submodules"),
    "GIF": ("t.bin", b"GIF89a" + b"\1" * 100, "GIF image"),
    "WAV": ("t.bin", b"RIFF\x24\0\0\0WAVEfmt ", "file of sound, film or pictures"),
    "FLAC": ("t.bin", b"fLaC\0\0\0\x22", "file of sound"),
    "PostScript": ("t.txt", b"%!PS-Adobe-3.0\n" + TEXT, "PostScript"),
    "AppleDouble": ("._t.bin", b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(200), "AppleDouble"),
    "TFRecord": ("t.bin", b"\x0f\1\0\0\0\0\0\0\x8a\x10\xbc\xfe\x0a\x8c\2\x0a\x89\2\x0a\x09input_ids", "TFRecord"),
    "Megatron-LM's index": ("t.bin", b"MMIDIDX\0\0" + b"\1" * 100, "index of a Megatron-LM data set"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_recognized_with_a_remedy(case: str) -> None:
    name, content, expected = FOREIGN[case]
    found = foreign_format(content[:HEAD_BYTES], name)
    assert found is not None
    assert expected in found[0]
    assert found[1]


OWN: dict[str, tuple[str, bytes]] = {
    "empty": ("t.txt", b""),
    "text": ("t.txt", TEXT),
    "text with a byte-order mark": ("t.txt", b"\xef\xbb\xbf" + TEXT),
    "HTML by its name": ("t.html", b"<!DOCTYPE html><html>"),
    "a template": ("t.html.j2", b"<!doctype html>"),
    "text about HTML": ("t.txt", b"The tag <html> begins a page."),
    "text about Git LFS": ("t.md", b"Pointers begin with `version https://git-lfs.github.com/spec/v1`."),
    "a long text that begins as a pointer": ("t.txt", LFS + TEXT),
    "text about errors": ("t.txt", b"Not found: the hero of this tale.\n" + TEXT),
    "JSON": ("t.json", b'{"message": "hello"}'),
    "XML": ("t.xml", b'<?xml version="1.0"?><corpus/>'),
    "YAML": ("t.yaml", b"outs: 3\n"),
}


@pytest.mark.parametrize("case", OWN)
def test_text_is_not_taken_for_something_else(case: str) -> None:
    name, content = OWN[case]
    assert foreign_format(content[:HEAD_BYTES], name) is None


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_tokens_are_not_taken_for_something_else(dtype: str) -> None:
    generator = np.random.default_rng(1)
    for vocab_size in (5, 256, 50257, 65536):
        for _ in range(200):
            content = generator.integers(0, vocab_size, 2048).astype(dtype).tobytes()
            assert foreign_format(content[:HEAD_BYTES], "t.bin") is None


def test_special_files_are_named_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "file").write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert special_file(tmp_path / "s") == "a socket"
    assert special_file(tmp_path / "pipe.npy") == "a named pipe (FIFO)"
    assert special_file(Path("/dev/null")) == "a device"
    assert special_file(tmp_path / "file") is None
    assert special_file(tmp_path) is None
    with pytest.raises(FileNotFoundError):
        special_file(tmp_path / "nothing")
