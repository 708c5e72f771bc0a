"""Sketches: the distance of two tensors from random projections, whole or shared over ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from harness.workload import sketch as sketch_module
from harness.workload.initialization import OwnPart
from harness.workload.sketch import SKETCH_SIZE, ZERO, Sketch, sketch_all

SHAPES = {"matrix": (48, 20), "tall": (1000, 3), "vector": (77,), "one column": (33, 1)}
VALUES = [-30.0, 0.0, 2.0, -4.0, -2.0, 0.0, -22.0, 36.0]


def sketch(tensor: torch.Tensor, name: str = "weight") -> Sketch:
    return sketch_all({name: tensor}, lambda own: [own])[name]


def random(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_norm_is_exact_and_distance_an_estimate(shape: tuple[int, ...]) -> None:
    x = random(shape)
    assert sketch(x).norm == pytest.approx(float(x.norm()), rel=1e-6)
    ratios = []
    for seed in range(1, 21):
        change = 1e-3 * random(shape, seed)
        exact = float(change.norm() / x.norm())
        ratios.append(sketch(x + change).distance(sketch(x)) / exact)
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
    assert np.std(ratios) < 0.3


@pytest.mark.parametrize("shape", [(64, 64), (4096,)], ids=str)
def test_a_change_of_one_element_is_seen(shape: tuple[int, ...]) -> None:
    x = random(shape)
    changed = x.clone()
    changed.view(-1)[-1] += 0.5
    assert sketch(changed).distance(sketch(x)) == pytest.approx(0.5 / float(x.norm()), rel=0.3)


def test_equal_tensors_have_no_distance_and_another_name_other_signs() -> None:
    x = random((16, 16))
    assert sketch(x).distance(sketch(x.clone())) == 0.0
    assert not np.array_equal(sketch(x, "one").values, sketch(x, "two").values)


def test_the_signs_are_fixed() -> None:
    """They decide whether two versions of the harness understand each other's records."""
    signs = sketch_module._signs("weight", "rows", range(4), 8)
    assert "".join("+" if sign > 0 else "-" for sign in signs.flatten()) == "-+--++------+------++--+-++--+-+"
    values = sketch(torch.arange(12.0).view(4, 3)).values
    assert values[:8].tolist() == VALUES


@pytest.mark.parametrize("count", [8, SKETCH_SIZE])
@pytest.mark.parametrize(("first", "last"), [(0, 5), (3, 20), (8, 9), (16, 16)])
def test_part_of_the_signs_is_the_same_as_in_the_whole(first: int, last: int, count: int) -> None:
    whole = sketch_module._signs("weight", "rows", range(40), count)
    assert torch.equal(sketch_module._signs("weight", "rows", range(first, last), count), whole[first:last])


def test_signs_are_balanced_and_independent() -> None:
    signs = sketch_module._signs("weight", "rows", range(4096), 8)
    assert (signs.mean(0).abs() < 0.06).all()
    correlation = signs.T @ signs / len(signs) - torch.eye(8)
    assert (correlation.abs() < 0.06).all()


@pytest.mark.parametrize(
    "parts",
    [
        [(range(4), range(6)), (range(4, 8), range(6)), (range(8, 10), range(6)), (range(10, 10), range(6))],
        [(range(10), range(3)), (range(10), range(3, 6))],
        [(range(5), range(4)), (range(5), range(4, 6)), (range(5, 10), range(4)), (range(5, 10), range(4, 6))],
    ],
    ids=["rows, the last rank none", "columns", "both"],
)
def test_ranks_add_up_their_parts(parts: list[tuple[range, range]], monkeypatch: pytest.MonkeyPatch) -> None:
    x = random((10, 6))
    gathered: list[Any] = []
    for rows, columns in parts:
        part = OwnPart(x[rows.start : rows.stop, columns.start : columns.stop], rows, columns)
        monkeypatch.setattr(sketch_module, "own_part", lambda tensor, part=part: part)
        sketch_all({"weight": x}, lambda own: gathered.append(own) or [own])
    monkeypatch.undo()
    total = sketch_all({}, lambda own: gathered)["weight"]
    assert total.norm == pytest.approx(sketch(x).norm, rel=1e-6)
    assert total.distance(sketch(x)) < 1e-6


def test_text_holds_the_same_bits() -> None:
    found = sketch(random((9, 9))).scaled(20.0)
    again = Sketch.from_text(found.norm, found.to_text())
    assert again.norm == found.norm
    assert np.array_equal(again.values, found.values)
    assert len(found.to_text(16)) < 90


def test_zero_tensors() -> None:
    zero = sketch(torch.zeros(4, 4))
    assert zero.distance(zero) == 0.0
    assert zero.distance(ZERO) == 0.0
    assert sketch(torch.ones(4, 4)).distance(zero) == math.inf


def test_queries_keys_and_values_are_compared_as_one() -> None:
    """The gradient of the keys' bias is rounding alone, and two honest runs differ in all of it."""

    def found(noise: int) -> Sketch:
        parts = {"q": random((8,)), "k": 1e-8 * random((8,), noise), "v": random((8,), 3)}
        named = {f"blocks.0.attention.{part}.bias": tensor for part, tensor in parts.items()}
        (name, total), *others = sketch_all(named, lambda own: [own]).items()
        assert (name, others) == ("blocks.0.attention.qkv.bias", [])
        return total

    one, two = found(1), found(2)
    assert one.norm == pytest.approx(math.hypot(float(random((8,)).norm()), float(random((8,), 3).norm())), rel=1e-6)
    assert 0.0 < two.distance(one) < 1e-7
