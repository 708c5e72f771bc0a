"""Interrupted runs resume from their checkpoint, and end with the same bits as uninterrupted ones."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.records.run_folder import checkpoint_steps
from harness.text import layered_settings
from tests.conftest import PROJECT, Harness
from tests.faults import await_checkpoints
from tests.integration.test_parallel import relative
from tests.ranks import end_ranks, record, run_harness, run_ranks, shared_zygote, start_ranks
from tests.tiny import TINY
from tests.zygote import Forked

KEPT = ("checkpoint.every=4", "resume=auto")
LONG = layered_settings(TINY, ["workload.global_batch_size=8", "workload.steps=120", "workload.eval_every=30"])
KILLS = 6


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("workload_id", "digests", "losses", "weights"):
        assert found[part] == expected[part], part
    keys = ("step", "loss", "batches")
    points = [[{key: point[key] for key in keys} for point in one["eval"]["points"]] for one in (found, expected)]
    assert points[0] == points[1]


def uninterrupted(folder: Path, *overrides: str) -> dict[str, Any]:
    ended = run_harness(folder.parent, *LONG, *overrides, f"out={folder}")
    assert ended.code == 0, ended.err
    return record(folder)


def start(folder: Path, *overrides: str) -> Forked:
    return shared_zygote().start(["harness", *LONG, *KEPT, *overrides, f"out={folder}"], folder.parent, os.environ)


def wait_for_training(process: Forked) -> None:
    limit = time.monotonic() + 120
    while process.poll() is None and "step" not in process.output("err"):
        assert time.monotonic() < limit
        time.sleep(0.005)


def wait_for_record(folder: Path) -> None:
    limit = time.monotonic() + 60
    while not (folder / "record.json").exists():
        assert time.monotonic() < limit
        time.sleep(0.1)


def kill_in_training(process: Forked, seconds: float) -> bool:
    """Kill a process `seconds` after it began to train, and return whether it was still alive."""
    wait_for_training(process)
    time.sleep(seconds)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


@pytest.mark.parametrize("overrides", [(), ("precision=fp16",)], ids=["fp32", "fp16"])
def test_kills_at_random_moments_change_no_bit(overrides: tuple[str, ...], tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path / "whole", *overrides)
    moments = random.Random(7)
    folder = tmp_path / "run"
    killed = sum(kill_in_training(start(folder, *overrides), moments.uniform(0, 0.25)) for _ in range(KILLS))
    assert killed >= KILLS // 2
    last = start(folder, *overrides)
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    found = record(folder)
    assert_same_bits(found, expected)
    assert [row["loss"] for row in rows(folder)] == expected["losses"]["train"]
    assert [row["step"] for row in rows(folder)] == list(range(1, 121))
    jsonschema.validate(found, json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text()))
    # Every attempt is recorded, and no timed interval spans an interruption. A run that was done in time is the last.
    assert [attempt["status"] for attempt in found["attempts"]] == [None] * killed + ["ok"]
    assert found["timing"]["measured_steps"] + found["timing"]["resumed"]["steps"] + 2 == 120


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Record of an uninterrupted run."""
    return uninterrupted(tmp_path_factory.mktemp("uninterrupted") / "whole")


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Record of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("of-two")
    for ended in run_ranks(2, [*LONG, "parallel=ddp", "out=whole"], folder):
        assert ended.code == 0, ended.err
    return record(folder / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_a_resume_continues(number: signal.Signals, whole: dict[str, Any], tmp_path: Path) -> None:
    process = start(tmp_path / "run", "workload.steps=120")
    wait_for_training(process)
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    cut = record(tmp_path / "run")
    assert cut["status"] == "interrupted"
    done = len(cut["losses"]["train"])
    assert checkpoint_steps(tmp_path / "run")[-1] == done
    last = start(tmp_path / "run")
    out, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert "attempts" in out
    assert "interrupted" in out
    assert_same_bits(record(tmp_path / "run"), whole)
    assert record(tmp_path / "run")["attempts"][1]["from_step"] == done
    assert json.loads((tmp_path / "run" / "record-1.json").read_text())["status"] == "interrupted"


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    for _ in range(2):
        process = start(tmp_path / "run")
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "status" in out
    assert len(record(tmp_path / "run")["attempts"]) == 1


class TestRefusals:
    @pytest.fixture
    def interrupted(self, tmp_path: Path) -> Path:
        """Folder of a run that was killed after its second checkpoint."""
        folder = tmp_path / "run"
        process = start(folder)
        await_checkpoints(process, folder, 2)
        process.kill()
        process.communicate()
        return folder

    def damage_newest(self, folder: Path, change: Callable[[Path], object]) -> None:
        newest = folder / "checkpoints" / f"step-{checkpoint_steps(folder)[-1]:08d}"
        change(newest / "__0_0.distcp")

    def test_a_damaged_checkpoint(self, interrupted: Path, harness: Harness) -> None:
        self.damage_newest(interrupted, lambda file: os.truncate(file, 100))
        done = harness(*LONG, *KEPT, f"out={interrupted}")
        assert done.returncode == 5
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "is damaged: it has 100 bytes" in errors[0]
        assert record(interrupted)["status"] == "bad_checkpoint"
        # The remedy of the message works.
        step = checkpoint_steps(interrupted)[-1]
        for file in (interrupted / "checkpoints" / f"step-{step:08d}").iterdir():
            file.unlink()
        (interrupted / "checkpoints" / f"step-{step:08d}").rmdir()
        assert harness(*LONG, *KEPT, f"out={interrupted}").returncode == 0

    def test_other_work(self, interrupted: Path, harness: Harness) -> None:
        done = harness(*LONG, *KEPT, "seed=2", f"out={interrupted}")
        assert done.returncode == 2
        assert "seed was 1, now 2" in done.stderr

    def test_another_process_in_the_folder(self, tmp_path: Path, harness: Harness) -> None:
        process = start(tmp_path / "run", "workload.steps=100000")
        await_checkpoints(process, tmp_path / "run", 1)
        done = harness(*LONG, *KEPT, "workload.steps=100000", f"out={tmp_path / 'run'}")
        process.kill()
        process.communicate()
        assert done.returncode == 2
        assert "is locked by another process" in done.stderr


class TestRanks:
    @pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
    def test_a_killed_rank_changes_no_bit(self, parallel: str, tmp_path: Path) -> None:
        overrides = [*TINY, "workload.global_batch_size=8", "workload.steps=12", "workload.eval_every=6",
                 f"parallel={parallel}", "checkpoint.every=2"]  # fmt: skip
        for ended in run_ranks(2, [*overrides, "out=whole"], tmp_path):
            assert ended.code == 0, ended.err
        first, _ = run_ranks(2, [*overrides, "resume=auto", "out=run"], tmp_path, fault="killed")
        assert first.code == 5
        for ended in run_ranks(2, [*overrides, "resume=auto", "out=run"], tmp_path):
            assert ended.code == 0, ended.err
        found = record(tmp_path / "run")
        assert_same_bits(found, record(tmp_path / "whole"))
        assert [attempt["status"] for attempt in found["attempts"]] == ["rank_lost", "ok"]
        assert found["attempts"][1]["from_step"] == 4

    def test_hosts_that_are_not_alike_resume(self, tmp_path: Path) -> None:
        """The threads of rank 1 are others than rank 0's, by which all ranks decide what is left out of the timing."""
        overrides = [*TINY, "workload.global_batch_size=8", "workload.steps=12", "parallel=ddp", "backend.threads=null",
                     "checkpoint.every=2", "resume=auto", "out=run"]  # fmt: skip
        own_host = {1: {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}}
        first, _ = end_ranks(start_ranks(2, overrides, tmp_path, fault="killed", variables=own_host))
        assert first.code == 5, first.err
        for ended in end_ranks(start_ranks(2, overrides, tmp_path, variables=own_host)):
            assert ended.code == 0, ended.err
        found = record(tmp_path / "run")
        assert found["status"] == "ok"
        assert found["fingerprint"]["repeated_step"] is not None

    @pytest.mark.parametrize(("before", "after"), [("fsdp", "ddp"), ("ddp", "fsdp")])
    def test_another_number_of_processes_resumes(self, before: str, after: str, tmp_path: Path) -> None:
        overrides = [*TINY, "workload.global_batch_size=8", "workload.steps=12", "workload.eval_every=6",
                 "checkpoint.every=2", "resume=auto", "out=run"]  # fmt: skip
        first, _ = run_ranks(2, [*overrides, f"parallel={before}"], tmp_path, fault="killed")
        assert first.code == 5
        for ended in run_ranks(4, [*overrides, f"parallel={after}", "workload.micro_batch_size=1"], tmp_path):
            assert ended.code == 0, ended.err
        alone = [override for override in overrides if override != "out=run"]
        done = run_harness(tmp_path, *alone, "out=alone")
        assert done.code == 0, done.err
        found, expected = record(tmp_path / "run"), record(tmp_path / "alone")
        assert found["digests"] == expected["digests"]
        assert relative(found["losses"]["train"], expected["losses"]["train"]) < 1e-5
        assert [attempt["world_size"] for attempt in found["attempts"]] == [2, 4]

    def test_a_signal_makes_one_checkpoint_and_one_record(self, tmp_path: Path) -> None:
        overrides = [*TINY, "workload.global_batch_size=8", "workload.steps=100000", "workload.eval_every=0",
                 "parallel=fsdp", *KEPT, "out=run"]  # fmt: skip
        started = start_ranks(2, overrides, tmp_path)
        await_checkpoints(started[0], tmp_path / "run", 1)
        signalled = time.monotonic()
        for process in started:
            process.send_signal(signal.SIGTERM)
        ended = end_ranks(started)
        assert time.monotonic() - signalled < 20
        assert [one.code for one in ended] == [143, 143], ended[0].err + ended[1].err
        found = record(tmp_path / "run")
        assert found["status"] == "interrupted"
        assert checkpoint_steps(tmp_path / "run")[-1] == len(found["losses"]["train"])

    def test_the_launcher_ends_with_the_code_of_the_run(self, tmp_path: Path) -> None:
        """SIGTERM reaches the launcher alone, as in a container."""
        changes = ["workload.global_batch_size=8", "workload.steps=100000", "workload.eval_every=0"]
        overrides = layered_settings(TINY, changes, ["parallel=fsdp", *KEPT, "out=run"])
        command = [shared_zygote().python, "-m", "harness", "torchrun", "--standalone", "--nproc-per-node=2"]
        with subprocess.Popen([*command, *overrides], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as launcher:
            while not checkpoint_steps(tmp_path / "run"):
                assert launcher.poll() is None
                time.sleep(0.05)
            signalled = time.monotonic()
            launcher.send_signal(signal.SIGTERM)
            _, errors = launcher.communicate(timeout=60)
        assert launcher.returncode == 143, errors
        assert time.monotonic() - signalled < 20
        found = record(tmp_path / "run")
        assert found["status"] == "interrupted"
        assert checkpoint_steps(tmp_path / "run")[-1] == len(found["losses"]["train"])
        assert "Traceback" not in errors
        # An error of the run is the launcher's too, with the same line and exit code.
        done = subprocess.run(
            [*command, *layered_settings(overrides, ["model.num_hidden_layers=0"])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert [line for line in done.stderr.splitlines() if "Warning" not in line] == [
            "error: model.num_hidden_layers: found 0, expected at least 1"
        ]

    def launch(self, folder: Path, python: str | None = None, **options: Any) -> subprocess.Popen[str]:
        command = [python or shared_zygote().python, "-m", "harness", "torchrun", "--standalone", "--nproc-per-node=2"]
        argv = [*command, *LONG, *KEPT, "parallel=ddp", "out=run"]
        return subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL])
    def test_a_signal_to_the_launcher_changes_no_bit(
        self, number: signal.Signals, whole_of_two: dict[str, Any], tmp_path: Path
    ) -> None:
        with self.launch(tmp_path) as launcher:
            while not checkpoint_steps(tmp_path / "run"):
                assert launcher.poll() is None
                time.sleep(0.02)
            launcher.send_signal(number)
            _, errors = launcher.communicate(timeout=60)
        if number == signal.SIGKILL:
            # Its processes lose their store, and end by themselves.
            wait_for_record(tmp_path / "run")
        else:
            assert launcher.returncode == 128 + number, errors
            cut = record(tmp_path / "run")
            assert cut["status"] == "interrupted"
            assert checkpoint_steps(tmp_path / "run")[-1] == len(cut["losses"]["train"])
        with self.launch(tmp_path) as launcher:
            _, errors = launcher.communicate(timeout=120)
        assert launcher.returncode == 0, errors
        assert_same_bits(record(tmp_path / "run"), whole_of_two)

    def test_under_nohup_a_hangup_changes_nothing(self, whole_of_two: dict[str, Any], tmp_path: Path) -> None:
        ignore = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
        with self.launch(tmp_path, sys.executable, preexec_fn=ignore) as launcher:
            while not checkpoint_steps(tmp_path / "run"):
                assert launcher.poll() is None
                time.sleep(0.02)
            launcher.send_signal(signal.SIGHUP)
            _, errors = launcher.communicate(timeout=120)
        assert launcher.returncode == 0, errors
        found = record(tmp_path / "run")
        assert [attempt["status"] for attempt in found["attempts"]] == ["ok"]
        assert_same_bits(found, whole_of_two)

    def test_torchrun_restarts_a_killed_rank(self, tmp_path: Path) -> None:
        own = ["workload.global_batch_size=8", "workload.steps=12", "workload.eval_every=6", "parallel=ddp",
               "checkpoint.every=2", "resume=auto", "out=run"]  # fmt: skip
        overrides = layered_settings(TINY, own)
        done = subprocess.run(
            ["torchrun", "--standalone", "--nproc-per-node=2", "--max-restarts=3", "-m", "tests.ranks",
             "killed once", *overrides],
            capture_output=True, text=True, timeout=180, check=False, cwd=tmp_path,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                 "PYTHON_EXEC": shared_zygote().python, "PYTHONPATH": str(PROJECT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        attempts = record(tmp_path / "run")["attempts"]
        assert [attempt["status"] for attempt in attempts] == ["rank_lost", "ok"]
        assert "attempts" in done.stdout
