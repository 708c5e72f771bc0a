"""HCCL between two and three emulated devices through torch.distributed: exact sums, and an end when a peer dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cann_emulator.build import environment
from tests.conftest import PROJECT

TIMEOUT_SECONDS = 180


def group(cann: Path, store: Path, world: int, *words: str, **variables: str) -> list[Any]:
    """Run one process a rank and return what each wrote; None for a rank that wrote nothing."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.emulated.programs.collectives", str(store), *words],
            cwd=PROJECT,
            env={**os.environ, **environment(cann), "RANK": str(rank), "WORLD_SIZE": str(world),
                 "CANN_EMULATOR_DEVICES": str(world), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        spoken = [rank.communicate(timeout=TIMEOUT_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, spoken, strict=True):
        assert rank.returncode == 0, errors[-3000:]
    files = [Path(f"{store}.{rank}.json") for rank in range(world)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


@pytest.mark.parametrize("world", [2, 3])
def test_every_collective_is_exact(world: int, cann: Path, tmp_path: Path) -> None:
    for found in group(cann, tmp_path / "store", world):
        assert len(found["results"]) >= 30
        assert [name for name, exact in found["results"].items() if not exact] == []
        assert {"HcclAllReduce", "HcclAllGather", "HcclReduceScatter", "HcclBroadcast", "HcclAlltoAllV", "HcclSend",
                "HcclRecv", "HcclReduce", "HcclScatter"} <= set(found["launched"])  # fmt: skip


def test_a_dead_peer_ends_in_an_error(cann: Path, tmp_path: Path) -> None:
    survivor, dead = group(cann, tmp_path / "store", 2, "die", HCCL_EXEC_TIMEOUT="4")
    assert dead is None
    assert survivor["error"] is not None
    assert "507048" in survivor["error"]
    assert 3 < survivor["seconds"] < 30
