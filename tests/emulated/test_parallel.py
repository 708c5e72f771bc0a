"""Training over HCCL between two emulated devices: the work of one CPU, and an end for all when a rank dies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cann_emulator.build import environment
from tests.conftest import TINY
from tests.integration.test_parallel import GPT2, SHAPE, TOLERANCE, assert_same_work, run_alone
from tests.ranks import WORDS, end_ranks, record, start_ranks

DEVICES = 2


def on_npu(cann: Path, **more: str) -> dict[int, Mapping[str, str]]:
    """Return each rank's variables: a host with two emulated devices."""
    found = environment(cann)
    path = os.pathsep.join(filter(None, [found.get("PYTHONPATH"), os.environ.get("PYTHONPATH")]))
    variables = {**found, "CANN_EMULATOR_DEVICES": str(DEVICES), **({"PYTHONPATH": path} if path else {}), **more}
    return {rank: variables for rank in range(DEVICES)}


def run_on_npu(cann: Path, folder: Path, *words: str, fault: str = "none", **more: str) -> list[Any]:
    return end_ranks(
        start_ranks(DEVICES, ["backend=npu", *words], folder, fault=fault, variables=on_npu(cann, **more)),
        timeout=180,
    )


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [(("parallel=ddp",), TOLERANCE), (("parallel=fsdp",), TOLERANCE), (("parallel=fsdp", "precision=bf16"), 1e-3)],
    ids=" ".join,
)
def test_is_the_work_of_one_cpu(words: tuple[str, ...], tolerance: float, cann: Path, tmp_path: Path) -> None:
    precision = [word for word in words if word.startswith("precision")]
    expected = run_alone(tmp_path / "alone", *GPT2, *precision)
    for ended in run_on_npu(cann, tmp_path, *TINY, *SHAPE, *GPT2, *words, "out=run"):
        assert ended.code == 0, ended.err[-3000:]
    found = record(tmp_path / "run")
    assert_same_work(found, expected, tolerance)
    assert found["device"]["emulated"]
    assert [rank["device_index"] for rank in found["parallel"]["ranks"]] == [0, 1]


@pytest.mark.parametrize("fault", ["killed", "out of memory"])
def test_a_fault_of_one_rank_ends_both(fault: str, cann: Path, tmp_path: Path) -> None:
    ended = run_on_npu(cann, tmp_path, *WORDS, "out=run", fault=fault, HCCL_EXEC_TIMEOUT="4")
    assert ended[0].code == 5, ended[0].err[-3000:]
    assert len(ended[0].errors) == 1, ended[0].err[-3000:]
    assert ended[0].errors[0].startswith("error: rank 1: ")
    assert record(tmp_path / "run")["status"] == {"killed": "rank_lost", "out of memory": "oom"}[fault]
