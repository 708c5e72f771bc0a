"""The folder of a run over several attempts: acquired, locked, resumed, or rejected."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.composition import load
from harness.config import Config
from harness.errors import ConfigError
from harness.layout import Layout
from harness.records.attempts import begin_attempt, end_attempt, read_attempts
from harness.records.record import read_record, write_record
from harness.records.run_folder import acquire_run_folder, checkpoint_steps
from harness.text import layered_settings
from tests.records import make_record
from tests.tiny import TINY


def config(folder: Path, *overrides: str) -> Config:
    return load(layered_settings(TINY, [f"out={folder}", "checkpoint.every=2", "resume=auto", *overrides]))


def start_run(folder: Path) -> None:
    """Acquire and release a folder, as a run does that is interrupted at once."""
    with acquire_run_folder(config(folder), "cpu-tiny"):
        pass


def test_a_new_folder_is_created(tmp_path: Path) -> None:
    with acquire_run_folder(config(tmp_path / "run"), "cpu-tiny") as folder:
        assert folder.path == tmp_path / "run"
        assert not folder.resuming
        assert folder.existing_record is None


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    # Settings outside the workload, such as micro-batch size and timing, may change in between.
    changed = config(tmp_path / "run", "workload.micro_batch_size=1", "workload.interval_steps=3")
    with acquire_run_folder(changed, "cpu-tiny") as again:
        assert again.resuming


def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    with (
        acquire_run_folder(config(tmp_path / "run"), "cpu-tiny"),
        pytest.raises(ConfigError, match="is locked by another process"),
    ):
        acquire_run_folder(config(tmp_path / "run"), "cpu-tiny")
    start_run(tmp_path / "run")


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    program = (
        "import os, sys; from harness.composition import load;"
        "from harness.records.run_folder import acquire_run_folder;"
        "folder = acquire_run_folder(load(sys.argv[1:]), 'x'); os.kill(os.getpid(), 9)"
    )
    argv = [*TINY, f"out={tmp_path / 'run'}", "checkpoint.every=2", "resume=auto"]
    done = subprocess.run([sys.executable, "-c", program, *argv], check=False, timeout=60)
    assert done.returncode == -9
    with acquire_run_folder(config(tmp_path / "run"), "cpu-tiny") as folder:
        assert folder.resuming


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["seed=2"], "seed was 1, now 2"),
        (["workload.learning_rate=0.5"], "workload.learning_rate was"),
        (["precision=bf16"], "precision was 'fp32', now 'bf16'"),
    ],
)
def test_another_workload_is_an_error_that_names_the_setting(overrides: list[str], named: str, tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    with pytest.raises(ConfigError) as raised:
        acquire_run_folder(config(tmp_path / "run", *overrides), "cpu-tiny")
    assert named in str(raised.value)


def test_the_same_work_in_other_words_is_the_same_work(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    same = config(tmp_path / "run")
    assert same.model.intermediate_size is None
    spelled_out = config(tmp_path / "run", f"model.intermediate_size={4 * same.model.hidden_size}")
    with acquire_run_folder(spelled_out, "cpu-tiny") as folder:
        assert folder.resuming


def test_a_config_without_a_setting_is_of_another_work(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(re.sub(r"^  hidden_size: .*\n", "", file.read_text(), flags=re.MULTILINE))
    with pytest.raises(ConfigError, match=r"model\.hidden_size was 'absent', now "):
        acquire_run_folder(config(tmp_path / "run"), "cpu-tiny")


@pytest.mark.parametrize("text", ["\n", "- 1\n", "a: [\n"])
def test_a_damaged_config_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(ConfigError):
        acquire_run_folder(config(tmp_path / "run"), "cpu-tiny")


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    write_record(tmp_path / "run", make_record())
    with acquire_run_folder(config(tmp_path / "run"), "cpu-tiny") as again:
        assert again.existing_record == read_record(tmp_path / "run")


def test_records_of_attempts_that_failed_are_kept(tmp_path: Path) -> None:
    for _ in range(2):
        start_run(tmp_path / "run")
        write_record(tmp_path / "run", make_record(status="interrupted"))
    with acquire_run_folder(config(tmp_path / "run"), "cpu-tiny") as folder:
        assert folder.resuming
    assert sorted(path.name for path in (tmp_path / "run").glob("record*")) == ["record-1.json", "record-2.json"]


def test_without_resume_an_existing_run_is_an_error(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="was interrupted"):
        acquire_run_folder(load(layered_settings(TINY, [f"out={tmp_path / 'run'}"])), "cpu-tiny")


def test_attempts_include_every_interruption(tmp_path: Path) -> None:
    assert read_attempts(tmp_path) == []
    begin_attempt(tmp_path, from_step=0, layout=Layout(data=2), host="a")
    attempts = begin_attempt(tmp_path, from_step=4, layout=Layout(data=2), host="b")
    found = end_attempt(tmp_path, attempts, status="ok", to_step=9)
    assert [(one["from_step"], one["to_step"], one["status"]) for one in found] == [(0, None, None), (4, 9, "ok")]
    assert found[0]["finished_at"] is None
    assert read_attempts(tmp_path) == json.loads((tmp_path / "attempts.json").read_text())["attempts"] == found


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    assert checkpoint_steps(tmp_path) == []
    for name in ("step-00000004", "step-00000012", ".partial-00000016", ".removed-step-00000002", "step-x", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint_steps(tmp_path) == [4, 12]
