"""HCCL between two and three emulated devices through torch.distributed: exact sums, and an end when a peer dies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.emulated.conftest import Emulated
from tests.ranks import end_ranks

TIMEOUT_SECONDS = 180


def group(emulated: Emulated, world: int, *words: str, **variables: str) -> list[Any]:
    """Run one process a rank and return what each wrote; None for a rank that wrote nothing."""
    module, store = "tests.emulated.programs.collectives", emulated.folder / "store"
    shared = {"WORLD_SIZE": str(world), "CANN_EMULATOR_DEVICES": str(world), **variables}
    ranks = [
        emulated.start(module, str(store), *words, folder=PROJECT, variables={**shared, "RANK": str(rank)})
        for rank in range(world)
    ]
    for ended in end_ranks(ranks, TIMEOUT_SECONDS):
        assert ended.code == 0, ended.err[-3000:]
    files = [store.with_name(f"store.{rank}.json") for rank in range(world)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


@pytest.mark.parametrize("world", [2, 3])
def test_every_collective_is_exact(world: int, emulated: Emulated) -> None:
    for found in group(emulated, world):
        assert len(found["results"]) >= 30
        assert [name for name, exact in found["results"].items() if not exact] == []
        assert {"HcclAllReduce", "HcclAllGather", "HcclReduceScatter", "HcclBroadcast", "HcclAlltoAllV", "HcclSend",
                "HcclRecv", "HcclReduce", "HcclScatter"} <= set(found["launched"])  # fmt: skip


def test_a_dead_peer_ends_in_an_error(emulated: Emulated) -> None:
    survivor, dead = group(emulated, 2, "die", HCCL_EXEC_TIMEOUT="4")
    assert dead is None
    assert survivor["error"] is not None
    assert "507048" in survivor["error"]
    assert 3 < survivor["seconds"] < 30
