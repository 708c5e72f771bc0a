"""The interface of a data set, and windows over one long array of tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.config import DataConfig
from harness.errors import DataError
from harness.workload.philox import stream_key


class Tokens(Protocol):
    """A long array of tokens, or several as one. A slice of it becomes an array when numpy copies it."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> Any: ...

    def __array__(self) -> np.ndarray: ...


class Dataset(ABC):
    """Training and held-out sequences of seq_len + 1 tokens, addressed by their global numbers."""

    @abstractmethod
    def train(self, first_sample: int, count: int) -> np.ndarray:
        """Return training sequences from number `first_sample` on: int64 [count, seq_len + 1]."""

    @abstractmethod
    def held_out(self, first_sample: int, count: int) -> np.ndarray:
        """Return held-out sequences, disjoint from the training data: int64 [count, seq_len + 1]."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the `data` section of the record; entropies in nats per token."""

    def cautions(self) -> list[str]:
        """Return what a user should know about the data before training on them, each a line without its end."""
        return []

    def check_unchanged(self) -> None:
        """Check that no data file has changed since it was opened.

        Raises:
            DataError: a file has changed; the message names it.
        """

    def require_held_out(self, count: int) -> None:
        """Check that there are at least `count` held-out sequences.

        Raises:
            DataError: there are fewer.
        """


class TokenDataset(Dataset):
    """Windows over token arrays, each used once per epoch in an order drawn from the seed.

    Window w covers tokens w x seq_len to (w + 1) x seq_len, and one more as the last target. Epoch e visits
    window (a x i + b) mod windows for i = 0, 1, ...: a bijection, since a shares no factor with the number of
    windows, so the window of any sample follows from its number alone.
    """

    def __init__(
        self,
        train: Tokens,
        held_out: Tokens,
        *,
        vocab_size: int,
        seq_len: int,
        seed: int,
        data: DataConfig,
        description: dict[str, Any],
        mapped: Sequence[Path] = (),
        cautions: Sequence[str] = (),
    ) -> None:
        """
        Args:
            mapped: files that are read during training.
            cautions: lines for the user before the training.
        """
        self._cautions = list(cautions)
        self._mapped = {path: _state(path) for path in mapped}
        self._train, self._held_out = train, held_out
        self._vocab_size, self._seq_len, self._seed = vocab_size, seq_len, seed
        self._source = f"data.path={data.path}"
        self._own_held_out = data.eval_path is not None
        self._held_out_source = f"data.eval_path={data.eval_path}" if self._own_held_out else self._source
        self._description = description
        self._windows = self._count_windows(train)
        if self._windows < 1:
            raise DataError(
                f"{self._source}: holds {len(train)} training tokens, expected at least workload.seq_len + 1 = "
                f"{seq_len + 1}; give more data or shorten workload.seq_len"
            )
        self._orders: dict[int, tuple[int, int]] = {}

    def train(self, first_sample: int, count: int) -> np.ndarray:
        windows = [self._window(sample) for sample in range(first_sample, first_sample + count)]
        return self._rows(self._train, windows, self._source)

    def held_out(self, first_sample: int, count: int) -> np.ndarray:
        self.require_held_out(first_sample + count)
        return self._rows(self._held_out, list(range(first_sample, first_sample + count)), self._held_out_source)

    def require_held_out(self, count: int) -> None:
        found = self._count_windows(self._held_out)
        if found < count:
            remedy = "lower that or give more data"
            if not self._own_held_out:
                remedy = "lower that, raise data.eval_fraction, or give more data"
            raise DataError(
                f"{self._held_out_source}: holds {found} held-out sequences of workload.seq_len + 1 tokens, expected "
                f"workload.eval_sequences = {count}; {remedy}"
            )

    def check_unchanged(self) -> None:
        for path, before in self._mapped.items():
            if _state(path) != before:
                raise DataError(
                    f"{path}: has changed since the run began to read it, so the training data are unknown; do not "
                    "change data files during a run"
                )

    def describe(self) -> dict[str, Any]:
        return {
            **self._description,
            "train_tokens": len(self._train),
            "train_sequences": self._windows,
            "held_out_tokens": len(self._held_out),
            "held_out_sequences": self._count_windows(self._held_out),
        }

    def cautions(self) -> list[str]:
        return self._cautions

    def _count_windows(self, tokens: Tokens) -> int:
        return max(0, (len(tokens) - 1) // self._seq_len)

    def _window(self, sample: int) -> int:
        epoch, position = divmod(sample, self._windows)
        if epoch not in self._orders:
            self._orders[epoch] = self._order(epoch)
        factor, offset = self._orders[epoch]
        return (factor * position + offset) % self._windows

    def _order(self, epoch: int) -> tuple[int, int]:
        first, second = stream_key(self._seed, "order", epoch)
        factor = first % self._windows or 1
        while math.gcd(factor, self._windows) != 1:
            factor += 1
        return factor, second % self._windows

    def _rows(self, tokens: Tokens, windows: list[int], source: str) -> np.ndarray:
        rows = np.empty((len(windows), self._seq_len + 1), dtype=np.int64)
        for row, window in zip(rows, windows, strict=True):
            start = window * self._seq_len
            row[:] = np.asarray(tokens[start : start + self._seq_len + 1])
        smallest, largest = int(rows.min(initial=0)), int(rows.max(initial=0))
        if smallest < 0 or largest >= self._vocab_size:
            found = smallest if smallest < 0 else largest
            raise DataError(
                f"{source}: holds token id {found}, expected ids below model.vocab_size = "
                f"{self._vocab_size}; use the tokens' own model, or set model.vocab_size"
            )
        return rows


def split_held_out(tokens: Tokens, fraction: float) -> tuple[Tokens, Tokens]:
    """Return the training part and the held-out part, which is the last `fraction` of the tokens."""
    first = len(tokens) - int(len(tokens) * fraction)
    return tokens[:first], tokens[first:]


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return a file's size, modification time and inode, one of which differs after a change; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def unigram_entropy(tokens: Tokens, vocab_size: int) -> float:
    """Return the entropy of single tokens in nats: the loss of a model that knows their frequencies only."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    # bincount makes eight bytes of each token.
    for start in range(0, len(tokens), 1 << 20):
        counts += np.bincount(np.asarray(tokens[start : start + (1 << 20)]), minlength=vocab_size)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
