"""The search for the fastest micro-batch size, with runs that are told beforehand how they end."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import log
from harness.analysis.search import micro_batch_sizes
from harness.backends import create
from harness.backends.host_checks import Problem
from harness.commands.autotune import run_autotune, track_options
from harness.composition import load
from harness.config import BackendConfig, Config
from harness.errors import BackendUnavailable, ConfigError, Interrupted, RecordError, RunFailed
from harness.records.files import seal
from harness.records.load import record_files
from harness.records.run_folder import create_run_folder
from harness.records.search import apply_search
from harness.text import layered_settings
from tests.conftest import Harness
from tests.tiny import TINY

Runs = Callable[[list[str], Path], int]


class ScriptedTrack:
    """Runs whose speed is the product of the speeds of their settings of the track; 0 fails."""

    def __init__(self, speeds: dict[str, float]) -> None:
        self.speeds = speeds
        self.argv: list[list[str]] = []

    def __call__(self, argv: list[str], folder: Path) -> int:
        config = load(argv)
        self.argv.append(argv)
        speed = 100.0
        for setting, factor in self.speeds.items():
            key, value = setting.split("=")
            if str(getattr(config.track, key)) == value:
                speed *= factor
        return Scripted({config.workload.micro_batch_size: speed or -1.0})(argv, folder)

    def asked(self) -> list[str]:
        """The setting of the track that each run was about, without repetitions."""
        words = [argv[-1] for argv in self.argv]
        return [word for word, before in zip(words, [None, *words], strict=False) if word != before]


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
            "device": {"emulated": self.emulated, "name": "A"},
            "timing": {"tokens_per_second": speed or None},
            "memory": {"peak_allocated_bytes": size << 30},
            "contention": {"other_processes_cpu_fraction": self.others},
            "backend": {"name": "cpu", "versions": {"torch": "2"}},
            "effective_settings": {"threads": 2},
        }
        (folder / "record.json").write_text(json.dumps(record))
        return 0 if speed else 5


def search(folder: Path, runs: Runs, *argv: str) -> tuple[int, Config]:
    repeats = [] if any(word.startswith("repeats=") for word in argv) else ["repeats=2"]
    own = ["experiment=autotune", "workload.global_batch_size=8", f"out={folder / 'a'}", *repeats, *argv]
    overrides = layered_settings(TINY, own)
    config = load(overrides)
    return run_autotune(config, create(config.backend), overrides, runs), config


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "a" / "autotune.json").read_text())


def fastest_size(folder: Path) -> int:
    return result(folder)["settings"]["workload.micro_batch_size"]


def not_told_apart(folder: Path) -> list[int]:
    return result(folder)["questions"][0]["not_told_apart"]


def test_sizes_divide_the_batch_and_lie_apart() -> None:
    assert micro_batch_sizes(8) == [1, 2, 4, 8]
    assert micro_batch_sizes(6) == [1, 2, 3, 6]
    assert micro_batch_sizes(480) == [1, 2, 3, 5, 8, 12, 20, 30, 48, 80, 120, 240, 480]


def test_the_fastest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Scripted({1: 100.0, 2: 300.0, 4: 250.0, 8: 200.0})
    assert search(tmp_path, runs, "seed=3")[0] == 0
    assert runs.ran == [1, 2, 4, 8, 8, 4, 2, 1]
    assert fastest_size(tmp_path) == 2
    assert not_told_apart(tmp_path) == []
    said = capsys.readouterr().out
    command, by_search = said.splitlines()[-2:]
    assert command.startswith("fastest: python -m harness ")
    assert command.endswith("workload.micro_batch_size=2")
    assert "seed=3" in command
    for own in ("autotune", "out=", "experiment"):
        assert own not in command
    assert by_search.startswith("the same by this search: python -m harness ")
    assert by_search.endswith(f"seed=3 autotuned=true autotune_dir={tmp_path / 'a'}")


def test_words_that_change_the_work_stay_in_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["experiment=smoke", "autotune=true", "repeats=2", f"out={tmp_path / 'a'}", "workload.name='a b'"]
    config = load(overrides)
    run_autotune(config, create(config.backend), overrides, Scripted({1: 1.0, 2: 3.0, 4: 2.0, 8: 1.0}))
    assert shlex.split(capsys.readouterr().out.splitlines()[-2]) == [
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
    assert fastest_size(tmp_path) == 2


def test_repeats_take_turns_and_the_median_counts(tmp_path: Path) -> None:
    runs = Scripted({1: [1.0, 90.0, 2.0], 2: [3.0, 3.0, 3.0], 4: [1.0, 1.0, 1.0], 8: [1.0, 1.0, 1.0]})
    search(tmp_path, runs, "repeats=3")
    assert runs.ran == [1, 2, 4, 8, 8, 4, 2, 1, 1, 2, 4, 8]
    assert fastest_size(tmp_path) == 2


@pytest.mark.parametrize("killed", [False, True])
def test_what_does_not_fit_ends_the_search_upwards(
    tmp_path: Path, killed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Scripted({1: 100.0, 2: 110.0, 4: 0.0, 8: 1.0}, killed=killed)
    assert search(tmp_path, runs, "repeats=2")[0] == 0
    assert runs.ran == [1, 2, 4, 2, 1]
    assert fastest_size(tmp_path) == 2
    assert capsys.readouterr().out.count("out of memory") == 2


def test_nothing_fits(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"no value of workload\.micro_batch_size lets a run fit"):
        search(tmp_path, Scripted({1: 0.0}))


def test_differences_within_the_noise_are_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(tmp_path, Scripted({1: 100.0, 2: 98.0, 4: 90.0, 8: 99.0}))
    said = capsys.readouterr().out
    line = "inconclusive between 1 and 2, 8: their runs overlap, or are within 5 %; try repeats=5 on an idle host"
    assert line in " ".join(said.split())
    assert said.splitlines()[-2].startswith("inconclusive: python -m harness ")


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
    assert {fastest_size(tmp_path), *not_told_apart(tmp_path)} == close
    said = " ".join(capsys.readouterr().out.split())
    assert f"inconclusive between {fastest_size(tmp_path)} and" in said
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
    assert "workload.micro_batch_size=2 ended with exit code 3; the rest is not run" in said.err
    assert "100 tokens/s" in said.out, "what was found is shown"
    assert [said.out.count(text) for text in ("exit code 3", "not run")] == [1, 2]


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
    with pytest.raises(RecordError, match="holds a search"):
        record_files(tmp_path / "a")


@pytest.mark.slow
def test_for_real(harness: Harness, tmp_path: Path) -> None:
    done = harness(*TINY, "experiment=autotune", "workload.global_batch_size=2", "workload.steps=4",
                   "workload.timing_warmup_steps=2", "profile=true", "out=a")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"micro-batch-1", "micro-batch-2", "autotune.json"}
    assert fastest_size(tmp_path) in {1, 2}
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
    with pytest.raises(ConfigError, match="holds a search"):
        create_run_folder(str(tmp_path / "a"), "run")
    with pytest.raises(ConfigError, match="holds a search"):
        search(tmp_path, runs)


ONE_SIZE = ("track=tuned", "workload.global_batch_size=1")
# With these, compile mode and AdamW alone are asked, which takes less time.
FEW = (*ONE_SIZE, "track.attention=blocked", "track.cross_entropy=chunked", "track.activation_memory_budget=0.95")


def test_each_question_has_the_answers_to_those_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = ScriptedTrack({"compile=blocks": 1.5, "attention=stock": 1.2, "adamw=fused": 1.01})
    assert search(tmp_path, runs, *ONE_SIZE)[0] == 0
    assert [each["key"] for each in result(tmp_path)["questions"]] == [
        "workload.micro_batch_size", "track.compile", "track.attention", "track.cross_entropy", "track.adamw",
        "track.activation_memory_budget",
    ]  # fmt: skip
    assert result(tmp_path)["settings"] == {
        "track.rotary": "stock",
        "workload.micro_batch_size": 1,
        "track.compile": "blocks",
        "track.attention": "stock",
        "track.cross_entropy": "chunked",
        "track.adamw": "fused",
        "track.activation_memory_budget": 1.0,
    }
    assert runs.argv[-1][-6:-1] == [
        "workload.micro_batch_size=1", "track.compile=blocks", "track.attention=stock",
        "track.cross_entropy=chunked", "track.adamw=fused",
    ]  # fmt: skip
    said = capsys.readouterr().out
    command = said.splitlines()[-2]
    # Only what differs from the backend's own choice.
    assert command.endswith("track=tuned workload.micro_batch_size=1 track.attention=stock")
    assert "inconclusive between fused and foreach" in said
    assert "keeping fused" in said


def test_the_default_stays_unless_another_one_is_clearly_faster(tmp_path: Path) -> None:
    search(tmp_path, ScriptedTrack({"compile=model": 1.04, "adamw=foreach": 1.06}), *FEW)
    assert result(tmp_path)["settings"]["track.compile"] == "blocks"
    assert result(tmp_path)["settings"]["track.adamw"] == "foreach"


def test_a_value_that_fails_is_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(tmp_path, ScriptedTrack({"compile=model": 0.0}), *FEW, "track.adamw=fused")[0] == 0
    assert result(tmp_path)["settings"]["track.compile"] == "blocks"
    assert capsys.readouterr().out.count("exit code 3") == 1


def test_a_default_that_fails_ends_the_search(tmp_path: Path) -> None:
    runs = ScriptedTrack({"cross_entropy=stock": 1.0, "attention=blocked": 0.0})
    assert search(tmp_path, runs, *ONE_SIZE)[0] == 3
    assert not result(tmp_path)["complete"]


def test_what_is_given_is_not_asked(tmp_path: Path) -> None:
    runs = ScriptedTrack({})
    search(tmp_path, runs, *ONE_SIZE, "track.compile=no", "track.adamw=fused")
    assert [each["key"] for each in result(tmp_path)["questions"]] == [
        "workload.micro_batch_size", "track.attention", "track.cross_entropy",
    ]  # fmt: skip
    assert all(load(argv).track.compile == "no" for argv in runs.argv)


def test_without_compiled_parts_no_budget_is_tried(tmp_path: Path) -> None:
    search(tmp_path, ScriptedTrack({"compile=no": 2.0}), *ONE_SIZE)
    assert result(tmp_path)["settings"]["track.compile"] == "no"
    assert "track.activation_memory_budget" not in result(tmp_path)["settings"]


@pytest.mark.parametrize(("activation", "asked"), [("swiglu", True), ("gelu", False)])
def test_kernels_that_the_model_does_not_use_are_not_tried(
    activation: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.backends.cpu.CpuBackend.kernels", lambda _: {"swiglu": {"fused": None}})
    runs = ScriptedTrack({"swiglu=fused": 2.0})
    few = ("track.compile=no", "track.adamw=fused", "track.attention=stock", "track.cross_entropy=stock")
    search(tmp_path, runs, *ONE_SIZE, *few, f"model.activation={activation}")
    assert (result(tmp_path)["settings"].get("track.swiglu") == "fused") is asked


def test_on_npu_a_model_without_these_operations_is_not_asked_for_them() -> None:
    npu = create(BackendConfig(name="npu"))
    asked = track_options(load(["model=gpt2-124m", "track=tuned"]), npu)
    assert asked == {
        "compile": ("no",), "attention": ("stock",), "cross_entropy": ("stock", "chunked"),
        "adamw": ("foreach", "fused"), "activation_memory_budget": (1.0, 0.95, 0.5),
    }  # fmt: skip
    assert track_options(load(["model=llama-30m", "track=tuned"]), npu)["rotary"] == ("stock", "fused")


# Of bf16 with several micro-batches, accumulation alone is asked.
BF16 = ("precision=bf16", "track=tuned", "track.attention=blocked", "track.cross_entropy=chunked", "track.adamw=fused",
        "track.activation_memory_budget=1.0")  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "size", "accumulation"),
    [
        (("track.compile=blocks",), 2, "fused"),
        # A single micro-batch adds nothing up.
        (("track.compile=blocks",), 8, "stock"),
        # Gradients of a compiled embedding are not sparse: fused accumulation is no choice.
        (("track.compile=model",), 2, None),
    ],
)
def test_the_default_is_that_of_the_answers_so_far(
    settings: tuple[str, ...], size: int, accumulation: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Scripted({each: 200.0 if each == size else 100.0 for each in (1, 2, 4, 8)})
    assert search(tmp_path, runs, *BF16, *settings)[0] == 0
    assert result(tmp_path)["complete"]
    assert result(tmp_path)["settings"].get("track.gradient_accumulation") == accumulation
    assert capsys.readouterr().out.splitlines()[-2].endswith(f"workload.micro_batch_size={size}")


@pytest.mark.parametrize("given", [(), ("track.compile=no",)])
def test_where_nothing_can_be_compiled_nothing_compiled_is_asked(
    given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.backends.cpu.CpuBackend.compile_problems", lambda _: [Problem("no g++", "install it")])
    runs = ScriptedTrack({})
    assert search(tmp_path, runs, *ONE_SIZE, *given)[0] == 0
    assert {load(argv).track.compile for argv in runs.argv} == {"no"}
    assert "track.activation_memory_budget" not in result(tmp_path)["settings"]
    # The command starts here too.
    assert "track.compile=no" in capsys.readouterr().out.splitlines()[-2].split()


def test_one_run_changes_no_setting_of_the_track(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = ScriptedTrack({"compile=no": 9.0})
    search(tmp_path, runs, *ONE_SIZE, "repeats=1")
    assert len(runs.argv) == 1
    assert "repeats=1 shows no run-to-run variance, so no setting of the track is changed" in caplog.text


def test_an_interrupted_search_keeps_its_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripted = ScriptedTrack({"compile=no": 2.0})

    def interrupted(argv: list[str], folder: Path) -> int:
        if argv[-1].startswith("track.cross_entropy"):
            raise Interrupted(15)
        return scripted(argv, folder)

    with pytest.raises(Interrupted):
        search(tmp_path, interrupted, *ONE_SIZE)
    written = result(tmp_path)
    assert not written["complete"]
    assert written["settings"] == {
        "track.rotary": "stock", "workload.micro_batch_size": 1, "track.compile": "no", "track.attention": "blocked",
    }  # fmt: skip
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("unfinished, inconclusive: python -m harness ")
    assert last.endswith("workload.micro_batch_size=1 track.compile=no")


RUN = {"backend": {"name": "cpu", "versions": {"torch": "2"}}, "device": {"name": "A"},
       "effective_settings": {"threads": 1}}  # fmt: skip


def autotuned_config(folder: Path, *argv: str) -> Config:
    own = ["workload.global_batch_size=8", "track=tuned", "autotuned=true", f"autotune_dir={folder}", *argv]
    return load(layered_settings([word for word in TINY if "micro_batch" not in word], own))


def autotuned(folder: Path, *argv: str, run: dict[str, Any] = RUN) -> Config:
    return apply_search(autotuned_config(folder, *argv), run)[0]


@pytest.fixture(scope="module")
def search_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search whose answers are a micro-batch size of 2 and eager execution."""

    def runs(argv: list[str], folder: Path) -> int:
        config = load(argv)
        size = config.workload.micro_batch_size
        faster = (size == 2) + (config.track.compile == "no")
        return Scripted({size: 100.0 * (1 + faster)})(argv, folder)

    folder = tmp_path_factory.mktemp("search")
    search(folder, runs, "track=tuned", "repeats=2")
    return folder


@pytest.fixture
def searched(search_of_the_module: Path, tmp_path: Path) -> Path:
    shutil.copytree(search_of_the_module, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("folder", ["", "a"])
def test_a_run_uses_the_answers(searched: Path, folder: str) -> None:
    config = autotuned(searched / folder)
    assert config.workload.micro_batch_size == 2
    assert config.track.compile == "no"
    assert config.track.attention == "blocked"


def test_the_record_names_the_search(searched: Path) -> None:
    file = searched / "a" / "autotune.json"
    _, found = apply_search(autotuned_config(searched), RUN)
    written = json.loads(file.read_text())
    assert found == {
        "path": str(file), "finished_at": written["finished_at"], "content_sha256": written["content_sha256"],
    }  # fmt: skip


def rewrite(file: Path, **changes: Any) -> None:
    written = {**json.loads(file.read_text()), **changes}
    del written["content_sha256"]
    file.write_text(json.dumps(seal(written)))


def test_the_newest_search_counts(searched: Path) -> None:
    """By its time, and not by the name of its folder."""
    shutil.copytree(searched / "a", searched / "Z")
    settings = {**result(searched)["settings"], "workload.micro_batch_size": 4}
    rewrite(searched / "a" / "autotune.json", settings=settings, finished_at="2099-01-01T00:00:00Z")
    assert autotuned(searched).workload.micro_batch_size == 4


@pytest.mark.parametrize("changes", [{"complete": False}, {"schema_version": 2}])
def test_unfinished_and_older_searches_are_passed_over(
    searched: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(searched / "a", searched / "b")
    rewrite(searched / "b" / "autotune.json", **changes, finished_at="2099-01-01T00:00:00Z")
    assert autotuned(searched).workload.micro_batch_size == 2
    assert "b/autotune.json: unfinished, or of another version" in caplog.text


@pytest.mark.parametrize(
    ("argv", "run", "differing"),
    [
        (["workload.seq_len=16"], RUN, "workload.seq_len 32 (here 16)"),
        (["precision=bf16"], RUN, "precision fp32 (here bf16)"),
        (["model.hidden_size=64"], RUN, "model.hidden_size 32 (here 64), model.intermediate_size 128 (here 256)"),
        (["track.compile=no"], RUN, "track.compile None (here no)"),
        (["track=portable"], RUN, "track.name tuned (here portable)"),
        ([], {**RUN, "device": {"name": "B"}}, "device A (here B)"),
        ([], {**RUN, "effective_settings": {"threads": 2}}, "threads 1 (here 2)"),
        ([], {**RUN, "backend": {"name": "cpu", "versions": {"torch": "3"}}}, "versions {'torch': '2'} (here "),
    ],
)
def test_a_search_of_other_work_or_device_is_refused(
    searched: Path, argv: list[str], run: dict[str, Any], differing: str
) -> None:
    with pytest.raises(ConfigError, match="the newest, a, has " + re.escape(differing)):
        autotuned(searched, *argv, run=run)


def test_labels_and_schedules_are_no_other_work(searched: Path) -> None:
    changes = ["model.name=x", "workload.steps=9", "workload.learning_rate=0.5", "seed=4"]
    assert autotuned(searched, *changes).workload.micro_batch_size == 2


def test_without_a_search_there_is_nothing_to_use(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="autotuned: found no search in "):
        autotuned(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"track.compile": "no"', '"track.compile": "model"'), "was changed after it was"),
        (lambda text: text[:-20], "cannot be read"),
        (lambda text: "[]", "not a search of this harness"),
        (lambda text: text.replace('"work": {', '"workload": {'), "was changed after it was written"),
    ],
)
def test_a_damaged_search_is_refused(searched: Path, change: Callable[[str], str], message: str) -> None:
    file = searched / "a" / "autotune.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(RecordError, match=message):
        autotuned(searched)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["workload.micro_batch_size=1"], "workload.micro_batch_size: autotuned=true sets it"),
        (["experiment=autotune"], "autotuned: found true, but a search"),
        (["parallel=ddp"], "autotuned: searches are of one device"),
    ],
)
def test_settings_that_contradict_the_use_of_a_search(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(layered_settings(["experiment=smoke", "autotuned=true"], argv))


@pytest.mark.slow
def test_search_and_use_for_real(harness: Harness, tmp_path: Path) -> None:
    work = [*TINY, "track=tuned", "track.compile=no", "track.adamw=fused", "workload.global_batch_size=2",
            "workload.steps=4", "workload.timing_warmup_steps=2", "autotune_dir=found"]  # fmt: skip
    work = [word for word in work if "micro_batch" not in word]
    done = harness(*work, "autotune=true", "repeats=2")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "found").glob("*/autotune.json")
    found = json.loads(file.read_text())
    # Answers that are not the defaults, whatever was fastest here.
    settings = {**found["settings"], "workload.micro_batch_size": 2, "track.attention": "stock"}
    rewrite(file, settings=settings)
    done = harness(*work, "autotuned=true", "out=run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["search"]["path"] == str(file.relative_to(tmp_path))
    assert record["config"]["workload"]["micro_batch_size"] == 2
    assert (record["effective_settings"]["attention"], record["effective_settings"]["compile"]) == ("stock", "no")
    assert record["effective_settings"]["cross_entropy"] == settings["track.cross_entropy"]


def test_several_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"autotune: .*parallel=single"):
        load(layered_settings(TINY, ["experiment=autotune", "parallel=ddp"]))
