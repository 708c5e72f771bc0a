"""Runs of several processes: the same work and numbers as one process, one record, and an end of all if one fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.analysis import fingerprint
from harness.analysis.calibration import load_calibration
from harness.analysis.parity import compare_computation
from harness.records.load import load_runs
from tests.conftest import PROJECT
from tests.ranks import OVERRIDES, Ended, end_ranks, free_port, record, run_harness, run_ranks, start_ranks
from tests.tiny import TINY

# The tiny run with accumulation and unequal shares of the evaluation; both model families follow.
SHAPE = ("workload.global_batch_size=8", "workload.micro_batch_size=1", "workload.steps=20", "workload.eval_every=10",
         "workload.eval_sequences=5")  # fmt: skip
GPT2 = ("model.position_embedding=learned", "model.bias=true")
LLAMA = (
    "model.norm=rmsnorm",
    "model.activation=swiglu",
    "model.tie_word_embeddings=false",
    "model.num_key_value_heads=1",
)
TOLERANCE = 1e-5
# Gradients overflow fp16 at the first scale of the loss scaler.
OVERFLOWING = ("precision=fp16", "model.initializer_range=3.0")


def relative(found: list[float], expected: list[float]) -> float:
    return max(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))


def run_alone(folder: Path, *overrides: str) -> dict[str, Any]:
    ended = run_harness(folder.parent, *TINY, *SHAPE, *overrides, f"out={folder}")
    assert ended.code == 0, ended.err
    return record(folder)


@pytest.fixture(scope="module", params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def shape(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return request.param


@pytest.fixture(scope="module")
def alone(shape: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_alone(tmp_path_factory.mktemp("alone") / "run", *shape)


def assert_same_work(found: dict[str, Any], expected: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    assert found["status"] == "ok"
    assert found["workload_id"] == expected["workload_id"]
    assert found["digests"] == expected["digests"]
    assert relative(found["losses"]["train"], expected["losses"]["train"]) < tolerance
    assert relative(found["losses"]["gradient_norm"], expected["losses"]["gradient_norm"]) < 10 * tolerance
    for one, other in zip(found["eval"]["points"], expected["eval"]["points"], strict=True):
        assert one["batches"] == other["batches"]
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
    for name, norm in expected["weights"]["final_norms"].items():
        assert found["weights"]["final_norms"][name] == pytest.approx(norm, rel=10 * tolerance, abs=1e-9)
    # In float32, whatever the precision of the run.
    for look in (fingerprint.fp32_activations, fingerprint.fp32_gradients, fingerprint.short_training):
        differences = [value for value, _ in look(expected, found)]
        assert differences
        assert max(differences) < TOLERANCE


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_the_number_of_processes_does_not_change_the_work(
    parallel: str, processes: int, shape: tuple[str, ...], alone: dict[str, Any], tmp_path: Path
) -> None:
    # Three do not divide a global batch of eight: with twelve it is other work.
    more = ["workload.global_batch_size=12"] if processes == 3 else []
    if more:
        alone = run_alone(tmp_path / "alone", *shape, *more)
    overrides = [*TINY, *SHAPE, *shape, *more, f"parallel={parallel}", "out=run"]
    for ended in run_ranks(processes, overrides, tmp_path):
        assert ended.code == 0, ended.err
    found = record(tmp_path / "run")
    jsonschema.validate(found, json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text()))
    assert_same_work(found, alone)
    assert found["world_size"] == processes == len(found["parallel"]["ranks"])
    for rank in found["parallel"]["ranks"]:
        assert rank["step_seconds"] >= rank["exposed_communication_seconds"] >= 0
        if parallel == "ddp":
            # Every gradient once per step, in float32, for any number of micro-batches.
            assert rank["payload_bytes_per_step"] == 4 * found["model"]["parameters"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("parallel=ddp",),
        ("parallel=fsdp",),
        ("parallel=fsdp", "parallel.low_precision_all_gather=false"),
        ("parallel=fsdp", "model.activation_checkpointing=true"),
    ],
    ids=" ".join,
)
def test_bf16_is_within_the_gate(overrides: tuple[str, ...], tmp_path: Path) -> None:
    run_alone(tmp_path / "alone", "precision=bf16")
    for ended in run_ranks(2, [*TINY, *SHAPE, "precision=bf16", *overrides, "out=run"], tmp_path):
        assert ended.code == 0, ended.err
    [reference], [other] = (load_runs(tmp_path / name) for name in ("alone", "run"))
    assert other.record["digests"] == reference.record["digests"]
    assert other.record["effective_settings"]["linear_output_dtypes"] == ["bfloat16"]
    findings = compare_computation(reference, [other], "bf16", load_calibration())
    assert len(findings) > 10
    assert [finding.text for finding in findings if finding.passed is not True] == []


def test_fp16_skips_the_same_steps(tmp_path: Path) -> None:
    expected = run_alone(tmp_path / "alone", *OVERFLOWING)
    assert expected["losses"]["skipped_steps"] > 0
    for parallel in ("ddp", "fsdp"):
        overrides = [*TINY, *SHAPE, *OVERFLOWING, f"parallel={parallel}", f"out={parallel}"]
        for ended in run_ranks(2, overrides, tmp_path):
            assert ended.code == 0, ended.err
        found = record(tmp_path / parallel)
        assert found["losses"]["skipped_steps"] == expected["losses"]["skipped_steps"]
        assert relative(found["losses"]["train"], expected["losses"]["train"]) < 1e-3


def test_shards_and_replicas(alone: dict[str, Any], shape: tuple[str, ...], tmp_path: Path) -> None:
    overrides = [*TINY, *SHAPE, *shape, "parallel=fsdp", "parallel.shard=2", "out=run"]
    for ended in run_ranks(4, overrides, tmp_path):
        assert ended.code == 0, ended.err
    assert_same_work(record(tmp_path / "run"), alone)


def test_one_process_prints_and_writes(tmp_path: Path) -> None:
    first, second = run_ranks(2, [*OVERRIDES, "out=run"], tmp_path)
    assert "2 processes (ddp)" in first.out
    assert "in all" in first.out
    assert "step 1/12" in first.err
    assert second.out == second.err == ""
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "record.json", "steps.jsonl"]
    assert len((tmp_path / "run" / "steps.jsonl").read_text().splitlines()) == 12


# Writes a file when the interpreter is finalized.
SITE = """
import atexit, os
if "RANK" in os.environ:
    atexit.register(lambda: open(f"rank-{os.environ['RANK']}-finalized", "w"))
"""


def test_torchrun_launches_it(tmp_path: Path) -> None:
    """As in harness/docs/distributed.md. PyTorch's threads could crash a rank in the interpreter's finalization."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    done = subprocess.run(
        ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "harness", *OVERRIDES, "out=run"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{tmp_path}:{PROJECT}",
            "PYTHONFAULTHANDLER": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert record(tmp_path / "run")["world_size"] == 2
    assert [file.name for file in tmp_path.glob("rank-*-finalized")] == []


def test_the_process_that_holds_the_store_needs_no_address(tmp_path: Path) -> None:
    """MASTER_ADDR can be a service's, by which the other hosts reach this one."""
    [ended] = run_ranks(1, [*OVERRIDES, "out=run"], tmp_path, variables={0: {"MASTER_ADDR": "192.0.2.1"}})
    assert ended.code == 0, ended.err


def test_the_straggler_is_named(tmp_path: Path) -> None:
    first, _ = run_ranks(2, [*OVERRIDES, "out=run"], tmp_path, fault="slow")
    assert first.code == 0, first.err
    stragglers = record(tmp_path / "run")["parallel"]["stragglers"]
    assert [straggler["rank"] for straggler in stragglers] == [1]
    assert stragglers[0]["slowdown"] > 1.3
    assert re.search(r"straggler\s+rank 1 \(", first.out)


def test_a_bug_shows_its_traceback_on_its_rank(tmp_path: Path) -> None:
    ended = run_ranks(2, [*OVERRIDES, "out=run"], tmp_path, fault="bug")
    assert "ZeroDivisionError: a bug in the harness" in ended[1].err
    assert "Traceback" in ended[1].err
    assert ended[0].errors == ["error: rank 1: ZeroDivisionError: a bug in the harness; the record is in run"]
    assert record(tmp_path / "run")["status"] == "failed"


def test_all_end_without_rank_0(tmp_path: Path) -> None:
    began = time.monotonic()
    ended = run_ranks(2, [*OVERRIDES, "out=run"], tmp_path, fault="rank 0 killed")
    assert time.monotonic() - began < 60
    assert ended[0].code == -signal.SIGKILL
    assert ended[1].code not in (0, None)


def test_a_stop_reaches_all_ranks_after_one_step(tmp_path: Path) -> None:
    started = start_ranks(2, [*OVERRIDES, "workload.steps=20000", "workload.eval_every=0", "out=run"], tmp_path)
    steps = tmp_path / "run" / "steps.jsonl"
    limit = time.monotonic() + 60
    while not (steps.exists() and len(steps.read_text().splitlines()) > 20):
        assert time.monotonic() < limit
        time.sleep(0.1)
    signalled = time.monotonic()
    # One rank gets the signal; both stop after the same step.
    started[1].send_signal(signal.SIGTERM)
    first, second = end_ranks(started)
    assert time.monotonic() - signalled < 20
    assert (first.code, second.code) == (143, 143), first.err + second.err
    assert "interrupted" in first.err
    found = record(tmp_path / "run")
    assert found["status"] == "interrupted"
    assert len(found["losses"]["train"]) == len(steps.read_text().splitlines())


class TestStart:
    def assert_refused(self, ended: list[Ended], code: int, message: str) -> None:
        assert [one.code for one in ended] == [code] * len(ended), [one.err for one in ended]
        errors = [re.sub(r"rank \d: ", "", line) for one in ended for line in one.errors]
        # No launcher stops these processes when one has ended, so that each may say it; and all say the same.
        assert len(set(errors)) == 1, errors
        assert message in errors[0]
        assert not any("Traceback" in one.err for one in ended)

    def test_a_batch_that_the_processes_do_not_divide(self, tmp_path: Path) -> None:
        ended = run_ranks(3, [*OVERRIDES, "out=run"], tmp_path)
        self.assert_refused(
            ended, 2, "is not a multiple of workload.micro_batch_size (2) times the number of processes (3)"
        )
        assert not (tmp_path / "run").exists()

    def test_a_folder_that_holds_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "record.json").write_text("{}")
        self.assert_refused(run_ranks(2, [*OVERRIDES, "out=run"], tmp_path), 2, "run holds a finished run")

    def test_a_missing_accelerator(self, tmp_path: Path) -> None:
        self.assert_refused(
            run_ranks(2, [*OVERRIDES, "backend=cuda", "out=run"], tmp_path), 3, "backend cuda is not available"
        )

    def test_two_processes_of_one_rank(self, tmp_path: Path) -> None:
        overrides = [*OVERRIDES, "parallel.timeout_seconds=8", "out=run"]
        started = start_ranks(2, overrides, tmp_path, variables={1: {"RANK": "0"}}, port=free_port())
        ended = end_ranks(started)
        assert {one.code for one in ended} == {2}
        assert any("two processes were started as rank 0" in line or "is taken" in line
                   for one in ended for line in one.errors)  # fmt: skip


def test_a_record_of_fewer_processes_gives_the_efficiency(tmp_path: Path) -> None:
    run_alone(tmp_path / "one")
    overrides = [*TINY, *SHAPE, "parallel=ddp", "parallel.scaling_reference=one"]
    first, _ = run_ranks(2, [*overrides, "out=two"], tmp_path)
    assert first.code == 0, first.err
    speeds = [record(tmp_path / name)["timing"]["tokens_per_second"] for name in ("one", "two")]
    scaling = record(tmp_path / "two")["parallel"]["scaling"]
    assert scaling["efficiency"] == pytest.approx(speeds[1] / 2 / speeds[0])
    assert (scaling["kind"], scaling["world_size"], scaling["reference"]) == ("strong", 1, "one")
    assert f"efficiency {scaling['efficiency']:.3f}" in first.out
    # Other work, and two against two processes, are errors before the training.
    for override, message in (
        ("seed=2", "its seed is 1, expected 2"),
        ("parallel.scaling_reference=two", "world size 2"),
    ):
        first, second = run_ranks(2, [*overrides, override, "out=three"], tmp_path)
        assert (first.code, second.code) == (2, 2)
        assert message in first.errors[0]
        assert not (tmp_path / "three").exists()
