"""Error messages of several processes of one host: one process reports what all have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import __main__ as door
from harness.commands import health, interleaved_runs, preflight
from harness.errors import ConfigError, EndedWithAll, Interrupted, RunFailed


def refused() -> None:
    with preflight.report_once_per_host():
        raise ConfigError("model.num_hidden_layers: found 0")


def test_the_first_one_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.time, "sleep", lambda seconds: pytest.fail("it has nobody to wait for"))
    for own in ("", "0"):
        monkeypatch.setenv("LOCAL_RANK", own)
        with pytest.raises(ConfigError, match="found 0"):
            refused()


@pytest.mark.parametrize("told_to_stop", [False, True])
def test_the_others_wait_for_it_and_say_nothing(told_to_stop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher stops all others when one has gone: were that one of these, nothing would have been said."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if told_to_stop:
            raise Interrupted(15)

    monkeypatch.setattr(preflight.time, "sleep", sleep)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(EndedWithAll) as ended:
        refused()
    assert ended.value.exit_code == 2
    assert waited == [preflight.REPORTER_GRACE_SECONDS]


@pytest.mark.parametrize(("own", "lines"), [("", 1), ("0", 1), ("1", 0)])
def test_of_the_interrupted_one_says_so(
    own: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: list[str]) -> int:
        raise Interrupted(15)

    monkeypatch.setenv("LOCAL_RANK", own)
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


def test_compare_makes_one_run_of_an_experiment_that_asks_for_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def run_process(command: list[str], output: Any) -> int:
        started.append(command)
        return 5

    monkeypatch.setattr(interleaved_runs, "run_process", run_process)
    settings = "experiment=iflytek/smoke backend.threads=1"
    with pytest.raises(RunFailed):
        interleaved_runs.run_side_by_side([settings, settings], 5, tmp_path / "out")
    [command] = started
    assert "repeats=1" in command
    with pytest.raises(ConfigError, match="sets repeats, which compare decides"):
        interleaved_runs.run_side_by_side([settings, f"{settings} repeats=2"], 5, tmp_path / "other")
