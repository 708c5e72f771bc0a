"""Layouts: their axes, what follows from the number of processes, and what does not fit."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import pytest

from harness.analysis.stages import stage_blocks
from harness.backends import create
from harness.composition import load
from harness.config import BackendConfig, ParallelConfig
from harness.errors import ConfigError
from harness.layout import AXES, Layout, layout_of
from harness.text import layered_settings
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.parallel import stages_by_rank
from harness.training.distributed.tensor import needed_heads
from harness.training.setup import _check_memory
from harness.validation import check_layout
from harness.world import World
from tests.tiny import TINY


def mesh(**sizes: int | None) -> ParallelConfig:
    return ParallelConfig(name="mesh", **{"data": None, "shard": None, **sizes})


class TestSizes:
    @pytest.mark.parametrize(
        ("sizes", "processes", "expected"),
        [
            ({}, 8, Layout(shard=8)),
            ({"tensor": 2}, 8, Layout(shard=4, tensor=2)),
            ({"data": 2}, 8, Layout(data=2, shard=4)),
            ({"shard": 2}, 8, Layout(data=4, shard=2)),
            ({"shard": 1}, 8, Layout(data=8)),
            ({"data": 2, "shard": 2, "tensor": 2}, 8, Layout(data=2, shard=2, tensor=2)),
            ({"pipeline": 2, "context": 2, "tensor": 2}, 8, Layout(pipeline=2, context=2, tensor=2)),
            ({}, 1, Layout()),
        ],
    )
    def test_what_is_left_open_follows(self, sizes: dict[str, int], processes: int, expected: Layout) -> None:
        assert layout_of(mesh(**sizes), processes) == expected
        assert expected.size == processes

    @pytest.mark.parametrize(
        ("sizes", "processes", "message"),
        [
            ({"tensor": 3}, 8, "parallel.tensor=3: needs 3 processes or a multiple, found 8; start 6 or 9 processes"),
            ({"tensor": 4}, 2, "parallel.tensor=4: needs 4 processes or a multiple, found 2; start 4 processes"),
            ({"data": 2, "shard": 2, "tensor": 2}, 4,
             "parallel.data=2 x parallel.shard=2 x parallel.tensor=2: needs 8 processes, found 4; start 8 processes"),
            ({"data": 1, "shard": 1, "tensor": 2}, 4, "parallel.tensor=2: needs 2 processes, found 4"),
        ],
    )  # fmt: skip
    def test_an_impossible_product_is_named(self, sizes: dict[str, int], processes: int, message: str) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
            layout_of(mesh(**sizes), processes)

    def test_presets(self) -> None:
        for name, expected in (("ddp", Layout(data=4)), ("fsdp", Layout(shard=4)), ("mesh", Layout(shard=4))):
            assert layout_of(load([*TINY, f"parallel={name}"]).parallel, 4) == expected
        assert layout_of(load([*TINY]).parallel, 1) == Layout()


class TestPlaces:
    def test_ranks_of_the_last_axis_lie_side_by_side(self) -> None:
        layout = Layout(pipeline=2, data=2, tensor=2)
        assert [layout.coordinate(rank)["tensor"] for rank in range(8)] == [0, 1] * 4
        assert [layout.coordinate(rank)["pipeline"] for rank in range(8)] == [0] * 4 + [1] * 4
        assert list(layout.coordinate(5)) == list(reversed(AXES))

    def test_a_place_is_named_where_ranks_differ_in_what_they_do(self) -> None:
        assert Layout(pipeline=2, data=2, tensor=2).place(5) == "pipeline 1, data 0, tensor 1"
        assert Layout(data=2, shard=2).place(3) == Layout().place(0) == ""

    def test_ranks_on_other_axes_have_the_same_share_of_the_batch(self) -> None:
        layout = Layout(pipeline=2, data=2, shard=2, context=2, tensor=2)
        shares = [layout.share_of(rank) for rank in range(layout.size)]
        assert layout.shares == 4
        assert shares[:16] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
        assert shares[16:] == shares[:16]


class FakeTensor:
    """A DTensor, as far as `Ranks.counts` looks at it."""

    def __init__(self, **placements: str) -> None:
        self.device_mesh = type("Mesh", (), {"mesh_dim_names": tuple(placements)})
        self.placements = [Placement(name) for name in placements.values()]


class Placement:
    def __init__(self, name: str) -> None:
        self.is_replicate = lambda: name == "replicated"


@pytest.mark.parametrize(
    ("tensor", "counting"),
    [
        (object(), {0, 8}),
        (FakeTensor(data="replicated", shard="cut", tensor="cut"), {0, 1, 2, 3, 8, 9, 10, 11}),
        (FakeTensor(data="replicated", shard="cut", tensor="replicated"), {0, 2, 8, 10}),
        (FakeTensor(tensor="cut"), {0, 1, 8, 9}),
        (FakeTensor(context="cut", tensor="cut"), {0, 1, 2, 3, 8, 9, 10, 11}),
    ],
    ids=["whole", "matrix", "norm", "without FSDP", "activations"],
)
def test_of_copies_one_counts(tensor: Any, counting: set[int]) -> None:
    """Each stage of the pipeline has tensors of its own; the parts of a sequence share one shard of the weights."""
    layout = Layout(pipeline=2, data=2, context=2, tensor=2)
    ranks = [Ranks(World(rank=rank, size=16, is_distributed=True), layout) for rank in range(16)]
    assert {own.rank for own in ranks if own.counts(tensor)} == counting


class TestFit:
    @pytest.mark.parametrize(
        ("overrides", "layout", "message"),
        [
            ((), Layout(shard=3),
             "workload.global_batch_size: found 4, which is not a multiple of workload.micro_batch_size (2) times the "
             "number of processes (3); set workload.global_batch_size=6"),
            (("workload.micro_batch_size=4",), Layout(data=2),
             "workload.global_batch_size: found 4, which is not a multiple of workload.micro_batch_size (4) times the "
             "number of processes (2); set workload.micro_batch_size=2 or workload.global_batch_size=8"),
            (("model.hidden_size=48", "model.num_attention_heads=6"), Layout(tensor=4),
             "parallel.tensor: found 4, which does not divide model.num_attention_heads (6); choose 3 or 6"),
            (("model.intermediate_size=66", "model.num_attention_heads=4"), Layout(tensor=4),
             "parallel.tensor: found 4, which does not divide model.intermediate_size (66); choose 3 or 6"),
            (("model.num_experts=6", "model.num_attention_heads=4"), Layout(tensor=4),
             "parallel.tensor: found 4, which does not divide model.num_experts (6); choose 3 or 6"),
            (("model.num_experts=4", "model.intermediate_size=66", "model.num_attention_heads=4"), Layout(tensor=4),
             None),
            (("model.num_experts=6", "model.routing=round_robin", "workload.seq_len=60"), Layout(), None),
            (("model.num_experts=6", "model.routing=round_robin", "workload.seq_len=64"), Layout(),
             "workload.seq_len: found 64, in which 6 experts cannot have equally many turns "
             "(model.routing=round_robin); choose a multiple of 3"),
            (("model.num_experts=12", "model.routing=round_robin", "workload.seq_len=66"), Layout(context=2),
             "workload.seq_len: found 66, in which 12 experts cannot have equally many turns "
             "(model.routing=round_robin); choose a multiple of 12"),
            (("model.num_experts=6", "workload.seq_len=64"), Layout(), None),
            (("workload.seq_len=30", "model.num_attention_heads=4"), Layout(context=2, tensor=2),
             "parallel.tensor x parallel.context: found 4, which does not divide workload.seq_len (30); choose 3 or 5"),
            (("model.num_hidden_layers=3", "workload.micro_batch_size=1"), Layout(pipeline=4),
             "parallel.pipeline: found 4, but the model has 3 blocks, and each stage needs one; choose fewer"),
            ((), Layout(pipeline=2), None),
            (("parallel=mesh", "parallel.pipeline=2", "parallel.pipeline_blocks=1-1-1", "model.num_hidden_layers=3"),
             Layout(pipeline=2), "parallel.pipeline_blocks: found 1-1-1, expected 2 numbers with a dash between them "
             "that add up to 3 blocks, one for each stage"),
            (("parallel=mesh", "parallel.pipeline=2", "parallel.pipeline_blocks=3-0", "model.num_hidden_layers=3"),
             Layout(pipeline=2), "parallel.pipeline_blocks: found 3-0, expected 2 numbers"),
            (("parallel=mesh", "parallel.pipeline=2", "parallel.pipeline_schedule=zero_bubble", "track=tuned",
              "model.num_hidden_layers=2", "workload.micro_batch_size=1"), Layout(pipeline=2),
             "parallel.pipeline_schedule: found zero_bubble, which cannot split the backward pass of compiled blocks"),
            (("parallel=mesh", "parallel.pipeline=2", "parallel.pipeline_schedule=zero_bubble",
              "model.num_hidden_layers=2", "workload.micro_batch_size=1", "workload.global_batch_size=5"),
             Layout(pipeline=2), "parallel.pipeline_schedule: found zero_bubble, which does not divide 5 micro-batches "
             "into 2 rounds; train 4 micro-batches a step, or choose 1f1b"),
            (("parallel=mesh", "parallel.pipeline=2", f"parallel.pipeline_blocks=1-{'2' * 5000}",
              "model.num_hidden_layers=3"), Layout(pipeline=2), "parallel.pipeline_blocks: found 1-2222"),
            (("parallel=mesh", "parallel.pipeline=2", "parallel.pipeline_virtual_stages=2",
              "model.num_hidden_layers=3"), Layout(pipeline=2),
             "parallel.pipeline: found 2 x 2 stages, but the model has 3 blocks, and each stage needs one"),
            (("parallel=mesh", "parallel.pipeline=2", "parallel.pipeline_virtual_stages=2",
              "model.num_hidden_layers=4", "workload.global_batch_size=5", "workload.micro_batch_size=1"),
             Layout(pipeline=2), "parallel.pipeline_schedule: found 1f1b of interleaved stages, which does not divide "
             "5 micro-batches into 2 rounds; train 4 micro-batches a step, or choose gpipe"),
            (("parallel=mesh", "parallel.pipeline_virtual_stages=2", "model.num_hidden_layers=2"), Layout(tensor=2),
             "parallel.pipeline_virtual_stages: found 2, but there is no pipeline; leave it out, or set"),
            (("parallel=mesh", "parallel.pipeline_blocks=2"), Layout(tensor=2),
             "parallel.pipeline_blocks: found 2, but there is no pipeline; leave it out, or set parallel.pipeline"),
            (("workload.micro_batch_size=4", "model.num_hidden_layers=2"), Layout(pipeline=2),
             "workload.micro_batch_size: found 4, which leaves 1 micro-batch for a pipeline of 2; choose 2"),
        ],
    )  # fmt: skip
    def test_what_does_not_divide_is_named(
        self, overrides: tuple[str, ...], layout: Layout, message: str | None
    ) -> None:
        config = load(layered_settings(TINY, overrides))
        if message is None:
            config.model.num_hidden_layers = 2
            check_layout(config, layout)
            return
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
            check_layout(config, layout)

    @pytest.mark.parametrize(
        ("offload", "host_gib", "message"),
        [
            ("false", 64, "1,000,000,000 parameters need 7.5 GiB .* but X has 4.0 GiB"),
            # Weights, gradients and moments of both processes are in the host's memory.
            ("true", 64, None),
            ("true", 8, "1,000,000,000 parameters need 14.9 GiB .* but the host has 8.0 GiB"),
        ],
    )
    def test_memory_is_that_which_holds_the_state(
        self, offload: str, host_gib: int, message: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("harness.environment.memory_limit_bytes", lambda: host_gib << 30)
        config = load([*TINY, "parallel=fsdp", f"parallel.cpu_offload={offload}"])
        backend = create(BackendConfig(name="cuda"))
        backend.world = World(size=2, local_size=2)
        expected = nullcontext() if message is None else pytest.raises(ConfigError, match=message)
        with expected:
            _check_memory(config, backend, {"name": "X", "memory_bytes": 4 << 30}, 10**9, Layout(shard=2))

    def test_an_axis_that_the_preset_lacks(self) -> None:
        with pytest.raises(
            ConfigError, match=r"^parallel\.tensor: found 2, but parallel=fsdp has no such axis; use pa"
        ):
            load([*TINY, "parallel=fsdp", "parallel.tensor=2"])


class TestStages:
    def test_the_owner_may_set_them(self) -> None:
        config = load([*TINY, "parallel=mesh", "parallel.pipeline=3", "parallel.pipeline_blocks=1-4-2"])
        assert stages_by_rank(config, 3) == [[range(1)], [range(1, 5)], [range(5, 7)]]

    def test_interleaved_stages_are_dealt_out_in_turn(self) -> None:
        config = load([*TINY, "parallel=mesh", "parallel.pipeline=2", "parallel.pipeline_virtual_stages=2",
                       "parallel.pipeline_blocks=1-4-2-3"])  # fmt: skip
        assert stages_by_rank(config, 2) == [[range(1), range(5, 7)], [range(1, 5), range(7, 10)]]

    @pytest.mark.parametrize(
        ("blocks", "stages", "head", "expected"),
        [
            (4, 2, 0.0, [2, 2]),
            (4, 2, 1.0, [2, 2]),
            (4, 2, 2.0, [3, 1]),
            (5, 2, 0.0, [2, 3]),
            (8, 4, 1.0, [2, 2, 2, 2]),
            (12, 4, 3.0, [4, 4, 3, 1]),
            (126, 16, 0.6, [8] * 14 + [7, 7]),
            (4, 4, 9.0, [1, 1, 1, 1]),
            (3, 1, 2.0, [3]),
        ],
    )
    def test_the_longest_is_as_short_as_possible(
        self, blocks: int, stages: int, head: float, expected: list[int]
    ) -> None:
        found = stage_blocks(blocks, stages, head)
        assert [len(stage) for stage in found] == expected
        assert [number for stage in found for number in stage] == list(range(blocks))

    @pytest.mark.parametrize(
        ("blocks", "ranks", "head", "expected"),
        [
            (8, 2, 0.0, [2, 2, 2, 2]),
            # The last rank has the head, and so fewer blocks, in both of its stages.
            (16, 4, 4.3, [3, 3, 2, 1, 2, 2, 2, 1]),
            (5, 2, 0.0, [1, 2, 1, 1]),
        ],
    )
    def test_of_interleaved_stages_the_longest_rank_counts(
        self, blocks: int, ranks: int, head: float, expected: list[int]
    ) -> None:
        found = stage_blocks(blocks, ranks, head, 2)
        assert [len(stage) for stage in found] == expected
        assert [number for stage in found for number in stage] == list(range(blocks))


@pytest.mark.parametrize(
    ("queries", "keys", "ranks", "expected"),
    [
        (4, 1, 2, [[0], [0]]),
        (4, 2, 4, [[0], [0], [1], [1]]),
        (8, 2, 4, [[0], [0], [1], [1]]),
        (6, 3, 2, [[0, 0, 1], [1, 2, 2]]),
        (12, 6, 4, [[0, 0, 1], [1, 2, 2], [3, 3, 4], [4, 5, 5]]),
    ],
)
def test_each_rank_keeps_the_heads_that_its_queries_need(
    queries: int, keys: int, ranks: int, expected: list[list[int]]
) -> None:
    assert [needed_heads(queries, keys, ranks, rank) for rank in range(ranks)] == expected
