"""Error messages of several processes of one host: one process reports what all have in common."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import __main__ as door
from harness.commands import health, interleaved_runs, kept_runs, preflight, train
from harness.errors import ConfigError, EndedWithAll, Interrupted, RunFailed
from harness.training import run
from tests.records import make_record
from tests.tiny import TINY


def refused() -> None:
    with preflight.report_once_per_host():
        raise ConfigError("model.num_hidden_layers: found 0")


def test_the_first_one_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.time, "sleep", lambda seconds: pytest.fail("it has nobody to wait for"))
    for own in ("", "0"):
        monkeypatch.setenv("LOCAL_RANK", own)
        with pytest.raises(ConfigError, match="found 0"):
            refused()


SECOND_OF_TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                 "MASTER_PORT": "29500"}  # fmt: skip


@pytest.mark.parametrize("stopped", [False, True])
def test_the_others_wait_for_it_and_report_what_nobody_stops_them_for(
    stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher stops all others when one has gone: were that one of these, nothing would have been said."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if stopped:
            raise Interrupted(15)

    monkeypatch.setattr(preflight.time, "sleep", sleep)
    for name, value in SECOND_OF_TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EndedWithAll if stopped else ConfigError) as ended:
        refused()
    assert ended.value.exit_code == 2
    assert waited == [preflight.REPORTER_GRACE_SECONDS]


def test_an_error_is_reported_under_any_launcher_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """672 combinations, of which two can have another process that reports it; there this one waits for its end."""
    values = {
        "LOCAL_RANK": (None, "", "0", "1", "x", "-1", "7"),
        "RANK": (None, "0", "1", "x"),
        "WORLD_SIZE": (None, "1", "2", "x"),
        "LOCAL_WORLD_SIZE": (None, "2"),
        "MASTER_PORT": (None, "29500", "http"),
        "MASTER_ADDR": ("localhost",),
    }
    waited: list[tuple[str | None, ...]] = []
    for combination in itertools.product(*values.values()):
        for name, value in zip(values, combination, strict=True):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        monkeypatch.setattr(preflight.time, "sleep", lambda _, own=combination: waited.append(own))
        with pytest.raises(ConfigError, match="found 0"):
            refused()
    assert waited == [("1", "0", "2", "2", "29500", "localhost"), ("1", "1", "2", "2", "29500", "localhost")]


@pytest.mark.parametrize("left_out", SECOND_OF_TWO)
def test_left_over_variables_silence_nobody(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.time, "sleep", lambda seconds: pytest.fail("it has nobody to wait for"))
    for name, value in SECOND_OF_TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(left_out)
    with pytest.raises(ConfigError, match="found 0"):
        refused()


@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        ({}, 1),
        ({"LOCAL_RANK": "1"}, 1),
        (SECOND_OF_TWO, 1),
        ({**SECOND_OF_TWO, "TORCHELASTIC_RUN_ID": "none"}, 0),
        ({**SECOND_OF_TWO, "TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0"}, 1),
    ],
)
def test_of_those_that_torchrun_interrupts_one_says_so(
    variables: dict[str, str], lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: list[str]) -> int:
        raise Interrupted(15)

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(health, "main", interrupted)
    assert door.main(["health"]) == 143
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_compare_names_the_settings_in_which_the_sides_differ(tmp_path: Path) -> None:
    other = "experiment=smoke seed=2 workload.learning_rate=1e-4 backend.threads=1"
    with pytest.raises(ConfigError) as error:
        interleaved_runs.run_side_by_side(["experiment=smoke", other], 5, tmp_path / "out")
    assert str(error.value) == (
        f"--run '{other}' is not the same work as --run 'experiment=smoke': workload.learning_rate is 0.0001, not "
        "0.002, seed is 2, not 1; change only settings outside the work, such as backend"
    )
    assert not (tmp_path / "out").exists()
    # At a value that changes nothing a setting is no part of the work's identity, and still has that value.
    with pytest.raises(ConfigError, match=r"model\.qk_norm is False, not True; change only"):
        interleaved_runs.run_side_by_side(
            ["experiment=smoke model.qk_norm=true", "experiment=smoke"], 5, tmp_path / "o"
        )


def test_a_second_comparison_in_a_folder_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the first one's running run for an interrupted one, and move its files away."""
    settings = ["experiment=smoke backend.threads=1"] * 2
    started = []

    def run_process(command: list[str], output: Any) -> int:
        started.append(command)
        with pytest.raises(ConfigError, match=r"--out: another command runs into .*out; wait until it"):
            interleaved_runs.run_side_by_side(settings, 5, tmp_path / "out")
        return 5

    monkeypatch.setattr(kept_runs, "run_process", run_process)
    for _ in range(2):
        with pytest.raises(RunFailed):
            interleaved_runs.run_side_by_side(settings, 5, tmp_path / "out")
    assert len(started) == 2
    assert not (tmp_path / "out" / ".lock").exists()


def test_compare_makes_one_run_of_an_experiment_that_asks_for_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def run_process(command: list[str], output: Any) -> int:
        started.append(command)
        return 5

    monkeypatch.setattr(kept_runs, "run_process", run_process)
    settings = "experiment=iflytek/smoke backend.threads=1"
    with pytest.raises(RunFailed):
        interleaved_runs.run_side_by_side([settings, settings], 5, tmp_path / "out")
    [command] = started
    assert "repeats=1" in command
    with pytest.raises(ConfigError, match="sets repeats, which compare decides"):
        interleaved_runs.run_side_by_side([settings, f"{settings} repeats=2"], 5, tmp_path / "other")


class TestReport:
    """The end of a run: its summary, its folder, and how to go on."""

    @pytest.fixture
    def end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
        def end(status: str, *argv: str, failure: RunFailed | None = None, signal: int | None = None) -> int:
            record = make_record(status=status)
            record["error"] = None if failure is None else str(failure)
            interrupted = None if signal is None else Interrupted(signal)
            result = run.RunResult(tmp_path / "run", record, failure, interrupted)
            monkeypatch.setattr(train, "ready_backend", lambda config, world: None)
            monkeypatch.setattr(run, "run", lambda config, backend, world: result)
            return door.main([*TINY, *argv])

        return end

    def test_a_failed_run_shows_its_summary_and_names_its_folder(
        self, end: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert end("oom", failure=RunFailed("out of memory", "oom")) == 5
        out, errors = capsys.readouterr()
        assert out.splitlines()[0].startswith("run ")
        assert "oom: out of memory" in out
        assert errors == f"error: out of memory; the record is in {tmp_path / 'run'}\n"

    def test_json_lines_carry_run_and_status(
        self, end: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert end("oom", "log=json", failure=RunFailed("out of memory", "oom")) == 5
        line = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert (line["run"], line["status"], line["exit_code"]) == (str(tmp_path / "run"), "oom", 5)

    def test_a_failure_after_a_good_run_is_not_its_own(
        self, end: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert end("ok", failure=RunFailed("profile: disk full")) == 5
        assert capsys.readouterr().err == "error: profile: disk full\n"

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            ((), "run the same command again with out=RUN resume=auto to go on from there"),
            (("out=x",), "run the same command again with resume=auto to go on from there"),
            (("out=x", "checkpoint.every=10", "resume=auto"), "run the same command again to go on from there"),
        ],
    )
    def test_an_interrupted_run_says_how_to_go_on(
        self, argv: tuple[str, ...], said: str, end: Callable[..., int], tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        (tmp_path / "run" / "checkpoints" / "step-00000020").mkdir(parents=True)
        assert end("interrupted", *argv, signal=15) == 143
        errors = capsys.readouterr().err
        assert "the checkpoint of step 20 is in" in errors
        assert said.replace("RUN", str(tmp_path / "run")) in errors

    def test_one_without_checkpoints_says_so(self, end: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
        assert end("interrupted", signal=2) == 130
        assert "without checkpoints (checkpoint.every) the run cannot be resumed" in capsys.readouterr().err
