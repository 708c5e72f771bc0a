"""profile=true: the phases, operations and trace of a step, without a change of the run."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import PROJECT
from tests.ranks import OVERRIDES, end_ranks, record, run_harness, start_ranks
from tests.tiny import TINY

SAME = ("workload_id", "digests", "losses", "weights")


def test_the_run_stays_the_same(tmp_path: Path) -> None:
    for name, overrides in (("plain", ()), ("profiled", ("profile=true",))):
        ended = run_harness(tmp_path, *TINY, *overrides, f"out={name}")
        assert ended.code == 0, ended.err
    plain, profiled = record(tmp_path / "plain"), record(tmp_path / "profiled")
    for key in SAME:
        assert profiled[key] == plain[key], key
    assert profiled["eval"]["final"] == plain["eval"]["final"]
    assert profiled["timing"]["measured_steps"] == plain["timing"]["measured_steps"]
    steps = (tmp_path / "profiled" / "steps.jsonl").read_text().splitlines()
    assert len(steps) == profiled["config"]["workload"]["steps"], "the profiled steps are not steps of the run"
    assert plain["profile"] is None


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("profile")
    ended = run_harness(folder, *TINY, "workload.micro_batch_size=2", "profile=true", "out=run")
    assert ended.code == 0, ended.err
    return folder / "run", record(folder / "run"), ended.out


def test_follows_the_schema(profiled: tuple[Path, dict[str, Any], str]) -> None:
    jsonschema.validate(profiled[1], json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text()))


def test_phases_add_up_to_a_step(profiled: tuple[Path, dict[str, Any], str]) -> None:
    profile = profiled[1]["profile"]
    phases = profile["phases"]
    assert all(phases[name] > 0 for name in ("forward", "backward", "optimizer"))
    assert phases["communication"] == pytest.approx(0.0, abs=1e-3)
    # Other load on the machine may slow either, so only the order of magnitude is checked.
    step = profiled[1]["timing"]["mean_step_seconds"]
    assert 0.2 * step < sum(phases.values()) + profile["host_overhead_seconds"] < 5 * step
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
    output = " ".join(profiled[2].split())
    for part in ("phases of a step", "clipping and optimizer", "aten::mm", "roofline", "trace-rank0.json.gz"):
        assert part in output


SCHEMA = json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text())


def test_every_rank_has_a_trace(tmp_path: Path) -> None:
    """Rank 1 is slow in every backward pass: rank 0 waits for it in communication, not in another phase."""
    overrides = (*OVERRIDES, "profile=true", "workload.micro_batch_size=4", "out=run")
    ended = end_ranks(start_ranks(2, overrides, tmp_path, fault="slow backward pass"))
    assert [rank.code for rank in ended] == [0, 0], ended
    assert {path.name for path in (tmp_path / "run" / "profile").iterdir()} == {
        "trace-rank0.json.gz",
        "trace-rank1.json.gz",
    }
    found = record(tmp_path / "run")
    jsonschema.validate(found, SCHEMA)
    assert 0.08 < found["profile"]["phases"]["communication"] < 0.5
    assert found["profile"]["phases"]["backward"] < 0.08


def test_sharded(tmp_path: Path) -> None:
    """With accumulation: the wait in the backward pass of a micro-batch does not count as the next forward pass."""
    overrides = (
        *OVERRIDES,
        "profile=true",
        "precision=bf16",
        "parallel=fsdp",
        "workload.micro_batch_size=2",
        "out=run",
    )
    ended = end_ranks(start_ranks(2, overrides, tmp_path, fault="slow backward pass"))
    assert [rank.code for rank in ended] == [0, 0], ended
    found = record(tmp_path / "run")
    jsonschema.validate(found, SCHEMA)
    assert found["profile"]["phases"]["communication"] > 0.08


def test_compiled(tmp_path: Path) -> None:
    # The shape of test_tuned.py, whose compiled programs are in the cache on disk.
    shape = ("model.position_embedding=learned", "model.bias=true")
    ended = run_harness(tmp_path, *TINY, *shape, "track=tuned", "profile=true", "precision=bf16", "out=run")
    assert ended.code == 0, ended.err
    found = record(tmp_path / "run")
    jsonschema.validate(found, SCHEMA)
    assert found["effective_settings"]["compilation"]["graphs_in_window"] == 0
    assert found["profile"]["bytes_accessed"] > 0
    # torch 2.9 names CompiledFunction, later releases CompiledFxGraph.
    assert any("Compiled" in operation["name"] for operation in found["profile"]["operations"])


FULL_DISK = """
import os, sys
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
from torch.profiler import profile
def full(*_):
    raise OSError(28, "No space left on device")
profile.export_chrome_trace = full
from harness.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_run_survives_a_trace_that_cannot_be_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, *TINY, "profile=true", "out=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "run/profile" in line
    assert "trace cannot be written" in line
    assert "the run itself ended well" in line
    assert "tokens/s" in done.stdout, "its summary is shown"
    found = record(tmp_path / "run")
    assert (found["status"], found["profile"]) == ("ok", None)
    assert found["timing"]["tokens_per_second"] > 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_run_survives_out_of_memory_in_the_profile(ranks: int, tmp_path: Path) -> None:
    fault = "out of memory in the profile"
    overrides = (*(OVERRIDES if ranks > 1 else TINY), "profile=true", "out=run")
    if ranks > 1:
        ended = end_ranks(start_ranks(ranks, overrides, tmp_path, fault=fault))
    else:
        ended = [run_harness(tmp_path, *overrides, fault=fault)]
    assert [rank.code for rank in ended] == [5] * ranks, ended
    assert "out of memory" in ended[0].errors[0]
    assert "the run itself ended well" in ended[0].errors[0]
    found = record(tmp_path / "run")
    assert (found["status"], found["profile"]) == ("ok", None)


def test_a_signal_stops_the_profile_and_not_the_run(tmp_path: Path) -> None:
    ended = run_harness(tmp_path, *TINY, "profile=true", "out=run", fault="stopped in the profile")
    assert ended.code == 143, ended.err
    found = record(tmp_path / "run")
    assert (found["status"], found["profile"]) == ("ok", None)
    assert found["timing"]["tokens_per_second"] > 0
