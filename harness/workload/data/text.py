"""Data set of UTF-8 text files, as bytes or as the ids of a Hugging Face tokenizer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import Config, DataConfig
from harness.errors import DataError
from harness.text import counted
from harness.workload.data.base import TokenDataset, split_held_out, unigram_entropy

BYTE_VOCABULARY = 256
# Ends each document among byte tokens: NUL does not occur in text.
_BYTE_SEPARATOR = 0


def open_text(config: Config, vocab_size: int, seq_len: int) -> TokenDataset:
    """Read the files of data.path into memory and tokenize them.

    Files are read in the order of their relative POSIX paths, so that every machine sees the same text.

    Raises:
        DataError: nothing to read, a file that is not UTF-8, or a tokenizer that does not fit the model.
    """
    data = config.data
    assert data.path is not None
    encode, tokenizer_size, tokenizer_name = _encoder(data)
    if tokenizer_size > vocab_size:
        raise DataError(
            f"model.vocab_size: found {vocab_size}, but {tokenizer_name} has {tokenizer_size} different "
            f"tokens; set model.vocab_size={tokenizer_size} or choose a model with a larger vocabulary"
        )
    tokens, description = _read_tokens("data.path", data.path, data, encode)
    if data.eval_path is None:
        train, held_out = split_held_out(tokens, data.eval_fraction)
    else:
        train = tokens
        held_out, _ = _read_tokens("data.eval_path", data.eval_path, data, encode)
    return TokenDataset(
        train,
        held_out,
        vocab_size=vocab_size,
        seq_len=seq_len,
        seed=config.seed,
        data=data,
        description={
            "name": "text",
            "tokenizer": tokenizer_name,
            **description,
            "entropy_floor_nats": None,
            "unigram_entropy_nats": unigram_entropy(train, tokenizer_size) if len(train) else None,
        },
    )


def find_files(path: Path, pattern: str, key: str = "data.path") -> list[Path]:
    """Return the file itself, or the matching files below a folder in an order that is the same on every file system.

    Args:
        key: setting that an error message names.

    Raises:
        DataError: there is none, or a folder cannot be read.
    """
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise DataError(f"{path}: no such file or folder; check {key} (relative to the current folder)")
        # rglob skips folders that it cannot read: one machine would train on less than another.
        for _ in os.walk(path, onerror=_raise):
            pass
        found = [item for item in path.rglob(pattern) if item.is_file()]
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"data.glob: found {pattern!r}, expected a file-name pattern such as '*.txt'") from error
    if not found:
        raise DataError(f"{path}: no file below it matches data.glob={pattern!r}; change data.glob or {key}")
    return sorted(found, key=lambda item: item.relative_to(path).as_posix())


def _raise(error: OSError) -> None:
    raise error


def _read_tokens(
    key: str, name: str, data: DataConfig, encode: Callable[[bytes, str], np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
    path = Path(name).expanduser()
    pieces, skipped, size = [], 0, 0
    digest = hashlib.sha256()
    files = find_files(path, data.glob, key)
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}; check its permissions") from error
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            if data.invalid_files == "skip":
                skipped += 1
                continue
            raise DataError(
                f"{file}: not UTF-8 text at byte {error.start}; select the text files, as with data.glob='*.txt', "
                "convert this one, or set data.invalid_files=skip"
            ) from error
        if not text:
            continue
        size += len(content)
        digest.update(content)
        pieces.append(encode(content, text))
    if not pieces:
        raise DataError(f"{path}: holds no text in {counted(len(files), 'file')} ({skipped} skipped as not UTF-8)")
    description = {
        "files": len(files),
        "files_skipped_not_utf8": skipped,
        "size_bytes": size,
        "content_sha256": digest.hexdigest(),
    }
    return np.concatenate(pieces), description


def _encoder(data: DataConfig) -> tuple[Callable[[bytes, str], np.ndarray], int, str]:
    """Return the encoding function of documents, the number of different tokens, and the tokenizer's name."""
    if data.tokenizer is None:
        separator = np.array([_BYTE_SEPARATOR], dtype=np.uint8)
        return (
            lambda content, _: np.concatenate((np.frombuffer(content, np.uint8), separator)),
            BYTE_VOCABULARY,
            "bytes",
        )
    path = Path(data.tokenizer).expanduser()
    if not path.is_file():
        raise DataError(f"data.tokenizer: no file {path}; give the path of a tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError("data.tokenizer: needs the package tokenizers; pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise DataError(f"{path}: the tokenizers package cannot read it: {error}; give a tokenizer.json") from error

    # Published tokenizers often truncate or pad; here every token counts.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(_: bytes, text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text).ids, dtype=np.uint32)

    # Not get_vocab_size(): ids may have gaps.
    return encode, max(tokenizer.get_vocab().values(), default=-1) + 1, path.name
