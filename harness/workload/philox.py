"""Random numbers with the same bits on every machine, NumPy version and world size.

They come from Philox-4x64-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11), a
counter-based generator: word i of a stream is a function of (key, i), so any part of a stream can be generated
without the rest. Its raw 64-bit words pass through integer arithmetic and correctly rounded IEEE operations only:
NumPy's own distributions may change between versions, and log, cos and exp differ between machines.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np

WORDS_PER_COUNTER = 4
_CHUNK = 1 << 20
_LOW_16_BITS = np.uint64(0xFFFF)
# A sum of four uniform 16-bit integers: mean 4 x (2^16 - 1) / 2, variance 4 x (2^32 - 1) / 12.
_SUM_MEAN = 2.0 * 65535.0
# math.sqrt, not pow: only sqrt is correctly rounded everywhere.
_SUM_STD = math.sqrt((2.0**32 - 1.0) / 3.0)


def stream_key(*parts: object) -> tuple[int, int]:
    """Return the 128-bit Philox key of the stream with this name, such as (seed, "weights", name)."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def words(key: tuple[int, int], start: int, count: int) -> np.ndarray:
    """Return words `start` to `start + count` of a stream: uint64 [count]."""
    generator = np.random.Philox(key=np.array(key, dtype=np.uint64))
    generator.advance(start // WORDS_PER_COUNTER)
    before = start % WORDS_PER_COUNTER
    return generator.random_raw(before + count)[before:]


def approximately_normal(key: tuple[int, int], count: int, std: float, first: int = 0) -> Iterator[np.ndarray]:
    """Yield chunks of float32 values of mean 0 and standard deviation `std`: `count` in all, from number `first` on.

    Each value is a centered sum of four uniform 16-bit integers (an Irwin-Hall variable: excess kurtosis -0.3,
    at most 3.46 standard deviations, close to the truncated normals that many models are initialized with). Unlike
    a true normal it needs no logarithm, so its bits do not depend on a math library.
    """
    scale = std / _SUM_STD
    for start in range(first, first + count, _CHUNK):
        raw = words(key, start, min(_CHUNK, first + count - start))
        total = (
            (raw & _LOW_16_BITS)
            + ((raw >> np.uint64(16)) & _LOW_16_BITS)
            + ((raw >> np.uint64(32)) & _LOW_16_BITS)
            + (raw >> np.uint64(48))
        )
        yield ((total.astype(np.float64) - _SUM_MEAN) * scale).astype(np.float32)
