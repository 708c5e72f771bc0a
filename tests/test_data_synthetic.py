"""Synthetic data set: tokens are a fixed function of (seed, split, number), and the stated entropies are right.

The oracle in this file learns the language from data by the definition in the module's docstring, with none of its
code: the ring from which symbols follow which, each symbol's class from the color that comes LAG later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from harness.composition import load
from harness.errors import DataError
from harness.workload.data import open_dataset
from harness.workload.data.synthetic import CHUNK_SAMPLES, SyntheticDataset

LAG, COLORS, EXPECTED = 4, 4, 13 / 16
GOLDEN_TRAIN = {
    4: [3, 0, 2, 1, 0, 1, 3, 2, 1, 3, 2, 2, 2],
    5: [4, 3, 2, 0, 4, 0, 4, 2, 0, 4, 0, 2, 2],
    256: [45, 29, 201, 22, 13, 94, 8, 246, 146, 79, 219, 128, 69],
    50257: [8322, 773, 42168, 44975, 38046, 30173, 14419, 26363, 50204, 41513, 29952, 9789, 11707],
}
GOLDEN_HELD_OUT_3 = {
    4: [0, 0, 3, 3, 1, 1, 1, 2, 2, 2, 2, 3, 3],
    5: [3, 3, 4, 4, 0, 0, 3, 0, 2, 2, 0, 2, 4],
    256: [164, 139, 97, 234, 7, 167, 5, 249, 93, 220, 142, 90, 3],
    50257: [11676, 3286, 25553, 46293, 25343, 46527, 29992, 31519, 44261, 42772, 49750, 11988, 19393],
}
VOCABULARIES = pytest.mark.parametrize("vocab_size", [4, 5, 256, 50257])


class TestSameness:
    @VOCABULARIES
    def test_golden(self, vocab_size: int) -> None:
        dataset = SyntheticDataset(vocab_size, seq_len=12, seed=1)
        assert dataset.train(0, 1).tolist() == [GOLDEN_TRAIN[vocab_size]]
        assert dataset.held_out(3, 1).tolist() == [GOLDEN_HELD_OUT_3[vocab_size]]

    def test_is_what_the_config_opens(self) -> None:
        config = load(["model=tiny", "workload.seq_len=12", "seed=1"])
        assert open_dataset(config).train(0, 1).tolist() == [GOLDEN_TRAIN[256]]

    @pytest.mark.parametrize("split", ["train", "held_out"])
    def test_any_chunking_and_any_order_give_the_same_rows(self, split: str) -> None:
        def read(dataset: SyntheticDataset, first: int, count: int) -> np.ndarray:
            return getattr(dataset, split)(first, count)

        count = 3 * CHUNK_SAMPLES + 5
        whole = read(SyntheticDataset(256, 16, seed=1), 0, count)
        assert whole.shape == (count, 17)
        assert whole.dtype == np.int64
        assert len(np.unique(whole, axis=0)) == count
        dataset = SyntheticDataset(256, 16, seed=1)
        for size in (1, 7, CHUNK_SAMPLES, CHUNK_SAMPLES + 1, count):
            parts = [read(dataset, first, min(size, count - first)) for first in range(0, count, size)]
            assert np.array_equal(np.concatenate(parts), whole), size
        for sample in (count - 1, 0, CHUNK_SAMPLES, CHUNK_SAMPLES - 1, 70, 70, 3):
            assert np.array_equal(read(dataset, sample, 1), whole[sample : sample + 1]), sample

    def test_rows_are_the_callers_own(self) -> None:
        dataset = SyntheticDataset(256, 16, seed=1)
        rows = dataset.train(0, 4)
        before = rows.copy()
        rows[:] = 0
        assert np.array_equal(dataset.train(0, 4), before)
        # And a later call writes into none of it.
        kept = dataset.train(0, 4)
        dataset.train(1000, 4)
        assert np.array_equal(kept, before)

    def test_a_distant_sample_is_found_at_once(self) -> None:
        dataset = SyntheticDataset(256, 16, seed=1)
        far = dataset.train(10**12 - 2, 5)
        assert np.array_equal(dataset.train(10**12, 1), far[2:3])
        assert len(np.unique(far, axis=0)) == 5

    def test_splits_and_seeds_give_different_sequences_of_one_language(self) -> None:
        one, two = SyntheticDataset(300, 64, seed=1), SyntheticDataset(300, 64, seed=2)
        sets = [one.train(0, 500), one.held_out(0, 500), two.train(0, 500), two.held_out(0, 500)]
        assert len(np.unique(np.concatenate(sets), axis=0)) == 2000
        # The alphabet is the same for all.
        assert len({tuple(np.unique(rows)) for rows in sets}) == 1

    def test_a_longer_sequence_begins_as_the_shorter(self) -> None:
        # Within one Philox counter a sample: 3 words of 16 tokens.
        short, long = SyntheticDataset(256, 20, seed=1), SyntheticDataset(256, 48, seed=1)
        assert np.array_equal(short.train(0, 9), long.train(0, 9)[:, :21])


class TestShape:
    @VOCABULARIES
    def test_ids_lie_within_the_vocabulary(self, vocab_size: int) -> None:
        dataset = SyntheticDataset(vocab_size, seq_len=63, seed=1)
        alphabet = 2 ** min(10, int(math.log2(vocab_size)))
        rows = dataset.train(0, 2000)
        assert rows.min() >= 0
        assert rows.max() < vocab_size
        assert len(np.unique(rows)) <= alphabet
        assert dataset.describe()["alphabet_size"] == alphabet
        # Scattered over the vocabulary, not its first ids.
        if vocab_size == 50257:
            assert rows.max() > 49000
            assert np.median(np.unique(rows)) == pytest.approx(25000, rel=0.2)

    @pytest.mark.parametrize("vocab_size", [1, 2, 3])
    def test_a_vocabulary_too_small_is_refused(self, vocab_size: int) -> None:
        with pytest.raises(DataError, match=rf"model\.vocab_size: found {vocab_size}, expected at least 4"):
            SyntheticDataset(vocab_size, seq_len=12, seed=1)

    @VOCABULARIES
    @pytest.mark.parametrize("seq_len", [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 47, 48, 49])
    def test_any_length_of_sequence(self, vocab_size: int, seq_len: int) -> None:
        rows = SyntheticDataset(vocab_size, seq_len, seed=1).train(0, 3)
        assert rows.shape == (3, seq_len + 1)
        # The first sequence of the stream does not depend on the length.
        longest = SyntheticDataset(vocab_size, 64, seed=1).train(0, 1)
        assert np.array_equal(rows[0], longest[0, : seq_len + 1])


@dataclass
class Oracle:
    """The language by its definition, with the ring and the classes found by counting."""

    place_of: np.ndarray
    class_of_place: np.ndarray

    @classmethod
    def learn(cls, rows: np.ndarray, vocab_size: int) -> Oracle:
        symbols = np.unique(rows)
        follows = np.zeros((vocab_size, vocab_size), dtype=bool)
        follows[rows[:, :-1], rows[:, 1:]] = True
        assert (follows[symbols].sum(axis=1) == COLORS).all(), "each symbol has four followers"
        place_of = np.full(vocab_size, -1)
        symbol, place = symbols[0], 0
        while place_of[symbol] < 0:
            place_of[symbol] = place
            # Of the four that follow, the next on the ring shares three followers with this one.
            followers = np.flatnonzero(follows[symbol])
            (symbol,) = [s for s in followers if (follows[s] & follows[symbol]).sum() == COLORS - 1]
            place += 1
        assert place == len(symbols), "one ring of all symbols"
        places = place_of[rows]
        counts = np.zeros((len(symbols), COLORS), dtype=np.int64)
        np.add.at(counts, (places[:, :-LAG], places[:, LAG:] % COLORS), 1)
        return cls(place_of, counts.argmax(axis=1))

    def colors_off(self, rows: np.ndarray) -> np.ndarray:
        """Return the difference of each color from token LAG on to the expected one."""
        places = self.place_of[rows]
        return (places[:, LAG:] - self.class_of_place[places[:, :-LAG]]) % COLORS


SEQ_LEN, SAMPLES = 256, 4000  # a million tokens


@pytest.fixture(scope="module")
def dataset() -> SyntheticDataset:
    return SyntheticDataset(300, SEQ_LEN, seed=1)  # an alphabet of 256


@pytest.fixture(scope="module")
def train(dataset: SyntheticDataset) -> np.ndarray:
    return dataset.train(0, SAMPLES)


@pytest.fixture(scope="module")
def held_out(dataset: SyntheticDataset) -> np.ndarray:
    return dataset.held_out(0, SAMPLES)


@pytest.fixture(scope="module")
def off(train: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    return Oracle.learn(train, 300).colors_off(held_out)


class TestEntropy:
    def test_floor_is_the_formula(self) -> None:
        guided = -(13 / 16) * math.log(13 / 16) - (3 / 16) * math.log(1 / 16)
        for seq_len in (1, 2, 3, 4, 5, 256, 4096):
            free = min(3, seq_len)
            expected = (free * math.log(4) + (seq_len - free) * guided) / seq_len
            dataset = SyntheticDataset(300, seq_len, seed=1)
            assert dataset.entropy_floor_nats() == pytest.approx(expected, rel=1e-12)
            assert dataset.describe()["entropy_floor_nats"] == dataset.entropy_floor_nats()

    def test_an_oracle_reaches_the_floor(self, dataset: SyntheticDataset, off: np.ndarray) -> None:
        right = (off == 0).mean()
        guided = -right * math.log(EXPECTED) - (1 - right) * math.log((1 - EXPECTED) / 3)
        found = ((LAG - 1) * math.log(4) + (SEQ_LEN - LAG + 1) * guided) / SEQ_LEN
        # Of N targets, right with 13/16: five standard errors of the mean of a two-valued loss, 13-fold apart.
        error = math.log(13) * math.sqrt(EXPECTED * (1 - EXPECTED) / off.size)
        print(f"oracle {found:.5f}, floor {dataset.entropy_floor_nats():.5f}, standard error {error:.5f} nats")
        assert abs(found - dataset.entropy_floor_nats()) < 5 * error

    def test_the_other_three_colors_are_equally_likely(self, off: np.ndarray) -> None:
        for wrong in (1, 2, 3):
            share = (off == wrong).mean()
            assert abs(share - 1 / 16) < 5 * math.sqrt(15 / 256 / off.size)

    def test_the_past_does_not_predict_which_colors_are_off(self, off: np.ndarray, held_out: np.ndarray) -> None:
        """If the choices depended on anything before them, a model could get below the stated floor."""
        contexts = {f"off {lag} before": (off[:, lag:], off[:, :-lag]) for lag in (*range(1, 20), 32, 64)}
        contexts |= {f"token {lag} before": (off, held_out[:, LAG - lag : -lag]) for lag in (1, 2, 3, 4)}
        contexts["position"] = (off, np.broadcast_to(np.arange(off.shape[1]), off.shape))
        contexts["position in a word"] = (off, np.broadcast_to(np.arange(off.shape[1]) % 16, off.shape))
        contexts["the sample before"] = (off[1:], off[:-1])
        for what, (now, context) in contexts.items():
            freedom = (len(np.unique(context)) - 1) * 3
            # Twice N times the mutual information in nats is chi-squared if there is none.
            likelihood_ratio = 2 * now.size * mutual_information(now, context)
            assert likelihood_ratio < freedom + 5 * math.sqrt(2 * freedom) + 10, what

    def test_the_first_colors_are_uniform(self, train: np.ndarray, held_out: np.ndarray) -> None:
        places = Oracle.learn(train, 300).place_of[held_out]
        moves = (places[:, 1:LAG] - places[:, : LAG - 1]) % 256
        for column in moves.T:
            counts = np.bincount(column, minlength=5)
            assert counts[0] == 0
            assert len(counts) == 5
            assert np.abs(counts[1:] - SAMPLES / 4).max() < 5 * math.sqrt(SAMPLES * 3 / 16)
        assert np.abs(np.bincount(places[:, 0], minlength=256) - SAMPLES / 256).max() < 5 * math.sqrt(SAMPLES / 256) + 3

    def test_a_bigram_model_stays_far_above_the_floor(
        self, dataset: SyntheticDataset, train: np.ndarray, held_out: np.ndarray
    ) -> None:
        loss = count_model_loss(train[:, :-1], train[:, 1:], held_out[:, :-1], held_out[:, 1:])
        print(f"bigram {loss:.4f}, floor {dataset.entropy_floor_nats():.4f} nats")
        assert dataset.entropy_floor_nats() + 0.3 < loss < math.log(4) + 0.01

    @pytest.mark.parametrize("lag", [1, 2, 3, 4, 5])
    def test_no_pair_of_tokens_beats_the_floor(self, lag: int) -> None:
        # Of a small alphabet, so that every context of two tokens is counted often.
        dataset = SyntheticDataset(16, SEQ_LEN, seed=1)
        rows, held_out = dataset.train(0, SAMPLES), dataset.held_out(0, SAMPLES)

        def context(tokens: np.ndarray) -> np.ndarray:
            return tokens[:, 4:-1] * 16 + tokens[:, 5 - lag : -lag]

        loss = count_model_loss(context(rows), rows[:, 5:], context(held_out), held_out[:, 5:])
        guided = -(13 / 16) * math.log(13 / 16) - (3 / 16) * math.log(1 / 16)
        assert loss > guided - 0.01
        # The lag of the language reaches the floor.
        assert (loss < guided + 0.01) == (lag == LAG)

    @pytest.mark.parametrize("vocab_size", [64, 300, 1024, 50257])
    def test_single_symbols_are_nearly_equally_frequent(self, vocab_size: int) -> None:
        dataset = SyntheticDataset(vocab_size, SEQ_LEN, seed=1)
        rows = dataset.train(0, SAMPLES)
        assert len(np.unique(rows)) == dataset.alphabet_size
        assert math.log(dataset.alphabet_size) - 0.2 < entropy(rows) <= math.log(dataset.alphabet_size)

    @pytest.mark.parametrize("vocab_size", [4, 5, 64, 300, 50257])
    def test_the_stated_unigram_entropy_is_that_of_the_tokens(self, vocab_size: int) -> None:
        dataset = SyntheticDataset(vocab_size, SEQ_LEN, seed=1)
        stated, found = dataset.describe()["unigram_entropy_nats"], entropy(dataset.train(0, SAMPLES))
        # It may be null, but not wrong.
        assert stated is None or stated == pytest.approx(found, abs=0.02)


def entropy(values: np.ndarray) -> float:
    """Return the entropy of the values' frequencies in nats."""
    shares = np.unique(values, return_counts=True)[1] / values.size
    return float(-(shares * np.log(shares)).sum())


def mutual_information(one: np.ndarray, two: np.ndarray) -> float:
    return entropy(one) + entropy(two) - entropy(two.astype(np.int64) * COLORS + one)


def count_model_loss(context: np.ndarray, target: np.ndarray, new_context: np.ndarray, new_target: np.ndarray) -> float:
    """Return the mean loss in nats, on new data, of a model that counted the targets of each context."""
    size, targets = max(context.max(), new_context.max()) + 1, max(target.max(), new_target.max()) + 1
    pairs = np.bincount((context * targets + target).ravel(), minlength=size * targets).reshape(size, targets)
    # Smoothing for unseen pairs.
    shares = (pairs + 1e-3) / (pairs + 1e-3).sum(axis=1, keepdims=True)
    return float(-np.log(shares[new_context, new_target]).mean())
