"""Data set of pre-tokenized files, mapped into memory: .npy, or .bin as nanoGPT, llm.c and Megatron-LM write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.config import Config, DataConfig
from harness.errors import DataError
from harness.file_formats import foreign_format, read_head
from harness.workload.data.base import TokenDataset, split_held_out
from harness.workload.data.files import check_separate, regular_file
from harness.workload.data.layout import raw_layout

# Two files of equal size are compared in as many places, evenly spaced, of as many tokens.
_PLACES, _PLACE_TOKENS = 64, 4096


def open_tokens(config: Config, vocab_size: int, seq_len: int) -> TokenDataset:
    """Map data.path, and data.eval_path if given, into memory.

    Raises:
        DataError: a file that is missing, truncated or of another format or type, or held-out data that are trained on.
    """
    data = config.data
    assert data.path is not None
    tokens, description = map_tokens(Path(data.path), data)
    paths = [Path(data.path)]
    if data.eval_path is None:
        train, held_out = split_held_out(tokens, data.eval_fraction)
    else:
        train = tokens
        held_out, described = map_tokens(Path(data.eval_path), data, "data.eval_path")
        description["held_out"] = described
        paths.append(Path(data.eval_path))
        check_separate(paths[:1], paths[1:], same_content=_are_equal(train, held_out))
    return TokenDataset(
        train,
        held_out,
        vocab_size=vocab_size,
        seq_len=seq_len,
        seed=config.seed,
        data=data,
        description={
            "name": "tokens",
            **description,
            # Unknown without reading the whole file, which may be larger than memory.
            "entropy_floor_nats": None,
            "unigram_entropy_nats": None,
        },
        mapped=paths,
    )


def map_tokens(path: Path, data: DataConfig, key: str = "data.path") -> tuple[np.ndarray, dict[str, Any]]:
    """Return the file's tokens as a read-only memory map, integers [tokens], and its part of the description.

    Args:
        key: setting that an error message names.

    Raises:
        DataError: a file that is missing, truncated or of another format or type.
    """
    size = regular_file(path, key, "a .npy or .bin file").st_size
    try:
        if path.suffix == ".npy":
            tokens, file_format = _map_npy(path, size), "npy"
        elif path.suffix == ".bin":
            layout = raw_layout(path, size, data)
            tokens = np.memmap(path, dtype=layout.dtype, mode="r", offset=layout.first_byte)
            file_format = layout.format
        else:
            kind, remedy = foreign_format(read_head(path), path.name) or ("a file of another name", "rename it")
            raise DataError(
                f"{path}: is {kind}, expected a name that ends in .npy or .bin (raw {data.dtype} tokens); {remedy}"
            )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; check {key} and permissions") from error
    return tokens, {"format": file_format, "dtype": tokens.dtype.name, "size_bytes": size}


def _map_npy(path: Path, size: int) -> np.ndarray:
    head = read_head(path)
    if size and not head.startswith(b"\x93NUMPY"):
        kind, remedy = foreign_format(head, path.name) or (
            "a file without the .npy header, as OLMo's and dolma's are",
            "if it holds raw tokens, let its name end in .bin (a link will do) and set data.dtype",
        )
        raise DataError(f"{path}: is {kind}, expected a .npy file; {remedy}")
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: not a complete .npy file of numbers: {error}; write it again with numpy.save"
        ) from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        raise DataError(f"{path}: holds {tokens.dtype} of shape {tokens.shape}, expected one dimension of integers")
    rest = size - tokens.offset - tokens.nbytes
    if rest:
        raise DataError(
            f"{path}: holds {rest} bytes after its array of {len(tokens)} tokens, perhaps a second array; save one "
            "array with numpy.save"
        )
    return tokens


def _are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two files hold the same tokens, by their number and by those in places all over them."""
    if len(one) != len(other):
        return False
    starts = np.linspace(0, max(0, len(one) - _PLACE_TOKENS), _PLACES).astype(np.int64)
    places = [slice(start, start + _PLACE_TOKENS) for start in set(starts)]
    return all(np.array_equal(one[place], other[place]) for place in places)
