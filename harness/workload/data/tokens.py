"""Data set of pre-tokenized files, mapped into memory: .npy, or .bin as nanoGPT, llm.c and Megatron-LM write them.

A folder of them is read as one file, in the order of their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import Config, DataConfig
from harness.errors import DataError
from harness.file_formats import foreign_format, read_head
from harness.workload.data.base import TokenDataset, Tokens, split_held_out
from harness.workload.data.files import check_separate, find_files, regular_file
from harness.workload.data.layout import raw_layout

SUFFIXES = (".npy", ".bin")
# data.glob's default.
EVERY_FILE = "*"
# Two files of equal size are compared in as many places, evenly spaced, of as many tokens.
_PLACES, _PLACE_TOKENS = 64, 4096
# Of the places, those with one token id only: padding at the end of a file is less.
MAX_CONSTANT_SHARE = 0.05


def open_tokens(config: Config, vocab_size: int, seq_len: int) -> TokenDataset:
    """Map data.path, and data.eval_path if given, into memory.

    Raises:
        DataError: a file that is missing, truncated or of another format or type, or held-out data that are trained on.
    """
    data = config.data
    assert data.path is not None
    tokens, description, paths = map_tokens(Path(data.path), data)
    mapped, cautions = list(paths), _cautions("data.path", tokens)
    if data.eval_path is None:
        train, held_out = split_held_out(tokens, data.eval_fraction)
    else:
        train = tokens
        held_out, described, other = map_tokens(Path(data.eval_path), data, "data.eval_path")
        description["held_out"] = described
        mapped += other
        cautions += _cautions("data.eval_path", held_out)
        check_separate(paths, other, same_content=_are_equal(train, held_out))
    return TokenDataset(
        train,
        held_out,
        vocab_size=vocab_size,
        seq_len=seq_len,
        seed=config.seed,
        data=data,
        cautions=cautions,
        description={
            "name": "tokens",
            **description,
            # Unknown without reading the whole file, which may be larger than memory.
            "entropy_floor_nats": None,
            "unigram_entropy_nats": None,
        },
        mapped=mapped,
    )


def map_tokens(path: Path, data: DataConfig, key: str = "data.path") -> tuple[Tokens, dict[str, Any], list[Path]]:
    """Return the tokens of a file or folder without reading them, their part of the description, and the files.

    Args:
        key: setting that an error message names.

    Raises:
        DataError: a file that is missing, truncated or of another format or type, or files of several types.
    """
    files, left_out = _token_files(path, data, key)
    found = [_map_file(file, data, key) for file in files]
    kinds = {
        (file_format, tokens.dtype.name): file for file, (tokens, file_format, _) in zip(files, found, strict=True)
    }
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise DataError(
            f"{path}: holds tokens of several kinds: {first.name} is {' '.join(one)}, {second.name} {' '.join(other)}; "
            "select one kind with data.glob"
        )
    [(file_format, dtype)] = kinds
    description: dict[str, Any] = {
        "format": file_format,
        "dtype": dtype,
        "size_bytes": sum(size for _, _, size in found),
    }
    if path.is_dir():
        description |= {"files_read": len(files), **left_out}
    arrays = [tokens for tokens, _, _ in found]
    return arrays[0] if len(arrays) == 1 else TokenShards(arrays), description, files


def _token_files(path: Path, data: DataConfig, key: str) -> tuple[list[Path], dict[str, int]]:
    """Return the file, or those of a folder, and the record's count of what is left out of it."""
    if not path.is_dir():
        return [path], {}
    found = find_files(path, data.glob, key)
    for file, reason in found.unusable.items():
        raise DataError(
            f"{file}: {reason.found}, expected a file of tokens; {reason.remedy}, or select others with data.glob"
        )
    # Without a pattern: what lies beside them, such as indexes and notes, is no data.
    files = [file for file in found.paths if data.glob != EVERY_FILE or file.suffix in SUFFIXES]
    if not files:
        raise DataError(f"{path}: holds no file whose name ends in {' or '.join(SUFFIXES)}; check {key}")
    not_matched = found.not_matched + len(found.paths) - len(files)
    return files, {"files_not_matched": not_matched, "links_repeated": found.repeated}


def _map_file(path: Path, data: DataConfig, key: str) -> tuple[np.ndarray, str, int]:
    """Return a file's tokens as a read-only memory map, integers [tokens], the name of its format, and its bytes."""
    size = regular_file(path, key, "a .npy or .bin file").st_size
    try:
        if path.suffix == ".npy":
            return _map_npy(path, size), "npy", size
        if path.suffix == ".bin":
            layout = raw_layout(path, size, data)
            tokens = np.memmap(path, dtype=layout.dtype, mode="r", offset=layout.first_byte)
            return tokens, layout.format, size
        kind, remedy = foreign_format(read_head(path), path.name) or (
            "a file of another name",
            "if it holds raw tokens, rename it (a link will do)",
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; check {key} and permissions") from error
    raise DataError(f"{path}: is {kind}, expected a name that ends in .npy or .bin (raw {data.dtype} tokens); {remedy}")


class TokenShards:
    """Several arrays of tokens as one, none of which is copied before its tokens are asked for."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = list(arrays)
        self._ends = list(accumulate(len(array) for array in arrays))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: slice) -> TokenShards:
        start, stop, step = place.indices(len(self))
        assert step == 1, "tokens are read in order"
        parts = []
        for array, end in zip(self._arrays, self._ends, strict=True):
            begin = end - len(array)
            part = array[max(start - begin, 0) : max(stop - begin, 0)]
            if len(part):
                parts.append(part)
        return TokenShards(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.concatenate(self._arrays) if self._arrays else np.empty(0, dtype=np.int64)
        return whole if dtype is None else whole.astype(dtype)


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
        raise DataError(
            f"{path}: holds {tokens.dtype} of shape {tokens.shape}, expected one dimension of integers; "
            "save the token ids with numpy.save(path, ids.ravel())"
        )
    rest = size - tokens.offset - tokens.nbytes
    if rest:
        raise DataError(
            f"{path}: holds {rest} bytes after its array of {len(tokens)} tokens, perhaps a second array; save one "
            "array with numpy.save"
        )
    return tokens


def _cautions(key: str, tokens: Tokens) -> list[str]:
    """Return a line about tokens that are the same over long stretches, as in a copy that was cut off."""
    places = _places(tokens) if len(tokens) else []
    constant = sum(int(np.ptp(np.asarray(tokens[place]))) == 0 for place in places)
    if constant <= MAX_CONSTANT_SHARE * len(places):
        return []
    return [f"{key}: in {constant} of {len(places)} places looked at, one token id is repeated; check the file"]


def _places(tokens: Tokens) -> list[slice]:
    """Return places all over the tokens."""
    starts = np.linspace(0, max(0, len(tokens) - _PLACE_TOKENS), _PLACES).astype(np.int64)
    return [slice(start, start + _PLACE_TOKENS) for start in sorted(set(starts.tolist()))]


def _are_equal(one: Tokens, other: Tokens) -> bool:
    """Return whether two files hold the same tokens, by their number and by those in places all over them."""
    if len(one) != len(other):
        return False
    return all(np.array_equal(one[place], other[place]) for place in _places(one))
