"""Synthetic token language: learnable, for any vocabulary size, with a known entropy floor and nothing to download.

The language has an alphabet of M symbols (a power of two, at most 1024, scattered over the vocabulary), arranged
in a ring. Symbols have colors, 0 to 3 in turn around the ring, and each has a random class, 0 to 3. The next
symbol is one of the four that follow on the ring. These have one of each color, so that its color selects it:

    color[t] = class[t - LAG]              in 13 of 16 cases
                one of the other three      in 1 of 16 cases each

So a model first learns which symbols occur (loss a little below ln M), then which can follow each (below ln 4:
about 1.18), and reaches the floor only by attending LAG tokens back: a broken attention, position or mask shows
in the loss.

Colors are independent given the past, hence the entropy of each target token is exact: H(13/16, 1/16, 1/16,
1/16) nats, and ln 4 for the first LAG - 1 targets of a sequence, which have no token LAG back.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from harness.errors import DataError
from harness.workload.data.base import Dataset, unigram_entropy
from harness.workload.philox import WORDS_PER_COUNTER, stream_key, words

LAG = 4
# Samples generated at once and cached for the next call: generating a few at a time is slow.
CHUNK_SAMPLES = 64
COLORS = 4
MAX_ALPHABET = 1024
UNIGRAM_SAMPLE_TOKENS = 500_000
EXPECTED_CASES, ALL_CASES = 13, 16
# The language is the same for every seed; the seed selects the sequences.
_LANGUAGE = "synthetic language 1"
# Added to the expected color, by the value of 4 random bits.
_SHIFT = np.array([0] * EXPECTED_CASES + [1, 2, 3], dtype=np.uint8)


class SyntheticDataset(Dataset):
    """Sequences that are a function of (seed, split, sample number) alone."""

    def __init__(self, vocab_size: int, seq_len: int, seed: int) -> None:
        if vocab_size < COLORS:
            raise DataError(f"model.vocab_size: found {vocab_size}, expected at least {COLORS} for data=synthetic")
        self._seq_len = seq_len
        self.alphabet_size = min(1 << (vocab_size.bit_length() - 1), MAX_ALPHABET)
        shuffled = np.argsort(words(stream_key(_LANGUAGE, "alphabet", vocab_size), 0, vocab_size), kind="stable")
        self._alphabet = shuffled[: self.alphabet_size].astype(np.int64)
        class_words = words(stream_key(_LANGUAGE, "classes", vocab_size), 0, self.alphabet_size)
        self._class_of_place = (class_words >> np.uint64(62)).astype(np.uint8)
        self._keys = {split: stream_key(seed, "synthetic", split) for split in ("train", "held out")}
        self._cached: tuple[int, np.ndarray] | None = None
        # One word for the first place and 4 bits for each further token; whole Philox counters.
        needed = 1 + math.ceil(seq_len / 16)
        self._words_per_sample = math.ceil(needed / WORDS_PER_COUNTER) * WORDS_PER_COUNTER

    def train(self, first_sample: int, count: int) -> np.ndarray:
        """Return training sequences. The last chunk is cached; two threads may ask, and each keeps what it has read."""
        chunks = []
        while count > 0:
            chunk, offset = divmod(first_sample, CHUNK_SAMPLES)
            cached = self._cached
            if cached is None or cached[0] != chunk:
                cached = self._cached = (chunk, self._generate("train", chunk * CHUNK_SAMPLES, CHUNK_SAMPLES))
            chunks.append(cached[1][offset : offset + count])
            first_sample, count = first_sample + len(chunks[-1]), count - len(chunks[-1])
        # A copy, so that the caller may write to it.
        return np.concatenate(chunks)

    def held_out(self, first_sample: int, count: int) -> np.ndarray:
        return self._generate("held out", first_sample, count)

    def describe(self) -> dict[str, Any]:
        return {
            "name": "synthetic",
            "alphabet_size": self.alphabet_size,
            "entropy_floor_nats": self.entropy_floor_nats(),
            "unigram_entropy_nats": self._unigram_entropy_nats(),
        }

    def entropy_floor_nats(self) -> float:
        """Return the mean conditional entropy of the target tokens, the lower bound of a model's expected loss."""
        expected, other = EXPECTED_CASES / ALL_CASES, 1 / ALL_CASES
        with_context = -expected * math.log(expected) - (COLORS - 1) * other * math.log(other)
        unguided = min(LAG - 1, self._seq_len)
        return (unguided * math.log(COLORS) + (self._seq_len - unguided) * with_context) / self._seq_len

    def _unigram_entropy_nats(self) -> float:
        """Return the entropy of single tokens, measured, since the walk around the ring does not visit all equally."""
        sample = self._generate("held out", 0, math.ceil(UNIGRAM_SAMPLE_TOKENS / (self._seq_len + 1)))
        return unigram_entropy(sample.ravel(), int(self._alphabet.max()) + 1)

    def _generate(self, split: str, first_sample: int, count: int) -> np.ndarray:
        per_sample = self._words_per_sample
        raw = words(self._keys[split], first_sample * per_sample, count * per_sample)
        raw = raw.astype("<u8", copy=False).reshape(count, per_sample)
        places = np.empty((count, self._seq_len + 1), dtype=np.int32)
        mask = self.alphabet_size - 1
        places[:, 0] = raw[:, 0] & np.uint64(mask)
        bits = _four_bits(raw[:, 1:])[:, : self._seq_len]
        colors = np.empty(places.shape, dtype=np.uint8)
        colors[:, 0] = places[:, 0] & (COLORS - 1)
        # Target t uses the 4 bits t - 1. The first targets have no token LAG back: their color is uniform. Then a
        # chunk of LAG tokens depends only on the chunk before it.
        colors[:, 1:LAG] = bits[:, : LAG - 1] >> 2
        shift = _SHIFT[bits]
        for start in range(1, self._seq_len + 1, LAG):
            stop = min(start + LAG, self._seq_len + 1)
            guided = min(max(start, LAG), stop)
            expected = self._class_of_place[places[:, guided - LAG : stop - LAG]]
            colors[:, guided:stop] = (expected + shift[:, guided - 1 : stop - 1]) & (COLORS - 1)
            _walk(places, colors, start, stop, mask)
        return self._alphabet[places]


def _walk(places: np.ndarray, colors: np.ndarray, start: int, stop: int, mask: int) -> None:
    """Fill places[:, start:stop]: each is 1 to 4 places after the one before it, at the given color."""
    moves = ((colors[:, start:stop] - colors[:, start - 1 : stop - 1] - 1) & (COLORS - 1)) + 1
    walked = places[:, start:stop]
    np.cumsum(moves, axis=1, dtype=np.int32, out=walked)
    walked += places[:, start - 1 : start]
    walked &= mask


def _four_bits(raw: np.ndarray) -> np.ndarray:
    """Split little-endian words, uint64 [count, n], into 4-bit values, lowest first: uint8 [count, 16 n]."""
    octets = np.ascontiguousarray(raw).view(np.uint8)
    halves = np.empty((*octets.shape, 2), dtype=np.uint8)
    np.bitwise_and(octets, 15, out=halves[..., 0])
    np.right_shift(octets, 4, out=halves[..., 1])
    return halves.reshape(len(raw), -1)
