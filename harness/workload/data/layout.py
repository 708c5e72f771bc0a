"""Layout of token files: the element type and the place of the first token, as their headers and contents show."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.config import DataConfig
from harness.errors import DataError
from harness.file_formats import foreign_format, read_head

# Up to this many bytes of a raw file are examined, in as many places, evenly spaced.
SAMPLE_CHUNKS, CHUNK_BYTES = 64, 16384
# Fewer words show no type.
MIN_SAMPLE_WORDS = 16
# No vocabulary has more than MAX_HIGH_HALF x 65536 tokens.
MAX_HIGH_HALF = 16
# By how many bits the high bytes of tokens must carry more than the low ones to be taken for these.
BYTE_ORDER_BITS = 1.0

LLMC_HEADER_BYTES = 1024
# llm.c's train_gpt2 and train_llama3 write these; modded-nanogpt writes the first.
LLMC_TYPES = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
LLMC_OTHERS = {20240326: "model weights", 20240328: "a tokenizer", 20240522: "an evaluation (HellaSwag)"}

_MEGATRON_HEADER_BYTES = 34
_MEGATRON_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


@dataclass(frozen=True)
class TokenLayout:
    format: str
    """Name of the format for the record: raw, llm.c or Megatron-LM."""
    dtype: np.dtype
    first_byte: int = 0


def raw_layout(path: Path, size: int, data: DataConfig) -> TokenLayout:
    """Return the layout of a .bin file: stated by its header or by the index beside it, else data.dtype.

    Args:
        size: bytes of the file.

    Raises:
        OSError: it cannot be read.
        DataError: it is of another format or type, or its size is not what its header or index states.
    """
    head = read_head(path)
    layout = _llmc(path, head, size) or _megatron(path, size)
    if layout is None:
        _check_foreign(path, head)
        layout = TokenLayout("raw", np.dtype(data.dtype).newbyteorder("<"))
    item_size = layout.dtype.itemsize
    if size == layout.first_byte or (size - layout.first_byte) % item_size:
        raise DataError(
            f"{path}: holds {size - layout.first_byte} bytes, expected a positive multiple of {item_size} "
            f"({layout.dtype.name}); the file is empty or truncated, or data.dtype is wrong"
        )
    if layout.format == "raw":
        _check_type(path, layout.dtype)
    return layout


def _check_foreign(path: Path, head: bytes) -> None:
    foreign = foreign_format(head, path.name)
    if foreign is not None:
        raise DataError(f"{path}: is {foreign[0]}, expected raw tokens; {foreign[1]}")
    index = path.parent / "index.json"
    if _lists_chunk(index, path.name):
        raise DataError(
            f"{path}: is a chunk of the data set that {index} describes, expected raw tokens; write its tokens with "
            "numpy.save"
        )
    if _is_text(head):
        raise DataError(f"{path}: is text, expected raw tokens; use data=text")


def _lists_chunk(index: Path, name: str) -> bool:
    """Return whether an index such as LitData's or MosaicML Streaming's names the file as a part of its data set."""
    try:
        return index.is_file() and json.dumps(name) in index.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _is_text(head: bytes) -> bool:
    if len(head) < 8 * MIN_SAMPLE_WORDS or re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", head):
        return False
    try:
        # The head may end within a letter.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _llmc(path: Path, head: bytes, size: int) -> TokenLayout | None:
    """Return the layout of a file with llm.c's header of 256 int32: magic number, version, number of tokens."""
    if len(head) < LLMC_HEADER_BYTES:
        return None
    magic, version, count = np.frombuffer(head, "<i4", 3).tolist()
    if magic in LLMC_OTHERS:
        raise DataError(f"{path}: is {LLMC_OTHERS[magic]} of llm.c, expected tokens; name a file of training tokens")
    if magic not in {known for known, _ in LLMC_TYPES}:
        return None
    if (magic, version) not in LLMC_TYPES:
        raise DataError(
            f"{path}: has llm.c's header with version {version}, which is not known; save the tokens with numpy.save"
        )
    dtype = np.dtype(LLMC_TYPES[magic, version])
    if size - LLMC_HEADER_BYTES != count * dtype.itemsize:
        raise DataError(
            f"{path}: holds {size - LLMC_HEADER_BYTES} bytes after llm.c's header, expected {count} tokens of "
            f"{dtype.itemsize} bytes; the file is truncated: copy it again"
        )
    return TokenLayout("llm.c", dtype, LLMC_HEADER_BYTES)


def _megatron(path: Path, size: int) -> TokenLayout | None:
    """Return the layout that a Megatron-LM index (MMIDIDX) beside the file states.

    The index: 9 bytes of magic, version (uint64), type (uint8), sequences and documents (uint64 each), then the
    length in tokens (int32) and the first byte (int64) of each sequence.
    """
    index = path.with_suffix(".idx")
    if not index.is_file():
        return None
    head = read_head(index)
    foreign = foreign_format(head, index.name)
    if not head.startswith(b"MMIDIDX\0\0") or len(head) < _MEGATRON_HEADER_BYTES:
        found = foreign[0] if foreign is not None else "an index of an unknown format"
        raise DataError(
            f"{index}: is {found}, so the type of the tokens beside it is unknown; save them with numpy.save"
        )
    sequences = int.from_bytes(head[18:26], "little")
    if head[17] not in _MEGATRON_TYPES:
        raise DataError(f"{index}: states type {head[17]}, expected integers; save the tokens with numpy.save")
    dtype = np.dtype(_MEGATRON_TYPES[head[17]])
    if _megatron_bytes(index, sequences, dtype.itemsize) != size:
        raise DataError(
            f"{index}: does not describe the {size} bytes of {path.name} beside it: one of the two is truncated or of "
            "another data set; copy both again"
        )
    return TokenLayout("Megatron-LM", dtype)


def _megatron_bytes(index: Path, sequences: int, item_size: int) -> int | None:
    """Return the bytes of tokens that the index describes; None if it is truncated."""
    lengths_at = _MEGATRON_HEADER_BYTES
    pointers_at = lengths_at + 4 * sequences
    if index.stat().st_size < pointers_at + 8 * sequences or not sequences:
        return None
    with open(index, "rb") as file:
        file.seek(pointers_at - 4)
        last_length = int.from_bytes(file.read(4), "little")
        file.seek(pointers_at + 8 * (sequences - 1))
        return int.from_bytes(file.read(8), "little") + last_length * item_size


def _check_type(path: Path, stated: np.dtype) -> None:
    """Check that raw tokens have the type that data.dtype states.

    Raises:
        DataError: they look like another type.
    """
    found = likely_type(_sample(path), stated.name)
    if found is None or found == stated.name:
        return
    remedy = f"set data.dtype={found}, or save" if found in ("uint16", "uint32") else "save"
    raise DataError(
        f"{path}: holds {found}, not data.dtype={stated.name}, by the pattern of its bytes; {remedy} the tokens with "
        "numpy.save, whose files state their type"
    )


def _sample(path: Path) -> np.ndarray:
    """Return bytes from places all over a file in rows of eight: uint8 [rows, 8]."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    last = max(0, len(content) - CHUNK_BYTES)
    starts = {int(start) // 8 * 8 for start in np.linspace(0, last, SAMPLE_CHUNKS)}
    chunks = [content[start : start + CHUNK_BYTES] for start in sorted(starts)]
    return np.concatenate([chunk[: len(chunk) // 8 * 8] for chunk in chunks]).reshape(-1, 8)


def likely_type(sample: np.ndarray, stated: str) -> str | None:
    """Return the type that the bytes of token ids show beyond doubt, or None.

    Args:
        sample: uint8 [rows, 8], each row from a place that is a multiple of eight bytes from the first token.
        stated: the type that they are said to have, uint16 or uint32.
    """
    if len(sample) < MIN_SAMPLE_WORDS:
        return None
    # First: whole numbers in float32 have zeros in their low halves, as ids in big-endian uint32 in their high ones.
    for name in ("float64", "float32"):
        if _are_floats(sample, name):
            return name
    little = np.ascontiguousarray(sample).view("<u2")
    big = little.byteswap()
    for low, high, name in (
        (little[:, :1], little[:, 1:], "int64"),
        (big[:, 3:], big[:, :3], "big-endian int64"),
        (little[:, ::2], little[:, 1::2], "uint32"),
        (big[:, 1::2], big[:, ::2], "big-endian uint32"),
    ):
        if _are_halves(low, high):
            return name
    if stated == "uint16" and _entropy_bits(sample[:, 1::2]) > _entropy_bits(sample[:, ::2]) + BYTE_ORDER_BITS:
        return "big-endian uint16"
    if stated == "uint32" and (little[:, 1::2] >= MAX_HIGH_HALF).mean() > 0.5:
        return "uint16"
    return None


def _are_halves(low: np.ndarray, high: np.ndarray) -> bool:
    """Return whether these are the low and high 16-bit parts of wider ids: the high ones all but zero, the low not."""
    largest = high.max()
    return bool(largest < MAX_HIGH_HALF and (low > largest).mean() > 0.5)


def _are_floats(sample: np.ndarray, name: str) -> bool:
    """Return whether the bytes are floating-point numbers: ids that were converted, or values of usual size."""
    with np.errstate(all="ignore"):
        values = np.ascontiguousarray(sample).view(name).ravel()
        if not np.isfinite(values).all() or len(np.unique(values)) < MIN_SAMPLE_WORDS:
            return False
        size = np.abs(values)
        whole = (values == np.rint(values)) & (size < 2**24)
        usual = whole | ((size > 1e-6) & (size < 1e6))
    return bool(usual.mean() > 0.99 and (size > 1e-6).mean() > 0.5)


def _entropy_bits(octets: np.ndarray) -> float:
    counts = np.bincount(octets.ravel(), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
