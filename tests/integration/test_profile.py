"""profile=true: where the time of a step goes, without changing the run that it is asked of."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import PROJECT, TINY, Harness
from tests.ranks import WORDS, end_ranks, record, run_harness, start_ranks

SAME = ("workload_id", "digests", "losses", "weights")


def test_the_run_stays_the_same(tmp_path: Path) -> None:
    for name, words in (("plain", ()), ("profiled", ("profile=true",))):
        ended = run_harness(tmp_path, *TINY, *words, f"out={name}")
        assert ended.code == 0, ended.err
    plain, profiled = record(tmp_path / "plain"), record(tmp_path / "profiled")
    for key in SAME:
        assert profiled[key] == plain[key], key
    assert profiled["eval"]["final"] == plain["eval"]["final"]
    assert profiled["timing"]["measured_steps"] == plain["timing"]["measured_steps"]
    steps = (tmp_path / "profiled" / "steps.jsonl").read_text().splitlines()
    assert len(steps) == profiled["config"]["workload"]["steps"], "the profiled steps are none of the run's"
    assert plain["profile"] is None


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("profile")
    ended = run_harness(folder, *TINY, "workload.micro_batch_size=2", "profile=true", "out=run")
    assert ended.code == 0, ended.err
    return folder / "run", record(folder / "run"), ended.out


def test_follows_the_schema(profiled: tuple[Path, dict[str, Any], str]) -> None:
    jsonschema.validate(profiled[1], json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text()))


def test_parts_add_up_to_a_step(profiled: tuple[Path, dict[str, Any], str]) -> None:
    profile = profiled[1]["profile"]
    parts = profile["parts"]
    assert all(parts[name] > 0 for name in ("forward", "backward", "optimizer"))
    assert parts["communication"] == pytest.approx(0.0, abs=1e-3)
    # A shared machine may slow either; that they are of one size is what can be asked.
    step = profiled[1]["timing"]["mean_step_seconds"]
    assert 0.2 * step < sum(parts.values()) + profile["between_parts_seconds"] < 5 * step
    assert 0 <= profile["idle_fraction"] < 1


def test_the_trace_holds_the_steps_operations(profiled: tuple[Path, dict[str, Any], str]) -> None:
    folder, found, _ = profiled
    with gzip.open(folder / found["profile"]["trace"]) as file:
        events = json.load(file)["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"aten::mm", "ProfilerStep#1", "ProfilerStep#3"} <= names
    listed = {operation["name"]: operation for operation in found["profile"]["operations"]}
    counted = sum(event.get("name") == "aten::mm" for event in events) / found["profile"]["steps"]
    assert listed["aten::mm"]["calls"] == counted


def test_the_table_is_shown(profiled: tuple[Path, dict[str, Any], str]) -> None:
    said = " ".join(profiled[2].split())
    for words in ("a step in parts", "clipping and optimizer", "aten::mm", "roofline", "trace-rank0.json.gz"):
        assert words in said


def test_every_rank_looks_at_itself(tmp_path: Path) -> None:
    ended = end_ranks(start_ranks(2, (*WORDS, "profile=true", "out=run"), tmp_path))
    assert [rank.code for rank in ended] == [0, 0], ended
    assert {path.name for path in (tmp_path / "run" / "profile").iterdir()} == {
        "trace-rank0.json.gz",
        "trace-rank1.json.gz",
    }
    parts = record(tmp_path / "run")["profile"]["parts"]
    assert parts["communication"] > 0


def test_sharded_and_tuned(tmp_path: Path) -> None:
    words = ("profile=true", "precision=bf16")
    ended = end_ranks(start_ranks(2, (*WORDS, *words, "parallel=fsdp", "out=run"), tmp_path))
    assert [rank.code for rank in ended] == [0, 0], ended
    assert record(tmp_path / "run")["profile"]["parts"]["communication"] > 0
    alone = run_harness(tmp_path, *TINY, *words, "track=tuned", "track.compile=no", "out=tuned")
    assert alone.code == 0, alone.err
    assert record(tmp_path / "tuned")["profile"]["operand_bytes"] > 0


def test_a_trace_that_cannot_be_written(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").touch()
    done = harness(*TINY, "profile=true", "out=run")
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert "run/profile" in done.stderr
    assert "trace cannot be written" in done.stderr
    found = record(tmp_path / "run")
    assert found["status"] == "failed"
    assert found["timing"]["tokens_per_second"] > 0, "what was measured is kept"
