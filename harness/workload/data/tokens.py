"""Data set of pre-tokenized files, mapped into memory: .npy, or raw little-endian .bin as nanoGPT writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.config import Config, DataConfig
from harness.errors import DataError
from harness.workload.data.base import TokenDataset, split_held_out


def open_tokens(config: Config, vocab_size: int, seq_len: int) -> TokenDataset:
    """Map data.path, and data.eval_path if given, into memory.

    Raises:
        DataError: a file that is missing, truncated or of another format.
    """
    data = config.data
    assert data.path is not None
    tokens = map_tokens(Path(data.path).expanduser(), data)
    if data.eval_path is None:
        train, held_out = split_held_out(tokens, data.eval_fraction)
    else:
        train, held_out = tokens, map_tokens(Path(data.eval_path).expanduser(), data, "data.eval_path")
    return TokenDataset(
        train,
        held_out,
        vocab_size=vocab_size,
        seq_len=seq_len,
        seed=config.seed,
        data=data,
        description={
            "name": "tokens",
            "dtype": str(tokens.dtype),
            # Unknown without reading the whole file, which may be larger than memory.
            "entropy_floor_nats": None,
            "unigram_entropy_nats": None,
        },
        mapped=[Path(name).expanduser() for name in (data.path, data.eval_path) if name is not None],
    )


def map_tokens(path: Path, data: DataConfig, key: str = "data.path") -> np.ndarray:
    """Return the file's tokens as a read-only memory map: integers [tokens].

    Args:
        key: setting that an error message names.

    Raises:
        DataError: a file that is missing, truncated or of another format.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise DataError(f"{path}: is a folder, expected a .npy or .bin file; name the file in {key}")
        if path.suffix == ".npy":
            return _map_npy(path)
        if path.suffix != ".bin":
            raise DataError(f"{path}: expected a name that ends in .npy or .bin (raw {data.dtype} tokens)")
        item_size = np.dtype(data.dtype).itemsize
        if size == 0 or size % item_size:
            raise DataError(
                f"{path}: holds {size} bytes, expected a positive multiple of {item_size} ({data.dtype}); the "
                "file is empty or truncated, or data.dtype is wrong"
            )
        return np.memmap(path, dtype=np.dtype(data.dtype).newbyteorder("<"), mode="r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; check {key} and permissions") from error


def _map_npy(path: Path) -> np.ndarray:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: not a complete .npy file of numbers: {error}; write it again with numpy.save"
        ) from error
    if not isinstance(tokens, np.ndarray):
        raise DataError(f"{path}: holds an archive of arrays (.npz), expected one array; save it with numpy.save")
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        raise DataError(f"{path}: holds {tokens.dtype} of shape {tokens.shape}, expected one dimension of integers")
    return tokens
