"""The search for the fastest micro-batch size, with runs that are told beforehand how they end."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import log
from harness.commands.autotune import list_candidates, run_autotune
from harness.composition import load
from harness.config import Config
from harness.errors import BackendUnavailable, ConfigError, Interrupted, RecordError, RunFailed
from harness.records.load import record_files
from harness.records.run_folder import create_run_folder
from harness.text import layered_settings
from tests.conftest import TINY, Harness

Runs = Callable[[list[str], Path], int]


class Scripted:
    """Runs whose speed depends on the micro-batch size; 0 is out of memory."""

    def __init__(self, speeds: dict[int, float | list[float]], *, killed: bool = False, emulated: bool = False,
                 others: float = 0.0) -> None:  # fmt: skip
        self.speeds, self.killed, self.emulated, self.others = speeds, killed, emulated, others
        self.ran: list[int] = []
        self.argv: list[list[str]] = []

    def __call__(self, argv: list[str], folder: Path) -> int:
        size = int(next(word for word in argv if word.startswith("workload.micro_batch_size=")).split("=")[1])
        speeds = self.speeds[size]
        speed = speeds[self.ran.count(size)] if isinstance(speeds, list) else speeds
        self.ran.append(size)
        self.argv.append(argv)
        if speed < 0:
            return 3
        if speed == 0 and self.killed:
            return 137
        folder.mkdir(parents=True)
        record: dict[str, Any] = {
            "status": "ok" if speed else "oom",
            "device": {"emulated": self.emulated},
            "timing": {"tokens_per_second": speed or None},
            "memory": {"peak_allocated_bytes": size << 30},
            "contention": {"other_processes_cpu_fraction": self.others},
        }
        (folder / "record.json").write_text(json.dumps(record))
        return 0 if speed else 5


def search(folder: Path, runs: Runs, *argv: str) -> tuple[int, Config]:
    repeats = [] if any(word.startswith("repeats=") for word in argv) else ["repeats=2"]
    own = ["experiment=autotune", "workload.global_batch_size=8", f"out={folder / 'a'}", *repeats, *argv]
    overrides = layered_settings(TINY, own)
    config = load(overrides)
    return run_autotune(config, overrides, runs), config


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "a" / "autotune.json").read_text())


def test_candidates_divide_the_batch_and_lie_apart() -> None:
    assert [each.micro_batch_size for each in list_candidates(8)] == [1, 2, 4, 8]
    candidates = [(each.micro_batch_size, each.accumulation) for each in list_candidates(6)]
    assert candidates == [(1, 6), (2, 3), (3, 2), (6, 1)]
    sizes = [each.micro_batch_size for each in list_candidates(480)]
    assert sizes == [1, 2, 3, 5, 8, 12, 20, 30, 48, 80, 120, 240, 480]


def test_the_fastest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Scripted({1: 100.0, 2: 300.0, 4: 250.0, 8: 200.0})
    assert search(tmp_path, runs, "seed=3")[0] == 0
    assert runs.ran == [1, 2, 4, 8, 8, 4, 2, 1]
    assert result(tmp_path)["fastest"] == 2
    assert result(tmp_path)["not_told_apart"] == []
    said = capsys.readouterr().out
    last = said.splitlines()[-1]
    assert last.startswith("fastest: python -m harness ")
    assert last.endswith("workload.micro_batch_size=2")
    assert "seed=3" in last
    for own in ("autotune", "out=", "experiment"):
        assert own not in last


def test_words_that_change_the_work_stay_in_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["experiment=smoke", "autotune=true", "repeats=2", f"out={tmp_path / 'a'}", "workload.name='a b'"]
    config = load(overrides)
    run_autotune(config, overrides, Scripted({1: 1.0, 2: 3.0, 4: 2.0, 8: 1.0}))
    assert shlex.split(capsys.readouterr().out.splitlines()[-1]) == [
        "fastest:", "python", "-m", "harness", "experiment=smoke", "workload.name='a b'", "workload.micro_batch_size=2",
    ]  # fmt: skip


def test_every_job_is_the_users_words_but_for_the_size(tmp_path: Path) -> None:
    runs = Scripted({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0})
    search(tmp_path, runs, "workload.micro_batch_size=4", "seed=3")
    for argv in runs.argv:
        job = load(argv)
        assert not job.autotune
        assert (job.seed, job.workload.global_batch_size) == (3, 8)
        assert sum(word.startswith("workload.micro_batch_size") for word in argv) == 1


def test_the_size_that_is_set_need_not_fit(tmp_path: Path) -> None:
    runs = Scripted({1: 1.0, 2: 3.0, 4: 2.0, 8: 1.0})
    assert search(tmp_path, runs, "workload.micro_batch_size=12")[0] == 0
    assert result(tmp_path)["fastest"] == 2


def test_repeats_take_turns_and_the_median_counts(tmp_path: Path) -> None:
    runs = Scripted({1: [1.0, 90.0, 2.0], 2: [3.0, 3.0, 3.0], 4: [1.0, 1.0, 1.0], 8: [1.0, 1.0, 1.0]})
    search(tmp_path, runs, "repeats=3")
    assert runs.ran == [1, 2, 4, 8, 8, 4, 2, 1, 1, 2, 4, 8]
    assert result(tmp_path)["fastest"] == 2


@pytest.mark.parametrize("killed", [False, True])
def test_what_does_not_fit_ends_the_search_upwards(
    tmp_path: Path, killed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Scripted({1: 100.0, 2: 110.0, 4: 0.0, 8: 1.0}, killed=killed)
    assert search(tmp_path, runs, "repeats=2")[0] == 0
    assert runs.ran == [1, 2, 4, 2, 1]
    assert result(tmp_path)["fastest"] == 2
    assert capsys.readouterr().out.count("out of memory") == 2


def test_nothing_fits(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="not even a micro-batch size of 1 fits"):
        search(tmp_path, Scripted({1: 0.0}))


def test_differences_within_the_noise_are_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(tmp_path, Scripted({1: 100.0, 2: 98.0, 4: 90.0, 8: 99.0}))
    said = capsys.readouterr().out
    line = "inconclusive between 1 and 2, 8: their runs overlap, or are within 5 %; try repeats=5 on an idle host"
    assert line in " ".join(said.split())
    assert said.splitlines()[-1].startswith("highest median: python -m harness ")


@pytest.mark.parametrize(
    ("speeds", "close"),
    [
        # A busy host: speeds of 1 / 0.49 / 0.53 / 0.66 once, and the other way around the next time.
        ({1: [100.0, 40.0], 2: [49.0, 99.0], 4: [53.0, 80.0], 8: [66.0, 95.0]}, {1, 2, 4, 8}),
        ({1: [100.0, 99.0], 2: [49.0, 50.0], 4: [53.0, 54.0], 8: [66.0, 98.0]}, {1, 8}),
        ({1: [100.0, 60.0], 2: [61.0, 62.0], 4: [10.0, 11.0], 8: [10.0, 20.0]}, {1, 2}),
    ],
)
def test_runs_that_overlap_are_not_told_apart(
    speeds: dict[int, float | list[float]], close: set[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(tmp_path, Scripted(speeds))
    found = result(tmp_path)
    assert {found["fastest"], *found["not_told_apart"]} == close
    said = " ".join(capsys.readouterr().out.split())
    assert f"inconclusive between {found['fastest']} and" in said
    assert "fastest: python" not in said
    first = speeds[1]
    assert isinstance(first, list)
    assert f"{min(first):,.0f} to {max(first):,.0f}" in said


def test_one_run_each_tells_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(tmp_path, Scripted({1: 100.0, 2: 49.0, 4: 53.0, 8: 66.0}), "repeats=1")
    assert "inconclusive between 1 and 2, 4, 8: one run cannot estimate" in " ".join(capsys.readouterr().out.split())


def test_runs_beside_other_processes_are_cautioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Scripted({1: 100.0, 2: 49.0, 4: 53.0, 8: 66.0}, others=0.78)
    search(tmp_path, runs)
    assert "caution: other processes used up to 78% of the CPU cores" in capsys.readouterr().out


def test_the_experiment_repeats_by_itself() -> None:
    assert load(["experiment=autotune"]).repeats == 3


def test_another_failure_is_the_searchs_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up([], {})
    runs = Scripted({1: 100.0, 2: -1.0})
    assert search(tmp_path, runs)[0] == 3
    assert runs.ran == [1, 2]
    said = capsys.readouterr()
    assert "micro-batch size of 2 ended with exit code 3; the rest is not run" in said.err
    assert "100 tokens/s" in said.out, "what was found is shown"
    assert said.out.count("not run") == 3


def test_interrupted_it_shows_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: list[str], folder: Path) -> int:
        if runs.ran:
            raise Interrupted(15)
        return runs(argv, folder)

    runs = Scripted({1: 100.0})
    with pytest.raises(Interrupted):
        search(tmp_path, interrupted)
    assert "100 tokens/s" in capsys.readouterr().out


def test_a_search_is_not_resumed() -> None:
    with pytest.raises(ConfigError, match="resume: a search"):
        load(layered_settings(TINY, ["experiment=autotune", "resume=auto", "checkpoint.every=2", "out=a"]))


def test_a_search_is_no_side_of_a_comparison(tmp_path: Path) -> None:
    search(tmp_path, Scripted({1: 1.0, 2: 3.0, 4: 2.0, 8: 1.0}))
    with pytest.raises(RecordError, match="holds a search over micro-batch sizes"):
        record_files(tmp_path / "a")


@pytest.mark.slow
def test_for_real(harness: Harness, tmp_path: Path) -> None:
    done = harness(*TINY, "experiment=autotune", "workload.global_batch_size=2", "workload.steps=4",
                   "workload.timing_warmup_steps=2", "profile=true", "out=a")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"micro-batch-1", "micro-batch-2", "autotune.json"}
    assert result(tmp_path)["fastest"] in {1, 2}
    for size in (1, 2):
        record = json.loads((tmp_path / "a" / f"micro-batch-{size}" / "1" / "record.json").read_text())
        assert record["config"]["workload"]["micro_batch_size"] == size
        assert record["profile"] is None, "a search looks at speeds alone"


def test_an_emulated_device_has_no_fastest(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="emulation"):
        search(tmp_path, Scripted({1: 100.0}, emulated=True))


def test_a_folder_is_searched_once(tmp_path: Path) -> None:
    runs = Scripted({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0})
    search(tmp_path, runs)
    with pytest.raises(ConfigError, match="holds a search over micro-batch sizes"):
        create_run_folder(str(tmp_path / "a"), "run")
    with pytest.raises(ConfigError, match="holds a search over micro-batch sizes"):
        search(tmp_path, runs)


def test_several_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"autotune: .*parallel=single"):
        load(layered_settings(TINY, ["experiment=autotune", "parallel=ddp"]))
