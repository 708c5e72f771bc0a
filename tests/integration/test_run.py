"""python -m harness, end to end: what a run leaves behind, that it repeats itself, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import PROJECT, Harness
from tests.ranks import shared_zygote
from tests.tiny import TINY
from tests.zygote import Forked

SCHEMAS = PROJECT / "harness" / "schemas"


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return read(folder)["losses"]["train"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run that several tests look at."""
    folder = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, "-m", "harness", *TINY, f"out={folder}/run"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


class TestFinishedRun:
    def test_leaves_exactly_three_files(self, finished: Path) -> None:
        assert sorted(path.name for path in (finished / "run").iterdir()) == [
            "config.yaml",
            "record.json",
            "steps.jsonl",
        ]
        # Nothing beside the run's folder either: Hydra writes no files of its own.
        assert sorted(path.name for path in finished.iterdir()) == ["run", "stdout"]

    def test_record_follows_the_published_schema(self, finished: Path) -> None:
        schema = json.loads((SCHEMAS / "record.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(read(finished / "run"), schema)

    def test_every_step_has_a_row_that_follows_the_schema(self, finished: Path) -> None:
        schema = json.loads((SCHEMAS / "steps.schema.json").read_text())
        found = rows(finished / "run")
        assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
        assert [row["phase"] for row in found] == ["first", "warmup", *["measured"] * 4]
        for row in found:
            jsonschema.validate(row, schema)

    def test_record_and_rows_agree(self, finished: Path) -> None:
        record, found = read(finished / "run"), rows(finished / "run")
        assert record["losses"]["train"] == [row["loss"] for row in found]
        assert record["timing"]["step_seconds"] == [row["seconds"] for row in found if row["phase"] == "measured"]
        assert record["timing"]["tokens_per_step"] == found[0]["tokens"] == 4 * 32

    def test_headline_is_the_measured_intervals_alone(self, finished: Path) -> None:
        timing = read(finished / "run")["timing"]
        steps = [(interval["first_step"], interval["last_step"]) for interval in timing["intervals"]]
        assert steps == [(3, 3), (4, 5), (6, 6)]
        seconds = sum(interval["seconds"] for interval in timing["intervals"])
        assert timing["measured_seconds"] == pytest.approx(seconds)
        assert timing["mean_step_seconds"] == pytest.approx(seconds / 4)
        assert timing["tokens_per_second"] == pytest.approx(4 * 4 * 32 / seconds)

    def test_evaluates_when_due_and_at_the_end(self, finished: Path) -> None:
        points = read(finished / "run")["eval"]["points"]
        assert [point["step"] for point in points] == [3, 6]

    def test_config_yaml_repeats_the_run(self, finished: Path) -> None:
        import yaml

        assert yaml.safe_load((finished / "run" / "config.yaml").read_text()) == read(finished / "run")["config"]

    def test_summary_fits_one_screen(self, finished: Path) -> None:
        lines = (finished / "stdout").read_text().splitlines()
        assert len(lines) <= 24
        assert max(len(line.rstrip()) for line in lines) <= 100
        assert "tokens/s" in "\n".join(lines)

    def test_is_refused_as_out_of_another_run(self, finished: Path, harness: Harness) -> None:
        before = (finished / "run" / "record.json").read_bytes()
        done = harness(*TINY, f"out={finished}/run")
        assert done.returncode == 2
        assert "finished run" in done.stderr
        assert "out=" in done.stderr
        assert (finished / "run" / "record.json").read_bytes() == before


class TestSameness:
    def test_the_same_command_gives_the_same_bits(self, finished: Path, harness: Harness, tmp_path: Path) -> None:
        assert harness(*TINY, "out=again").returncode == 0
        one, two = read(finished / "run"), read(tmp_path / "again")
        assert one["workload_id"] == two["workload_id"]
        assert one["digests"] == two["digests"]
        assert one["losses"] == two["losses"]
        assert [p["loss"] for p in one["eval"]["points"]] == [p["loss"] for p in two["eval"]["points"]]

    def test_another_seed_is_other_work(self, finished: Path, harness: Harness, tmp_path: Path) -> None:
        assert harness(*TINY, "seed=2", "out=other").returncode == 0
        one, two = read(finished / "run"), read(tmp_path / "other")
        assert one["workload_id"] != two["workload_id"]
        assert one["digests"]["init"] != two["digests"]["init"]
        assert one["digests"]["batches"] != two["digests"]["batches"]

    def test_how_a_batch_is_cut_up_is_not_other_work(self, finished: Path, harness: Harness, tmp_path: Path) -> None:
        words = (*TINY, "workload.micro_batch_size=4", "model.activation_checkpointing=true", "out=other")
        assert harness(*words).returncode == 0
        one, two = read(finished / "run"), read(tmp_path / "other")
        assert one["workload_id"] == two["workload_id"]
        assert one["digests"] == two["digests"]
        assert two["losses"]["train"] == pytest.approx(one["losses"]["train"], rel=1e-5)

    def test_every_precision_trains(self, finished: Path, harness: Harness, tmp_path: Path) -> None:
        for precision, dtype in (("bf16", "bfloat16"), ("fp16", "float16"), ("bf16_weights", "bfloat16")):
            assert harness(*TINY, f"precision={precision}", f"out={precision}").returncode == 0
            record = read(tmp_path / precision)
            assert record["effective_settings"]["matmul_dtype"] == dtype
            assert record["losses"]["train"] == pytest.approx(losses(finished / "run"), rel=0.02)
            assert record["workload_id"] != read(finished / "run")["workload_id"]


class TestTarget:
    def test_stops_at_the_target_and_records_when(self, harness: Harness, tmp_path: Path) -> None:
        done = harness(*TINY, "target_loss=100", "out=run")
        assert done.returncode == 0, done.stderr
        record = read(tmp_path / "run")
        assert record["target"]["reached"]
        assert record["target"]["step"] == 3
        assert 0 < record["target"]["training_seconds"] <= record["target"]["wall_seconds"]
        assert len(record["losses"]["train"]) == 3
        assert record["status"] == "ok"

    def test_says_when_it_was_not_reached(self, harness: Harness, tmp_path: Path) -> None:
        done = harness(*TINY, "target_loss=0.001", "out=run")
        assert done.returncode == 0
        assert read(tmp_path / "run")["target"]["reached"] is False
        assert "was not reached" in done.stdout


class TestRepeatsAndSweeps:
    @pytest.mark.slow
    def test_repeats_run_in_fresh_processes_into_numbered_folders(self, harness: Harness, tmp_path: Path) -> None:
        done = harness(*TINY, "repeats=2", "out='r (p), it=\\'s'", fresh=True)
        assert done.returncode == 0, done.stderr
        one, two = read(tmp_path / "r (p), it='s" / "1"), read(tmp_path / "r (p), it='s" / "2")
        assert one["losses"] == two["losses"]
        assert one["config"]["repeats"] == two["config"]["repeats"] == 1
        done = harness(*TINY, "repeats=2", "out='r (p), it=\\'s'")
        assert done.returncode == 2
        assert "repeats of a run" in done.stderr

    def test_multirun_runs_every_combination(self, harness: Harness, tmp_path: Path) -> None:
        done = harness("-m", *TINY, "seed=1,2", "out=sweep")
        assert done.returncode == 0, done.stderr
        seeds = [read(tmp_path / "sweep" / name)["config"]["seed"] for name in ("1", "2")]
        assert seeds == [1, 2]

    def test_multirun_over_folders(self, harness: Harness, tmp_path: Path) -> None:
        done = harness("-m", *TINY, "seed=1,2", "out=one,two")
        assert done.returncode == 0, done.stderr
        seeds = {path.parent.relative_to(tmp_path).as_posix(): read(path.parent)["config"]["seed"]
                 for path in tmp_path.glob("*/*/record.json")}  # fmt: skip
        assert seeds == {"one/1": 1, "one/2": 2, "two/1": 1, "two/2": 2}

    def test_multirun_without_out_makes_a_folder_a_job(self, harness: Harness, tmp_path: Path) -> None:
        done = harness("--multirun", *TINY, "seed=1,2")
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "runs").iterdir())) == 2

    def test_a_failing_repeat_ends_the_series_with_its_exit_code(self, harness: Harness, tmp_path: Path) -> None:
        done = harness(*TINY, "repeats=3", "out=r", "workload.learning_rate=1e30")
        assert done.returncode == 5
        assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["1"]


class TestFailures:
    def test_divergence_is_a_record_with_its_own_status(self, harness: Harness, tmp_path: Path) -> None:
        done = harness(*TINY, "workload.learning_rate=1e30", "out=run")
        assert done.returncode == 5
        assert "Traceback" not in done.stderr
        record = read(tmp_path / "run")
        assert record["status"] == "diverged"
        assert "workload.learning_rate" in record["error"]
        jsonschema.validate(record, json.loads((SCHEMAS / "record.schema.json").read_text()))

    @pytest.mark.slow
    def test_out_of_memory_is_a_record_with_its_own_status(self, harness: Harness, tmp_path: Path) -> None:
        words = (*TINY, "workload.global_batch_size=200000", "workload.micro_batch_size=200000", "out=run")
        import resource

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

        done = harness(*words, "workload.steps=2", "workload.timing_warmup_steps=1",
                       "workload.lr_warmup_steps=1", preexec_fn=limit)  # fmt: skip
        assert done.returncode == 5, done.stderr
        assert "Traceback" not in done.stderr
        assert read(tmp_path / "run")["status"] == "oom"
        assert "workload.micro_batch_size" in done.stderr

    def test_a_model_that_cannot_fit_is_refused_before_the_folder_is_made(
        self, harness: Harness, tmp_path: Path
    ) -> None:
        done = harness("model=llama2-70b", "workload.seq_len=32", "out=run")
        assert done.returncode == 2
        assert "68,976,648,192 parameters" in done.stderr
        assert not (tmp_path / "run").exists()


def start(tmp_path: Path, *words: str, out: str = "run") -> Forked:
    return shared_zygote().start(["harness", *TINY, *words, f"out={out}"], tmp_path, os.environ)


def wait_for_rows(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "steps.jsonl").exists() and len((folder / "steps.jsonl").read_text().splitlines()) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder} did not get {count} rows in time")


LONG = ("workload.steps=100000", "workload.eval_every=0")


class TestInterruptions:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_ends_the_run_with_a_record(self, tmp_path: Path, number: signal.Signals, code: int) -> None:
        with start(tmp_path, *LONG) as process:
            wait_for_rows(tmp_path / "run", 4)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=30)
        assert process.returncode == code
        assert "Traceback" not in stderr
        record = read(tmp_path / "run")
        assert record["status"] == "interrupted"
        assert len(record["losses"]["train"]) == len(rows(tmp_path / "run")) >= 4

    def test_a_signal_reaches_the_repeat_that_is_running(self, tmp_path: Path) -> None:
        with start(tmp_path, *LONG, "repeats=2") as process:
            wait_for_rows(tmp_path / "run" / "1", 4)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        assert process.returncode == 143
        assert read(tmp_path / "run" / "1")["status"] == "interrupted"
        assert not (tmp_path / "run" / "2").exists()

    @pytest.mark.slow
    def test_ten_kills_at_random_moments_lose_no_finished_interval(self, tmp_path: Path, harness: Harness) -> None:
        import random

        moments = random.Random(7)
        for attempt in range(10):
            folder = tmp_path / f"run{attempt}"
            with start(tmp_path, *LONG, out=folder.name) as process:
                # Some at the very start, some far into the run.
                wait_for_rows(folder, moments.choice((0, 1, 3, 50)))
                time.sleep(moments.random() * 0.3)
                seen = len((folder / "steps.jsonl").read_text().splitlines())
                process.kill()
                process.communicate(timeout=30)
            assert process.returncode == -signal.SIGKILL
            names = {path.name for path in folder.iterdir()}
            assert names == {"config.yaml", "steps.jsonl"}, "a half-written record was left"
            text = (folder / "steps.jsonl").read_text()
            found = rows(folder)  # every line is whole
            assert text == "" or text.endswith("\n")
            assert len(found) >= seen
            assert [row["step"] for row in found] == list(range(1, len(found) + 1))
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            done = harness(*TINY, f"out={folder.name}")
            assert done.returncode == 2
            assert "still running or was interrupted" in done.stderr
            assert "choose another out=DIR" in done.stderr
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class TestFullDisk:
    def test_ends_with_one_line_and_keeps_what_was_written(self, harness: Harness, tmp_path: Path) -> None:
        import resource

        def limit() -> None:
            # Writes beyond this fail as on a full disk (Python ignores the signal that comes with it).
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

        done = harness(*TINY, "workload.steps=2000", "workload.eval_every=0", "out=run", preexec_fn=limit)
        assert done.returncode == 5
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
        assert "Traceback" not in done.stderr
        assert "cannot be written" in done.stderr
        assert "free some space" in done.stderr
        assert not (tmp_path / "run" / "record.json").exists()
        assert not list((tmp_path / "run").glob("*.partial"))
        whole = [
            line for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines(True) if line.endswith("\n")
        ]
        assert [json.loads(line)["step"] for line in whole] == list(range(1, len(whole) + 1))
        assert len(whole) >= 4

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
    def test_on_a_real_full_file_system(self, harness: Harness, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("mounting a small file system is not permitted here")
        try:
            done = harness(*TINY, "workload.steps=2000", "workload.eval_every=0", f"out={disk}/run")
            assert done.returncode == 5
            assert "No space left" in done.stderr
            assert not (disk / "run" / "record.json").exists()
            assert len((disk / "run" / "steps.jsonl").read_text().splitlines()) >= 4
        finally:
            subprocess.run(["umount", str(disk)], check=True)
