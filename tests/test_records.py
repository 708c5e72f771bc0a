"""Builder of artificial records: valid, deterministic, and like those of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.records.load import load_runs
from harness.records.schema import record_problems
from tests.conftest import PROJECT
from tests.records import A100, ASCEND, CPU, make_record, make_records, merged, sealed, write_runs

SCHEMA = json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"on": A100, "step_seconds": 0.01, "noise": 0.1, "process": 7},
        {"on": ASCEND, "config": {"precision": "fp16", "target_loss": 4.0}},
        {"on": CPU, "config": {"workload": {"eval_every": 0, "steps": 37, "interval_steps": 7}}},
        {"status": "oom", "error": "not enough memory", "finished_steps": 0},
        {"status": "interrupted", "finished_steps": 7},
        {"status": "diverged", "error": "the loss is not finite", "finished_steps": 63},
    ],
    ids=str,
)
def test_records_are_valid_and_consistent(arguments: dict[str, Any]) -> None:
    record = make_record(**arguments)
    jsonschema.validate(record, SCHEMA)
    assert list(record_problems(record)) == []


def test_the_same_call_gives_the_same_record_and_every_process_another() -> None:
    assert make_record(process=2) == make_record(process=2)
    checksums = {record["content_sha256"] for record in [*make_records(3), *make_records(3, on=A100)]}
    assert len(checksums) == 6


def test_speed_is_as_ordered() -> None:
    means = [record["timing"]["mean_step_seconds"] for record in make_records(20, step_seconds=0.1, noise=0.05)]
    assert sum(means) / 20 == pytest.approx(0.1, rel=0.02)
    assert make_record(step_seconds=0.1, noise=0, process_noise=0)["timing"]["mean_step_seconds"] == pytest.approx(0.1)


def test_devices_share_the_work_and_differ_in_rounding() -> None:
    one, two = make_record(on=A100, loss_noise=1e-4), make_record(on=ASCEND, loss_noise=1e-4)
    assert one["workload_id"] == two["workload_id"]
    assert one["digests"] == two["digests"]
    losses = list(zip(one["losses"]["train"], two["losses"]["train"], strict=True))
    assert all(0 < abs(x / y - 1) < 0.01 for x, y in losses)


def test_other_work_has_other_digests() -> None:
    one, two = make_record(), make_record(config={"seed": 2})
    assert one["workload_id"] != two["workload_id"]
    assert one["digests"]["init"] != two["digests"]["init"]
    assert one["digests"]["batches"] != two["digests"]["batches"]


def test_a_target_stops_the_run_at_an_evaluation() -> None:
    record = make_record(config={"target_loss": 4.0})
    assert record["target"]["reached"]
    assert record["target"]["step"] == len(record["losses"]["train"]) == record["eval"]["points"][-1]["step"] < 200
    missed = make_record(config={"target_loss": 1.0})
    assert missed["target"] == {"loss": 1.0, "reached": False, "step": None, "training_seconds": None,
                                "wall_seconds": None}  # fmt: skip


def test_a_record_can_be_made_to_contradict_itself() -> None:
    record = make_record(timing={"mean_step_seconds": 1e-3})
    assert any("does not follow from its own intervals" in complaint for complaint in record_problems(record))
    assert next(iter(record_problems({**record, "status": "failed"}))).startswith("was changed after")
    assert list(record_problems(sealed(make_record(status="failed", error="x")))) == []


def test_changes_are_merged_and_leave_the_presets_alone() -> None:
    before = json.dumps(A100)
    record = make_record(on=merged(A100, {"device": {"name": "X"}}), device={"index": 3})
    assert record["device"] == {**A100["device"], "name": "X", "index": 3}
    assert json.dumps(A100) == before


def test_written_runs_are_read_back(tmp_path: Path) -> None:
    records = make_records(11)
    write_runs(tmp_path / "side", records)
    assert [run.record for run in load_runs(tmp_path / "side")] == records
