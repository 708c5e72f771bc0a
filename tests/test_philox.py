"""Philox-4x64-10: words against the paper, any part of a stream generated alone, and golden bits.

Golden words and values are literals: with a NumPy, compiler or processor that gives others, runs are not comparable.
"""

from __future__ import annotations

import numpy as np
import pytest

from harness.workload import philox as random
from harness.workload.philox import approximately_normal, stream_key, words

KEY = (15735837036945950450, 9401574212422512990)  # of (1, "weights", "embedding.weight")
GOLDEN_WORDS = [
    0x379C82517EF57D62,
    0xEB4E037CB763A0E9,
    0x10F57F0316E4CBCA,
    0x9A3275095DE24318,
    0x831C7C89B7B41DCD,
    0x1B0DC34A7AE9560B,
    0x3524C824E10831D5,
    0xCED34ACAECA4E7BA,
]
# Bit patterns of float32 values with standard deviation 0.02.
GOLDEN_NORMAL_BITS = [
    3156440097,
    1008573915,
    3164384875,
    3157320380,
    3149789353,
    3157453189,
    990854552,
    1023666192,
]

_LOW_64_BITS = (1 << 64) - 1


def philox_4x64_10(key: tuple[int, int], counter: int) -> list[int]:
    """One block of four words, from the paper (Salmon et al., SC'11) in Python's own integers."""
    words_in = [(counter >> (64 * place)) & _LOW_64_BITS for place in range(4)]
    low, high = key
    for _ in range(10):
        one = 0xD2E7470EE14C6C93 * words_in[0]
        two = 0xCA5A826395121157 * words_in[2]
        words_in = [
            (two >> 64) ^ words_in[1] ^ low,
            two & _LOW_64_BITS,
            (one >> 64) ^ words_in[3] ^ high,
            one & _LOW_64_BITS,
        ]
        low = (low + 0x9E3779B97F4A7C15) & _LOW_64_BITS
        high = (high + 0xBB67AE8584CAA73B) & _LOW_64_BITS
    return words_in


def normal(count: int, std: float = 1.0, key: tuple[int, int] = KEY) -> np.ndarray:
    return np.concatenate(list(approximately_normal(key, count, std)))


class TestWords:
    def test_golden(self) -> None:
        found = words(KEY, 0, 8)
        assert found.dtype == np.uint64
        assert found.tolist() == GOLDEN_WORDS

    def test_the_reference_gives_the_authors_known_answers(self) -> None:
        # Random123's kat_vectors, "philox4x64 10": counter and key all zeros, then all ones.
        assert philox_4x64_10((0, 0), 0) == [
            0x16554D9ECA36314C,
            0xDB20FE9D672D0FDC,
            0xD7E772CEE186176B,
            0x7E68B68AEC7BA23B,
        ]
        assert philox_4x64_10((_LOW_64_BITS, _LOW_64_BITS), (1 << 256) - 1) == [
            0x87B092C3013FE90B,
            0x438C3C67BE8D0224,
            0x9CC7D7C69CD777B6,
            0xA09CAEBF594F0BA0,
        ]

    @pytest.mark.parametrize("block", [0, 1, 12345, 10**15, (1 << 64) - 2, (1 << 64) + 5])
    def test_are_those_of_the_paper_at_any_position(self, block: int) -> None:
        # NumPy counts up before its first block.
        expected = philox_4x64_10(KEY, block + 1) + philox_4x64_10(KEY, block + 2)
        assert words(KEY, 4 * block, 8).tolist() == expected

    @pytest.mark.parametrize(
        ("start", "count"), [(0, 1), (0, 1000), (4, 7), (8, 3), (400, 600), (996, 4), (1, 4), (2, 1), (3, 997), (5, 6)]
    )
    def test_are_addressed_by_position(self, start: int, count: int) -> None:
        whole = words(KEY, 0, 1000)
        assert np.array_equal(words(KEY, start, count), whole[start : start + count])


class TestStreamKey:
    def test_golden(self) -> None:
        assert stream_key(1, "weights", "embedding.weight") == KEY

    def test_streams_are_distinct(self) -> None:
        names = ["embedding.weight", "position.weight"]
        names += [f"blocks.{layer}.{part}.weight" for layer in range(100) for part in ("attention.q", "down")]
        keys = {stream_key(seed, kind, name) for seed in range(5) for kind in ("weights", "order") for name in names}
        assert len(keys) == 5 * 2 * len(names)
        assert len({low for low, _ in keys}) == len({high for _, high in keys}) == len(keys)

    def test_parts_are_kept_apart(self) -> None:
        assert len({stream_key(1, 23), stream_key(12, 3), stream_key(123), stream_key(1, "2", 3)}) == 4

    def test_different_keys_give_unrelated_words(self) -> None:
        one, two = (words(stream_key(1, "order", epoch), 0, 10_000) for epoch in (0, 1))
        assert not np.intersect1d(one, two).size
        differing_bits = np.bitwise_count(one ^ two).mean() if hasattr(np, "bitwise_count") else 32.0
        assert abs(differing_bits - 32) < 5 * 4 / 100  # 64 fair coins: deviation 4, over 10 000 words


class TestApproximatelyNormal:
    def test_golden(self) -> None:
        found = normal(8, std=0.02)
        assert found.dtype == np.float32
        assert found.view(np.uint32).tolist() == GOLDEN_NORMAL_BITS

    def test_is_the_centered_sum_of_each_words_four_quarters(self) -> None:
        for word, value in zip(GOLDEN_WORDS, normal(8), strict=True):
            total = sum((word >> shift) & 0xFFFF for shift in (0, 16, 32, 48))
            deviation = ((2**32 - 1) / 3) ** 0.5
            assert value == pytest.approx((total - 131070) / deviation, rel=1e-6)

    def test_moments_are_those_of_four_summed_uniforms(self) -> None:
        count = 1 << 20
        values = normal(count, std=0.02).astype(np.float64) / 0.02
        # Five standard errors each.
        assert abs(values.mean()) < 5 / count**0.5
        assert abs(values.std() - 1) < 5 * (1.7 / (4 * count)) ** 0.5
        assert abs((values**3).mean()) < 5 * (12 / count) ** 0.5
        assert abs((values**4).mean() - 2.7) < 5 * (70 / count) ** 0.5
        assert 3.2 < np.abs(values).max() <= 2 * 3**0.5

    def test_neighbors_are_uncorrelated(self) -> None:
        values = normal(1 << 18).astype(np.float64)
        for lag in (1, 2, 3, 4, 64):
            assert abs((values[lag:] * values[:-lag]).mean()) < 5 / 512

    def test_continues_across_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        count = (1 << 20) + 10
        chunks = list(approximately_normal(KEY, count, 0.02))
        assert [len(chunk) for chunk in chunks] == [1 << 20, 10]
        # The values past the boundary are those of the words past the boundary.
        quarters = words(KEY, 1 << 20, 10).astype("<u8").view("<u2").reshape(10, 4).astype(np.float64)
        expected = (quarters.sum(axis=1) - 131070) * (0.02 / ((2**32 - 1) / 3) ** 0.5)
        np.testing.assert_allclose(chunks[1], expected, rtol=1e-6)
        monkeypatch.setattr(random, "_CHUNK", 1 << 16)
        assert np.array_equal(np.concatenate(chunks), normal(count, std=0.02))

    @pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 63])
    def test_any_count_is_a_beginning_of_the_same_stream(self, count: int) -> None:
        chunks = list(approximately_normal(KEY, count, 1.0))
        assert sum(len(chunk) for chunk in chunks) == count
        assert [value for chunk in chunks for value in chunk] == normal(64)[:count].tolist()
