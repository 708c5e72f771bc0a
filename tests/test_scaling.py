"""Scaling efficiency: values by hand, and reference runs that are not comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.analysis.scaling import scaling_baseline
from harness.config import Config
from harness.errors import ConfigError, RecordError
from tests.records import A100, CONFIG, CPU, configuration, make_record, write_runs

LARGER = 4


def config_for(reference: Path, **changes: Any) -> Config:
    parallel = {"name": "ddp", "scaling_reference": str(reference)}
    return configuration({**CONFIG, "parallel": parallel, **changes})


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Two runs on one device: 0.2 and 0.3 s a step, 32 x 1024 tokens each."""
    records = [make_record(on=A100, step_seconds=seconds, noise=0, process_noise=0) for seconds in (0.2, 0.3)]
    write_runs(tmp_path / "one", records)
    return tmp_path / "one"


def test_efficiency_is_the_ratio_of_tokens_per_second_of_a_device(reference: Path) -> None:
    smaller = scaling_baseline(config_for(reference), LARGER, A100["device"], None)
    assert smaller is not None
    assert (smaller.kind, smaller.world_size, smaller.runs) == ("strong", 1, 2)
    # The mean step time, not the mean speed.
    assert smaller.tokens_per_second == pytest.approx(32 * 1024 / 0.25)
    found = smaller.efficiency(LARGER, 3 * 32 * 1024 / 0.25)
    assert found is not None
    assert found["efficiency"] == pytest.approx(0.75)
    assert smaller.efficiency(LARGER, None) is None


def test_nothing_is_asked_for() -> None:
    assert scaling_baseline(configuration(CONFIG), LARGER, A100["device"], None) is None


def test_the_same_share_for_each_device_is_weak_scaling(reference: Path) -> None:
    config = config_for(reference, workload={**CONFIG["workload"], "global_batch_size": 32 * LARGER})
    smaller = scaling_baseline(config, LARGER, A100["device"], None)
    assert smaller is not None
    assert smaller.kind == "weak"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workload": {**CONFIG["workload"], "global_batch_size": 64}}, "keep workload.global_batch_size (32, strong"),
        ({"workload": {**CONFIG["workload"], "seq_len": 512}}, "its workload.seq_len is 1024, expected 512"),
        ({"precision": "fp32"}, "its precision is bf16, expected fp32"),
        ({"track": {"name": "portable", "adamw": "fused"}}, "its track.adamw is foreach, expected fused"),
    ],
)
def test_other_work_is_no_measure(changes: dict[str, Any], said: str, reference: Path) -> None:
    with pytest.raises(ConfigError, match=r"^parallel\.scaling_reference: ") as refused:
        scaling_baseline(config_for(reference, **changes), LARGER, A100["device"], None)
    assert said in str(refused.value)


def test_a_cut_of_the_batch_may_differ(reference: Path) -> None:
    config = config_for(reference, workload={**CONFIG["workload"], "micro_batch_size": 2})
    assert scaling_baseline(config, LARGER, A100["device"], None) is not None


def test_another_device_is_no_measure(reference: Path) -> None:
    with pytest.raises(ConfigError, match="its device is 'NVIDIA A100-SXM4-80GB', expected 'AMD EPYC'"):
        scaling_baseline(config_for(reference), LARGER, CPU["device"], None)


def test_where_threads_are_the_device_they_are_as_many(tmp_path: Path) -> None:
    write_runs(tmp_path / "one", [make_record(on=CPU)])
    config = config_for(tmp_path / "one")
    assert scaling_baseline(config, LARGER, CPU["device"], 32) is not None
    with pytest.raises(ConfigError, match=r"its number of host threads is 32, expected 8 \(backend.threads\)"):
        scaling_baseline(config, LARGER, CPU["device"], 8)


def test_a_world_that_is_not_smaller(reference: Path) -> None:
    with pytest.raises(ConfigError, match=r"world size 1, expected one size that is smaller than this run's \(1\)"):
        scaling_baseline(config_for(reference), 1, A100["device"], None)


def test_runs_of_several_sizes(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", [make_record(on=A100, world_size=size, process=size) for size in (1, 2)])
    with pytest.raises(ConfigError, match="world size 1 and 2, expected one"):
        scaling_baseline(config_for(tmp_path / "runs"), LARGER, A100["device"], None)


def test_a_run_that_failed(tmp_path: Path) -> None:
    write_runs(tmp_path / "one", [make_record(on=A100, status="oom", error="too much", finished_steps=40)])
    with pytest.raises(ConfigError, match="its status is oom, expected ok"):
        scaling_baseline(config_for(tmp_path / "one"), LARGER, A100["device"], None)


def test_an_emulated_device_has_no_speed(reference: Path) -> None:
    with pytest.raises(ConfigError, match="an emulation has no speed"):
        scaling_baseline(config_for(reference), LARGER, {**A100["device"], "emulated": True}, None)


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nothing-here: no such file or folder"):
        scaling_baseline(config_for(tmp_path / "nothing-here"), LARGER, A100["device"], None)
