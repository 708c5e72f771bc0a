"""Data set of UTF-8 text files, as bytes or as the ids of a Hugging Face tokenizer."""

from __future__ import annotations

import codecs
import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import Config, DataConfig
from harness.errors import DataError
from harness.file_formats import HEAD_BYTES, foreign_format
from harness.text import counted
from harness.workload.data.base import TokenDataset, split_held_out, unigram_entropy
from harness.workload.data.documents import NotTextError, is_plain_text, read_documents
from harness.workload.data.files import Unusable, check_separate, find_files
from harness.workload.data.tokenizer import TextTokenizer

BYTE_VOCABULARY = 256
# Ends each document among byte tokens: NUL does not occur in text.
_BYTE_SEPARATOR = 0
# A tokenizer that loses more of the text than this is most likely not meant for it.
MAX_LOST_SHARE = 0.01


def open_text(
    config: Config, vocab_size: int, seq_len: int, heartbeat: Callable[[], None] = lambda: None
) -> TokenDataset:
    """Read the files of data.path and tokenize them; only the tokens stay in memory.

    Files are read in the order of their relative POSIX paths, so that every machine sees the same text.

    Args:
        heartbeat: called for each block read.

    Raises:
        DataError: nothing to read, a file that is no UTF-8 text, a tokenizer that does not fit the model or the text,
            or held-out text that is trained on.
    """
    data = config.data
    assert data.path is not None
    tokenizer = None if data.tokenizer is None else TextTokenizer(data.tokenizer)
    tokenizer_name = "bytes" if tokenizer is None else tokenizer.name
    tokenizer_size = BYTE_VOCABULARY if tokenizer is None else tokenizer.size
    _check_vocabulary(tokenizer_name, tokenizer_size, vocab_size)
    reader = _Reader(data, tokenizer, heartbeat)
    text = reader.read("data.path", data.path)
    train, description = text.token_ids(), text.describe()
    source = f"data.tokenizer={data.tokenizer}"
    cautions = text.cautions(source)
    if data.eval_path is None:
        train, held_out = split_held_out(train, data.eval_fraction)
    else:
        other = reader.read("data.eval_path", data.eval_path)
        held_out, description["held_out"] = other.token_ids(), other.describe()
        cautions += other.cautions(f"data.eval_path, {source}")
        same = text.digest.digest() == other.digest.digest()
        check_separate(text.files, other.files, same_content=same)
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
        cautions=cautions,
    )


def _check_vocabulary(tokenizer: str, size: int, vocab_size: int) -> None:
    """Raise DataError for a tokenizer with more tokens than the model."""
    if size > vocab_size:
        raise DataError(
            f"model.vocab_size: found {vocab_size}, but {tokenizer} has {size} different tokens; set "
            f"model.vocab_size={size} or choose a model with a larger vocabulary"
        )


@dataclass
class _Text:
    """The tokens of all documents, and the count of what was read and what was not."""

    tokens: array[int]
    """Element type B for bytes, I for token ids."""
    files: list[Path] = field(default_factory=list)
    empty: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    not_matched: int = 0
    repeated: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    digest: Any = field(default_factory=hashlib.sha256)

    def token_ids(self) -> np.ndarray:
        """Return the tokens without a copy: uint8 or uint32 [tokens]."""
        return np.frombuffer(self.tokens, dtype=np.dtype(self.tokens.typecode))

    def describe(self) -> dict[str, Any]:
        """Return the record's account of the files."""
        return {
            "files_read": len(self.files),
            "files_empty": self.empty,
            "files_skipped": dict(sorted(self.skipped.items())),
            "files_not_matched": self.not_matched,
            "links_repeated": self.repeated,
            "documents": self.counts["documents"],
            "documents_empty": self.counts["documents_empty"],
            "size_bytes": self.counts["size_bytes"],
            "characters": self.counts["characters"],
            "characters_dropped": self.counts["characters_dropped"],
            "tokens_unknown": self.counts["tokens_unknown"],
            "content_sha256": self.digest.hexdigest(),
        }

    def cautions(self, source: str) -> list[str]:
        """Return a line about text that a tokenizer loses, if it is much."""
        shares = {
            "characters are part of no token": self.counts["characters_dropped"] / max(1, self.counts["characters"]),
            "tokens are the unknown token": self.counts["tokens_unknown"] / max(1, len(self.tokens)),
        }
        lost = [f"{100 * share:.1f} % of the {words}" for words, share in shares.items() if share > MAX_LOST_SHARE]
        return [f"{source}: {' and '.join(lost)}; check that it is the tokenizer for this text"] if lost else []


class _Reader:
    """Reads the text of a file or folder, as bytes or through a tokenizer."""

    def __init__(self, data: DataConfig, tokenizer: TextTokenizer | None, heartbeat: Callable[[], None]) -> None:
        self._data, self._tokenizer, self._heartbeat = data, tokenizer, heartbeat

    def read(self, key: str, name: str) -> _Text:
        """Return the text of a file or folder.

        Args:
            key: setting that names it.

        Raises:
            DataError: there is none, or a file is no text.
        """
        path, data = Path(name), self._data
        found = find_files(path, data.glob, key)
        element = "B" if self._tokenizer is None else "I"
        text = _Text(array(element), not_matched=found.not_matched, repeated=found.repeated)
        for file, reason in found.unusable.items():
            self._skip(text, file, reason)
        for file in found.paths:
            try:
                self._read_file(text, file)
            except OSError as error:
                raise DataError(f"{file}: cannot be read: {error.strerror or error}; check its permissions") from error
            except NotTextError as error:
                self._skip(text, file, error.found)
        if not text.tokens:
            left_out = [f"{text.empty} empty", *(f"{count} skipped as {kind}" for kind, count in text.skipped.items())]
            tokenless = f"; {data.tokenizer} makes no token of it" if text.files else ""
            files = counted(len(found.paths) + len(found.unusable), "file")
            raise DataError(f"{path}: holds no text in {files} ({', '.join(left_out)}){tokenless}; check {key}")
        return text

    def _skip(self, text: _Text, file: Path, reason: Unusable) -> None:
        if self._data.invalid_files != "skip":
            raise DataError(
                f"{file}: {reason.found}, expected UTF-8 text; {reason.remedy}, select the text files, as with "
                "data.glob='*.txt', or set data.invalid_files=skip"
            )
        text.skipped[reason.kind] += 1

    def _read_file(self, text: _Text, file: Path) -> None:
        """Add the documents of one file.

        Raises:
            NotTextError: the file is no UTF-8 text; nothing was added.
        """
        before, counts, digest = len(text.tokens), Counter[str](), text.digest.copy()
        try:
            self._add_documents(text.tokens, file, counts, digest)
        except NotTextError:
            del text.tokens[before:]
            raise
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        if not counts["size_bytes"]:
            text.empty += 1
            return
        text.files.append(file)
        text.counts += counts
        text.digest = digest

    def _add_documents(self, tokens: array[int], file: Path, counts: Counter[str], digest: Any) -> None:
        documents = self._documents(file, counts, digest)
        if self._tokenizer is None:
            for blocks in documents:
                before = len(tokens)
                for block, _ in blocks:
                    tokens.frombytes(block)
                if len(tokens) > before:
                    tokens.append(_BYTE_SEPARATOR)
            return
        for encoded in self._tokenizer.encode((text for _, text in blocks) for blocks in documents):
            tokens.frombytes(encoded.ids.tobytes())
            counts["characters_dropped"] += encoded.dropped_characters
            counts["tokens_unknown"] += encoded.unknown_tokens

    def _documents(self, file: Path, counts: Counter[str], digest: Any) -> Iterator[Iterator[tuple[bytes, str]]]:
        """Yield each document of a file in blocks, which have to be read before the next is asked for."""
        name = file.name if is_plain_text(file) else None
        for blocks in read_documents(file, self._data.field):
            before = counts["size_bytes"]
            yield self._with_heartbeat(_decoded(blocks, name, counts, digest))
            if counts["size_bytes"] == before:
                # No document, so that neither a separator nor a tokenizer's own marks belong to it.
                counts["documents_empty"] += name is None
                continue
            counts["documents"] += 1
            if name is None:
                # Where one document ends is part of the content.
                digest.update(b"\0")

    def _with_heartbeat(self, blocks: Iterator[tuple[bytes, str]]) -> Iterator[tuple[bytes, str]]:
        for block in blocks:
            self._heartbeat()
            yield block


def _decoded(
    blocks: Iterable[bytes], name: str | None, counts: Counter[str], digest: Any
) -> Iterator[tuple[bytes, str]]:
    """Yield a document in blocks, as bytes and as the text that they complete; count and digest them.

    Args:
        name: of a file of text, whose first bytes may be those of another format; None of a part of a file.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    first = counts["size_bytes"]
    for block in chain(blocks, [b""]):
        start = counts["size_bytes"] - len(decoder.getstate()[0])
        if name is not None and start == first and (foreign := foreign_format(block[:HEAD_BYTES], name)) is not None:
            raise NotTextError(foreign[0], f"is {foreign[0]}", foreign[1])
        try:
            decoded = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            found = f"not UTF-8 text at byte {start + error.start}"
            raise NotTextError("not UTF-8 text", found, "convert it") from error
        if _BYTE_SEPARATOR in block:
            place = counts["size_bytes"] + block.index(_BYTE_SEPARATOR)
            found = f"holds a NUL at byte {place}, as UTF-16 and binary files do"
            raise NotTextError("UTF-16 or binary", found, "convert it")
        counts["size_bytes"] += len(block)
        counts["characters"] += len(decoded)
        digest.update(block)
        if block:
            yield block, decoded
