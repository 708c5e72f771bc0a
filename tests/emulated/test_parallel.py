"""Training over HCCL on two emulated devices: equal to one CPU, and ended on all ranks when one dies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cann_emulator.build import environment
from tests.integration.test_parallel import GPT2, SHAPE, TOLERANCE, assert_same_work, run_alone
from tests.layouts import difference, file_name, honest, short_work, train
from tests.ranks import OVERRIDES, Ended, end_ranks, record, start_ranks
from tests.tiny import TINY
from tests.zygote import Zygote

DEVICES = 2
LAYOUTS = [
    ("parallel=ddp",),
    ("parallel=fsdp",),
    ("parallel=fsdp", "precision=bf16"),
    ("parallel=fsdp", "parallel.cpu_offload=true"),
]


def on_npu(cann: Path, **more: str) -> dict[int, Mapping[str, str]]:
    """Return each rank's variables: a host with two emulated devices."""
    variables = {**environment(cann), "CANN_EMULATOR_DEVICES": str(DEVICES), **more}
    return dict.fromkeys(range(DEVICES), variables)


def run_on_npu(cann: Path, zygote: Zygote, folder: Path, *words: str, fault: str = "none", **more: str) -> list[Ended]:
    variables = on_npu(cann, **more)
    started = start_ranks(DEVICES, ["backend=npu", *words], folder, fault=fault, variables=variables, zygote=zygote)
    return end_ranks(started, timeout=180)


@pytest.mark.parametrize("overrides", LAYOUTS, ids=" ".join)
def test_equals_one_cpu(overrides: tuple[str, ...], cann: Path, npu_zygote: Zygote, tmp_path: Path) -> None:
    tolerance = 1e-3 if "precision=bf16" in overrides else TOLERANCE
    precision = [word for word in overrides if word.startswith("precision")]
    expected = run_alone(tmp_path / "alone", *GPT2, *precision)
    for ended in run_on_npu(cann, npu_zygote, tmp_path, *TINY, *SHAPE, *GPT2, *overrides, "out=run"):
        assert ended.code == 0, ended.err[-3000:]
    found = record(tmp_path / "run")
    assert_same_work(found, expected, tolerance)
    assert found["device"]["emulated"]
    assert [rank["device_index"] for rank in found["parallel"]["ranks"]] == [0, 1]


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        # Ranks that do not divide the vocabulary.
        ("gpt2", "tensor=2"),
        ("llama", "pipeline=2"),
        ("llama", "context=2"),
    ],
)
def test_a_layout_equals_one_cpu(model: str, layout: str, cann: Path, npu_zygote: Zygote, layout_runs: Path) -> None:
    """scripts/layout_table.py --backend npu has more."""
    alone = honest(layout_runs, model, "")
    settings = [*short_work(model), "backend=npu", "fingerprint=false"]
    found = train(layout_runs, layout, settings, f"npu-{model}-{file_name(layout)}",
                  variables=on_npu(cann), zygote=npu_zygote)  # fmt: skip
    assert isinstance(found, Path), found
    assert record(found)["device"]["emulated"]
    assert difference(alone, found, "fp32").startswith("ok")


@pytest.mark.parametrize("fault", ["killed", "out of memory"])
def test_a_fault_of_one_rank_ends_both(fault: str, cann: Path, npu_zygote: Zygote, tmp_path: Path) -> None:
    ended = run_on_npu(cann, npu_zygote, tmp_path, *OVERRIDES, "out=run", fault=fault, HCCL_EXEC_TIMEOUT="4")
    assert ended[0].code == 5, ended[0].err[-3000:]
    assert len(ended[0].errors) == 1, ended[0].err[-3000:]
    assert ended[0].errors[0].startswith("error: rank 1: ")
    assert record(tmp_path / "run")["status"] == {"killed": "rank_lost", "out of memory": "oom"}[fault]
