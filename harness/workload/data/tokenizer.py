"""Token ids of documents by a Hugging Face tokenizer, window by window, so that memory does not grow with them."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.errors import DataError
from harness.file_formats import foreign_format, read_head
from harness.text import shortened
from harness.workload.data.files import regular_file

# Characters encoded at once: the tokenizers package needs about 200 bytes for each.
WINDOW_CHARACTERS = 32768
# Neighboring windows share this many characters, and are joined where they agree on as many tokens before and after.
OVERLAP_CHARACTERS = 1024
AGREEING_TOKENS = 8
# Windows of a long document that are encoded together.
WINDOWS_AHEAD = 8
# Short documents are encoded together up to this many characters.
BATCH_CHARACTERS = 1 << 18
# Normalizers that drop no character.
_KEEPING_NORMALIZERS = ("NFC", "NFKC", "Prepend", "Replace", "Sequence")


class Encoded(NamedTuple):
    ids: np.ndarray
    """Token ids, uint32 [tokens]."""
    dropped_characters: int
    """Characters other than white space that are part of no token."""
    unknown_tokens: int


class _Window(NamedTuple):
    text: str
    ids: np.ndarray
    spans: np.ndarray
    """First character of each token and the one after its last, int64 [tokens, 2]."""


class TextTokenizer:
    """A tokenizer.json without its truncation and padding: every character of a document counts."""

    def __init__(self, given: str) -> None:
        """
        Args:
            given: path of the file, as data.tokenizer states it.

        Raises:
            DataError: it cannot be read, or is no tokenizer.json.
        """
        path = Path(given)
        self.name = path.name
        self._tokenizer = _load(path)
        # Published tokenizers often truncate or pad.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Not get_vocab_size(): ids may have gaps.
        self.size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self._unknown = _unknown_id(self._tokenizer)
        self._keeps_all = _keeps_all(self._tokenizer)
        self._failed = f"data.tokenizer={given} cannot encode it"

    def encode(self, documents: Iterable[Iterable[str]]) -> Iterator[Encoded]:
        """Yield the tokens of documents, part by part: the ids that each has when it is encoded alone and at once.

        Short documents are encoded together, on all cores.

        Args:
            documents: each in parts of any length, which are read before the next document is asked for.

        Raises:
            DataError: the tokenizer has no token for some of the text.
        """
        short: list[str] = []
        characters = 0
        for pieces in documents:
            document, parts = "", iter(pieces)
            for part in parts:
                document += part
                if len(document) > WINDOW_CHARACTERS:
                    break
            if len(document) > WINDOW_CHARACTERS:
                yield from self._whole(short)
                short, characters = [], 0
                yield from self._windows(document, parts)
            elif document:
                short.append(document)
                characters += len(document)
                if characters > BATCH_CHARACTERS:
                    yield from self._whole(short)
                    short, characters = [], 0
        yield from self._whole(short)

    def _whole(self, documents: list[str]) -> Iterator[Encoded]:
        """Yield the tokens of documents that are encoded at once."""
        if not documents:
            return
        # Without the places of tokens it is twice as fast, and they show only what was dropped.
        encode = self._tokenizer.encode_batch_fast if self._keeps_all else self._tokenizer.encode_batch
        encodings = _call(lambda: encode(documents, add_special_tokens=True), self._failed)
        for document, encoding in zip(documents, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.uint32)
            dropped = 0 if self._keeps_all else _dropped(document, _spans(encoding), 0, len(document))
            yield Encoded(ids, dropped, self._count_unknown(ids))

    def _windows(self, buffer: str, parts: Iterator[str]) -> Iterator[Encoded]:
        """Yield the tokens of a document of several windows, each joined to the next where both agree."""
        step = usual_step = WINDOW_CHARACTERS - OVERLAP_CHARACTERS
        window, rest = self._encode(buffer[:WINDOW_CHARACTERS]), buffer[WINDOW_CHARACTERS:]
        token, character = 0, 0
        after: np.ndarray | None = None
        ahead: deque[_Window] = deque()
        while True:
            # After a disagreement just one: more would be encoded in vain.
            count = WINDOWS_AHEAD if step == usual_step else 1
            while len(rest) < count * step and (part := next(parts, None)) is not None:
                rest += part
            if not rest:
                break
            start = len(window.text) - OVERLAP_CHARACTERS
            if not ahead:
                ahead += self._encode_ahead(window.text[start:] + rest, step, count)
            following = ahead.popleft()
            joint = _joint(window, following, start)
            if joint is None:
                # They disagree wherever both see the text: they become one window.
                window = self._encode(window.text + rest[:step])
                token = int(np.searchsorted(window.spans[:, 0], character))
                rest, step = rest[step:], 2 * step
                ahead.clear()
                continue
            if after is None:
                before, after = self._special_ids(window)
                yield Encoded(before, 0, 0)
            here, there = joint
            end = int(window.spans[here, 0])
            yield self._emitted(window, token, here, character, end)
            window, token, character, rest = following, there, end - start, rest[step:]
            step = usual_step
        if after is None:
            window = self._encode(window.text, special=True)
        yield self._emitted(window, token, len(window.ids), character, len(window.text))
        if after is not None:
            yield Encoded(after, 0, 0)

    def _encode_ahead(self, text: str, step: int, count: int) -> Iterator[_Window]:
        """Encode `count` windows of a text, each `step` characters after the one before, together on all cores."""
        starts = range(0, min(len(text) - OVERLAP_CHARACTERS, count * step), step)
        texts = [text[start : start + OVERLAP_CHARACTERS + step] for start in starts]
        encodings = _call(lambda: self._tokenizer.encode_batch(texts, add_special_tokens=False), self._failed)
        for each, encoding in zip(texts, encodings, strict=True):
            yield _Window(each, np.array(encoding.ids, dtype=np.uint32), _spans(encoding))

    def _encode(self, text: str, special: bool = False) -> _Window:
        encoding = _call(lambda: self._tokenizer.encode(text, add_special_tokens=special), self._failed)
        return _Window(text, np.array(encoding.ids, dtype=np.uint32), _spans(encoding))

    def _special_ids(self, window: _Window) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids that the tokenizer itself puts before and after every document."""
        own, whole = window.ids, self._encode(window.text, special=True).ids
        added = len(whole) - len(own)
        before = next((n for n in range(added + 1) if np.array_equal(whole[n : n + len(own)], own)), added)
        return whole[:before], whole[before + len(own) :]

    def _emitted(self, window: _Window, first: int, last: int, begin: int, end: int) -> Encoded:
        """Return tokens `first` to `last` of a window, which are those of its characters `begin` to `end`."""
        ids = window.ids[first:last]
        dropped = 0 if self._keeps_all else _dropped(window.text, window.spans[first:last], begin, end)
        return Encoded(ids, dropped, self._count_unknown(ids))

    def _count_unknown(self, ids: np.ndarray) -> int:
        return 0 if self._unknown is None else int((ids == self._unknown).sum())


def _spans(encoding: Any) -> np.ndarray:
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _joint(window: _Window, following: _Window, start: int) -> tuple[int, int] | None:
    """Return a token of a window and the same token of the next one, with equal tokens around them; None without one.

    Args:
        start: character of the window at which the next one begins.
    """
    spans = following.spans + start
    n = AGREEING_TOKENS
    first = int(np.searchsorted(window.spans[:, 0], start))
    # From the middle of the overlap outward: the ends of a window may differ.
    middle = (first + len(window.ids)) // 2
    for here in sorted(range(first + n, len(window.ids) - n), key=lambda token: abs(token - middle)):
        there = int(np.searchsorted(spans[:, 0], window.spans[here, 0]))
        if (
            there >= n
            and window.spans[here - 1, 0] < window.spans[here, 0]
            and np.array_equal(window.ids[here - n : here + n], following.ids[there - n : there + n])
            and np.array_equal(window.spans[here - n : here + n], spans[there - n : there + n])
        ):
            return here, there
    return None


def _dropped(text: str, spans: np.ndarray, begin: int, end: int) -> int:
    """Return the number of characters from `begin` to `end`, without white space, that lie in no token's span."""
    first, last = np.clip(spans, begin, end).T - begin
    count = end - begin + 1
    open_spans = np.cumsum(np.bincount(first, minlength=count) - np.bincount(last, minlength=count))[:-1]
    characters = np.frombuffer(text[begin:end].encode("utf-32-le"), "<u4")
    outside = characters[open_spans == 0].tobytes().decode("utf-32-le")
    return len("".join(outside.split()))


def _load(path: Path) -> Any:
    regular_file(path, "data.tokenizer", "a tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError("data.tokenizer: needs the package tokenizers; pip install tokenizers") from error
    try:
        kind = _other_kind(path, read_head(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check data.tokenizer and permissions") from error
    if kind is not None:
        raise DataError(f"{path}: is {kind[0]}, expected a tokenizer.json; {kind[1]}")
    return _call(
        lambda: Tokenizer.from_file(str(path)),
        f"{path}: the tokenizers package cannot read it",
        "give a tokenizer.json",
    )


def _other_kind(path: Path, head: bytes) -> tuple[str, str] | None:
    """Return what a file is that stands where a tokenizer.json should, and the remedy; None if it may be one."""
    foreign = foreign_format(head, path.name)
    if foreign is not None:
        return foreign
    if path.suffix == ".model" and head[:1] == b"\n":
        kind = "a SentencePiece model"
    elif re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", head):
        kind = "a tiktoken vocabulary"
    elif head.startswith(b"#version"):
        kind = "the list of merges of a BPE tokenizer"
    else:
        kind = _other_json(path)
    return None if kind is None else (kind, "name the tokenizer.json, which is usually in the same folder")


def _other_json(path: Path) -> str | None:
    """Return which other file of a published tokenizer or model this is."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not content or isinstance(content.get("model"), dict):
        return None
    if "tokenizer_class" in content or "model_max_length" in content:
        return "the configuration of a tokenizer"
    if all(isinstance(value, int) for value in content.values()):
        return "a vocabulary without the rules of its tokenizer"
    return "the configuration of a model" if "model_type" in content else None


def _unknown_id(tokenizer: Any) -> int | None:
    """Return the id that stands for text without a token of its own, if the tokenizer has one."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") is not None:
        return tokenizer.token_to_id(model["unk_token"])
    return model.get("unk_id")


def _keeps_all(tokenizer: Any) -> bool:
    """Return whether every character of any text becomes part of a token: where each byte has a token of its own."""
    description = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    for step in _steps(description["normalizer"], "normalizers"):
        if step["type"] not in _KEEPING_NORMALIZERS or (step["type"] == "Replace" and not step["content"]):
            return False
    if description["model"].get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    from tokenizers.pre_tokenizers import ByteLevel

    kinds = [step["type"] for step in _steps(description["pre_tokenizer"], "pretokenizers")]
    splits = [step for step in _steps(description["pre_tokenizer"], "pretokenizers") if step["type"] == "Split"]
    return (
        "ByteLevel" in kinds
        and all(step["behavior"] != "Removed" for step in splits)
        and all(letter in vocabulary for letter in ByteLevel.alphabet())
    )


def _steps(step: dict[str, Any] | None, inside: str) -> Iterator[dict[str, Any]]:
    """Yield a step of a tokenizer, and those inside it if it is a sequence."""
    if step is not None:
        yield step
        for each in step.get(inside, ()):
            yield from _steps(each, inside)


def _call(function: Callable[[], Any], failed: str, remedy: str = "") -> Any:
    """Return the result of a call of the tokenizers package, with its errors as ours."""
    try:
        return function()
    except BaseException as error:
        # Its own exceptions are plain; a panic of its Rust code is not even an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        missing = "unk" in str(error).casefold()
        if not remedy:
            remedy = "give another tokenizer"
            if missing:
                remedy = "the text holds what is not in its vocabulary; give a tokenizer with an unknown token or bytes"
        raise DataError(f"{failed}: {shortened(str(error))}; {remedy}") from error
