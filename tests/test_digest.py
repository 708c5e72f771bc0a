"""Digests of weights and training sequences: equal inputs give equal digests, one changed bit another digest."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import nn

from harness.workload.digest import BatchDigest, init_digest, parameter_norms

ROWS = np.arange(6 * 9, dtype=np.int64).reshape(6, 9) * 7 % 50


def digest(parts: Iterable[tuple[str, int, np.ndarray]]) -> str:
    total = BatchDigest()
    for stream, first_sample, rows in parts:
        total.add(stream, first_sample, rows)
    return total.hexdigest()


class TestBatchDigest:
    whole = digest([("train", 10, ROWS)])

    def test_golden(self) -> None:
        assert self.whole == "cd4a2533a00fd7f2f4150f75506a78c3c1d4787ccd77cf4604ad10c95f8baf00"

    def test_is_the_sum_of_each_sequences_hash(self) -> None:
        total = 0
        for number, row in enumerate(ROWS, start=10):
            content = b"train:%d:" % number + struct.pack("<9i", *row)
            total += int.from_bytes(hashlib.sha256(content).digest(), "big")
        assert self.whole == f"{total % 2**256:064x}"

    def test_is_zero_without_sequences(self) -> None:
        assert BatchDigest().hexdigest() == "0" * 64

    def test_order_does_not_matter(self) -> None:
        assert digest(("train", 10 + n, ROWS[n : n + 1]) for n in (3, 5, 0, 1, 4, 2)) == self.whole

    def test_partition_does_not_matter(self) -> None:
        for cut in range(7):
            assert digest([("train", 10 + cut, ROWS[cut:]), ("train", 10, ROWS[:cut])]) == self.whole

    def test_parts_of_ranks_add_up(self) -> None:
        ranks = [BatchDigest() for _ in range(3)]
        for n in range(6):
            ranks[n % 3].add("train", 10 + n, ROWS[n : n + 1])
        for order in ((0, 1, 2), (2, 0, 1)):
            total = BatchDigest()
            for rank in order:
                total.merge(ranks[rank].hexdigest())
            assert total.hexdigest() == self.whole

    def test_type_and_layout_of_the_array_do_not_matter(self) -> None:
        for dtype in (np.int32, np.uint16, np.uint8, ">i8"):
            assert digest([("train", 10, ROWS.astype(dtype))]) == self.whole
        assert digest([("train", 10, np.asfortranarray(ROWS))]) == self.whole
        wide = np.repeat(ROWS, 2, axis=1)[:, ::2]
        assert not wide.flags["C_CONTIGUOUS"]
        assert digest([("train", 10, wide)]) == self.whole

    def test_any_change_is_noticed(self) -> None:
        altered, swapped = ROWS.copy(), ROWS.copy()
        altered[3, 4] ^= 1
        swapped[[1, 2]] = swapped[[2, 1]]
        changes = {
            "nothing": [("train", 10, ROWS)],
            "one skipped": [("train", 10, ROWS[:-1])],
            "one in the middle skipped": [("train", 10, ROWS[:2]), ("train", 13, ROWS[3:])],
            "one repeated": [("train", 10, ROWS), ("train", 12, ROWS[2:3])],
            "one altered": [("train", 10, altered)],
            "two exchanged": [("train", 10, swapped)],
            "renumbered": [("train", 11, ROWS)],
            "another stream": [("held out", 10, ROWS)],
            "one of another stream": [("held out", 10, ROWS[:1]), ("train", 11, ROWS[1:])],
            "shortened": [("train", 10, ROWS[:, :-1])],
            "all twice": [("train", 10, ROWS), ("train", 10, ROWS)],
        }
        digests = {what: digest(parts) for what, parts in changes.items()}
        assert len(set(digests.values())) == len(changes), digests


class Two(nn.Module):
    """Two matrices and a vector, registered in the given order."""

    one: nn.Parameter
    two: nn.Parameter
    bias: nn.Parameter

    def __init__(self, names: tuple[str, ...] = ("one", "two", "bias")) -> None:
        super().__init__()
        for name in names:
            values = np.arange(6, dtype=np.float32) + {"one": 0.0, "uno": 0.0, "two": 0.5, "bias": 1.0}[name]
            shape = (6,) if name == "bias" else (2, 3)
            setattr(self, name, nn.Parameter(torch.from_numpy(values).view(shape)))

    def flip(self, name: str, element: int, bit: int) -> None:
        getattr(self, name).data.view(torch.int32).flatten()[element] ^= 1 << bit


class TestInitDigest:
    def test_is_the_hash_of_names_shapes_and_bytes(self) -> None:
        parts = [
            (b"bias(6,)", [1, 2, 3, 4, 5, 6]),
            (b"one(2, 3)", [0, 1, 2, 3, 4, 5]),
            (b"two(2, 3)", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]),
        ]
        total = hashlib.sha256()
        for name, values in parts:
            total.update(hashlib.sha256(name + struct.pack("<6f", *values)).digest())
        assert init_digest(Two()) == total.hexdigest()

    def test_any_flipped_bit_is_noticed(self) -> None:
        seen = {init_digest(Two())}
        flips = [("one", 5, 0), ("one", 0, 31), ("two", 2, 22), ("bias", 0, 0), ("bias", 5, 30)]
        for name, element, bit in flips:
            model = Two()
            model.flip(name, element, bit)
            seen.add(init_digest(model))
        # Element 0 of `one` is 0.0: with bit 31 it is -0.0, which compares equal but has other bits.
        assert len(seen) == 1 + len(flips)

    def test_a_renamed_parameter_is_noticed(self) -> None:
        assert init_digest(Two(("uno", "two", "bias"))) != init_digest(Two())

    def test_a_missing_parameter_is_noticed(self) -> None:
        assert init_digest(Two(("one", "two"))) != init_digest(Two())

    def test_another_shape_of_the_same_bytes_is_noticed(self) -> None:
        model = Two()
        model.one.data = model.one.data.view(3, 2)
        assert init_digest(model) != init_digest(Two())

    def test_exchanged_parameters_are_noticed(self) -> None:
        model = Two()
        model.one.data, model.two.data = model.two.data, model.one.data
        assert init_digest(model) != init_digest(Two())

    def test_order_of_registration_and_layout_do_not_matter(self) -> None:
        model = Two(("bias", "two", "one"))
        model.one.data = model.one.data.t().contiguous().t()
        assert not model.one.is_contiguous()
        assert init_digest(model) == init_digest(Two())

    def test_a_shared_parameter_counts_once(self) -> None:
        model = Two()
        model.zwei = model.two
        assert init_digest(model) == init_digest(Two())


def test_the_norm_of_a_large_parameter_is_exact_to_its_rounding() -> None:
    large = nn.Embedding(32_000, 128)
    nn.init.normal_(large.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    exact = float(large.weight.detach().double().norm())
    assert parameter_norms({"weight": large.weight}) == {"weight": pytest.approx(exact, rel=1e-7)}


def test_parameter_norms_are_those_of_the_weights() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        first.bias.zero_()
        second.weight.fill_(1.0)
    assert parameter_norms(dict(nn.Sequential(first, second).named_parameters())) == {
        "0.bias": 0.0,
        "0.weight": 5.0,
        "1.weight": pytest.approx(2**0.5),
    }


def test_norms_of_queries_keys_and_values_are_one() -> None:
    parts = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("q", "k", "v", "out")})
    with torch.no_grad():
        for value, parameter in zip((2.0, 3.0, 6.0, 5.0), parts.parameters(), strict=True):
            parameter.fill_(value)
    norms = parameter_norms(dict(nn.ModuleDict({"attention": parts}).named_parameters()))
    assert norms == {"attention.qkv.weight": pytest.approx(7.0), "attention.out.weight": 5.0}


def test_steps_are_bound_to_their_numbers_and_ranks_still_add_up() -> None:
    one, two = BatchDigest(), BatchDigest()
    one.add("train", 0, np.arange(6).reshape(2, 3))
    two.add("train", 2, np.arange(6).reshape(2, 3))
    whole, exchanged = BatchDigest(), BatchDigest()
    for digest, order in ((whole, (one, two)), (exchanged, (two, one))):
        for step, batch in enumerate(order, 1):
            digest.add_step(step, batch.hexdigest())
    assert whole.hexdigest() != exchanged.hexdigest()
    ranks = [BatchDigest(), BatchDigest()]
    ranks[0].add_step(2, two.hexdigest())
    ranks[1].add_step(1, one.hexdigest())
    ranks[0].merge(ranks[1].hexdigest())
    assert ranks[0].hexdigest() == whole.hexdigest()
