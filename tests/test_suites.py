"""Suites: their files, the runs that are made of them, and the verdict on two."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

from harness.__main__ import main
from harness.analysis.claim_verdict import judge_suite
from harness.analysis.claims import load_claims
from harness.analysis.flops import product_intensity
from harness.analysis.suite_verdict import (
    Mean,
    Row,
    SuiteComparison,
    compare_suites,
    holds,
    judge_rows,
    mean_ratio,
    to_dict,
)
from harness.analysis.unit import Unit
from harness.analysis.verdict import compare
from harness.commands import suite as command
from harness.commands.kept_runs import EndedRun
from harness.composition import load
from harness.config import to_dict as config_to_dict
from harness.errors import ConfigError, ExitCode, RecordError
from harness.records.folder_lock import locked
from harness.records.record import write_record
from harness.records.suite_folder import (
    FAILED,
    OUT_OF_MEMORY,
    REFUSED,
    UNAVAILABLE,
    NotRun,
    SuiteFolder,
    read_suite_folder,
)
from harness.report.suite_content import details, suite_rows
from harness.suites import Suite, Workload, find_suite, read_suite, suite_names
from tests.conftest import PROJECT
from tests.records import ASCEND, make_record, make_records, make_side

FILE = """\
description: two small ones
workloads:
  - name: one
    reason: the first
    settings: experiment=smoke model.bias=false
  - name: two
    reason: the second
    settings: experiment=smoke 'model.name=a b'
    weight: 3
"""
SUITE = Suite("mine", "two small ones", (
    Workload("one", ("experiment=smoke",), "the first"), Workload("two", ("experiment=smoke", "seed=2"), "the second"),
))  # fmt: skip


class TestFiles:
    def test_settings_are_split_as_a_shell_does(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text(FILE)
        found = find_suite(str(tmp_path / "mine.yaml"))
        assert (found.name, found.description) == ("mine", "two small ones")
        assert found.workloads[1] == Workload("two", ("experiment=smoke", "model.name=a b"), "the second", 3.0)

    @pytest.mark.parametrize("name", suite_names())
    def test_every_workload_of_the_shipped_ones_can_be_composed(self, name: str) -> None:
        found = find_suite(name)
        assert len(found.workloads) > 1
        for each in found.workloads:
            load(list(each.settings))

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            ("name: one", "name: two", "workloads: found 2 of the name two, expected names of their own"),
            ("name: one", "name: One/..", "workloads, number 1: name: found 'One/..', expected lower-case letters"),
            ("name: one", "name: interrupted", "workloads, number 1: name: found interrupted, which is a name of the"),
            ("weight: 3", "weight: -1", "workloads, number 2: weight: found -1, expected a number above 0"),
            ("weight: 3", "wieght: 3", "workloads, number 2: wieght: unknown key, expected one of: name, settings"),
            ("    reason: the first\n", "", "workloads, number 1: reason is missing"),
            ("settings: experiment=smoke 'model", "settings: experiment=smoke model", None),
            ("'model.name=a b'", "'model", "workloads, number 2: settings: No closing quotation"),
            ("description: two small ones\n", "", "the file: description is missing"),
            ("workloads:", "workloads: 3\nmore:", "more: unknown key"),
            ("- name: one", "- one", "mapping values are not allowed here"),
        ],
    )  # fmt: skip
    def test_a_wrong_file_is_one_line(self, before: str, after: str, message: str | None, tmp_path: Path) -> None:
        assert FILE.count(before) == 1
        file = tmp_path / "mine.yaml"
        file.write_text(FILE.replace(before, after))
        if message is None:
            message = "No closing quotation"
        with pytest.raises(ConfigError) as caught:
            read_suite(file)
        assert str(caught.value).startswith(f"{file}: cannot be read as a suite: ")
        assert message in str(caught.value)

    def test_an_unknown_name_has_a_hint(self) -> None:
        with pytest.raises(ConfigError, match=r"suite: found 'smok', expected one of: .*smoke.*; did you mean smoke\?"):
            find_suite("smok")
        with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read as a suite: No such file"):
            find_suite("nowhere.yaml")

    def test_card_spans_from_bound_by_memory_to_bound_by_compute(self) -> None:
        found = []
        for each in find_suite("card").workloads:
            config = load(list(each.settings))
            shape = config.workload
            found.append(product_intensity(config_to_dict(config)["model"], shape.seq_len, shape.micro_batch_size, 2))
        # An A100 80GB computes 156 FLOP in bf16 for each byte that it reads: 312 TFLOP/s over 2.0 TB/s.
        assert min(found) < 156
        assert max(found) > 1000
        assert len([each for each in found if 156 < each < 1000]) >= 4

    def test_texts_do_not_change_what_is_compared_and_settings_do(self, tmp_path: Path) -> None:
        digests = []
        for text in (FILE, FILE.replace("the first", "why not"), FILE.replace("bias=false", "bias=true"),
                     FILE.replace("weight: 3", "weight: 2")):  # fmt: skip
            (tmp_path / "mine.yaml").write_text(text)
            digests.append(read_suite(tmp_path / "mine.yaml").digest)
        assert digests[0] == digests[1]
        assert len(set(digests)) == 3


class Runs:
    """Stands for the processes of runs: writes records, or ends as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[tuple[str, list[str]]] = []
        self.ends: dict[str, EndedRun | BaseException] = {}
        self.changes: dict[str, Any] = {}
        monkeypatch.setattr(command, "run_into", self)

    def __call__(self, target: Path, overrides: Sequence[str], launcher: Sequence[str] = ()) -> EndedRun:
        name = f"{target.parent.name}/{target.name}"
        self.jobs.append((name, list(overrides)))
        ended = self.ends.get(name, EndedRun(0, ""))
        if isinstance(ended, BaseException):
            raise ended
        target.mkdir(parents=True, exist_ok=True)
        if ended.exit_code == ExitCode.OK:
            if target.parent.name == command.AUTOTUNE_FOLDER:
                (target / "autotune.json").write_text('{"complete": true}')
            else:
                write_record(target, make_record(process=len(self.jobs), **self.changes))
        return ended


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(FILE)
    return Runs(monkeypatch)


COMMAND = ["mine.yaml", "backend.threads=1", "out=runs", "repeats=2"]


class TestRuns:
    def test_each_workload_runs_as_often_as_asked_in_turn(self, runs: Runs) -> None:
        assert command.main(COMMAND) == ExitCode.OK
        names = [name for name, _ in runs.jobs]
        assert sorted(names) == ["one/1", "one/2", "two/1", "two/2"]
        assert {name.split("/")[0] for name in names[:2]} == {"one", "two"}
        assert dict(runs.jobs)["two/1"] == ["experiment=smoke", "model.name=a b", "backend.threads=1", "repeats=1"]
        found = read_suite_folder(Path("runs"))
        assert found.complete
        assert (found.not_run, found.repeats, found.settings) == ({}, 2, ("backend.threads=1",))

    @pytest.mark.parametrize("emulated", [False, True])
    def test_no_speed_of_an_emulated_device_is_shown(
        self, emulated: bool, runs: Runs, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        runs.changes = {"device": {"emulated": emulated}}
        assert command.main(COMMAND) == ExitCode.OK
        shown = capsys.readouterr().out + caplog.text
        assert ("tokens/s" in shown) == (not emulated)
        assert (" ms" in shown) == (not emulated)

    def test_an_interrupted_command_goes_on_with_the_same_order(self, runs: Runs) -> None:
        runs.ends["two/1"] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            command.main(COMMAND)
        begun = read_suite_folder(Path("runs"))
        assert not begun.complete
        done = [name for name, _ in runs.jobs if name != "two/1"]
        runs.ends.clear()
        assert command.main(COMMAND) == ExitCode.OK
        assert read_suite_folder(Path("runs")).order == begun.order
        assert sorted([*done, *(name for name, _ in runs.jobs[len(done) + 1 :])]) == [
            "one/1",
            "one/2",
            "two/1",
            "two/2",
        ]
        count = len(runs.jobs)
        assert command.main(COMMAND) == ExitCode.OK
        assert len(runs.jobs) == count, "a complete suite has nothing left to run"

    @pytest.mark.parametrize(
        ("ended", "status", "code"),
        [
            (EndedRun(2, "error: model.bias: no"), REFUSED, ExitCode.OK),
            (EndedRun(3, "error: no bf16"), UNAVAILABLE, ExitCode.OK),
            (EndedRun(137, "no message"), OUT_OF_MEMORY, ExitCode.OK),
            (EndedRun(5, "error: a fault"), FAILED, ExitCode.RUN_FAILED),
            (EndedRun(139, "no message"), FAILED, ExitCode.RUN_FAILED),
        ],
    )
    def test_a_workload_that_cannot_run_is_an_entry(
        self, ended: EndedRun, status: str, code: int, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs.ends |= {"one/1": ended}
        assert command.main(COMMAND) == code
        assert sorted(name for name, _ in runs.jobs) == ["one/1", "two/1", "two/2"]
        found = read_suite_folder(Path("runs")).not_run
        assert found.keys() == {"one"}
        assert found["one"].status == status
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{status}: " in shown
        # What failed may have been a whim; what is refused will be refused again.
        runs.ends.clear()
        before = len(runs.jobs)
        command.main(COMMAND)
        again = [name for name, _ in runs.jobs[before:]]
        assert sorted(again) == (["one/1", "one/2"] if status == FAILED else [])

    def test_a_run_that_ran_out_of_memory_says_so_in_its_record(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(target: Path, overrides: Sequence[str], launcher: Sequence[str]) -> EndedRun:
            target.mkdir(parents=True)
            oom = target.parent.name == "one"
            write_record(
                target, make_record(status="oom", error="no memory", finished_steps=1) if oom else make_record()
            )
            return EndedRun(5, "error: no memory") if oom else EndedRun(0, "")

        monkeypatch.setattr(command, "run_into", run)
        assert command.main(COMMAND) == ExitCode.OK
        assert read_suite_folder(Path("runs")).not_run == {"one": NotRun(OUT_OF_MEMORY, "no memory")}

    def test_a_workload_whose_settings_contradict_those_given_does_not_start(self, runs: Runs) -> None:
        text = FILE.replace("model.bias=false", "workload.global_batch_size=16 workload.micro_batch_size=16")
        Path("mine.yaml").write_text(text)
        assert command.main([*COMMAND, "workload.global_batch_size=8"]) == ExitCode.OK
        assert {name.split("/")[0] for name, _ in runs.jobs} == {"two"}
        assert read_suite_folder(Path("runs")).not_run["one"].status == REFUSED

    def test_a_wrong_setting_ends_the_command_before_anything_runs(self, runs: Runs) -> None:
        for words, message in (
            (["workload.stepz=5"], "workload.stepz"),
            (["repeats=0"], "repeats: found '0', expected a number of at least 1"),
            (["autotune=yes"], "autotune: found 'yes', expected true or false"),
        ):
            own = [word for word in COMMAND if word.split("=")[0] != words[0].split("=")[0]]
            with pytest.raises(ConfigError, match=message):
                command.main([*own, *words])
        assert not Path("runs").exists()
        assert runs.jobs == []

    def test_two_commands_do_not_run_one_suite(self, runs: Runs) -> None:
        runs.ends["one/1"] = runs.ends["two/1"] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            command.main(COMMAND)
        jobs = len(runs.jobs)
        runs.ends.clear()
        with locked(Path("runs"), "out"), pytest.raises(ConfigError, match="another command runs into runs; wait"):
            command.main(COMMAND)
        assert len(runs.jobs) == jobs
        assert command.main(COMMAND) == ExitCode.OK
        assert not (Path("runs") / ".lock").exists()

    def test_a_folder_is_of_one_command(self, runs: Runs) -> None:
        command.main(COMMAND)
        with pytest.raises(
            ConfigError, match=r"runs holds runs of another command: repeats was 2, now 3; choose anoth"
        ):
            command.main([*COMMAND[:-1], "repeats=3"])
        with pytest.raises(ConfigError, match=r"the settings was 'backend\.threads=1', now 'backend\.threads=2'"):
            command.main([word.replace("threads=1", "threads=2") for word in COMMAND])
        Path("mine.yaml").write_text(FILE.replace("weight: 3", "weight: 2"))
        with pytest.raises(ConfigError, match="the workloads of the suite was"):
            command.main(COMMAND)
        Path("other").mkdir()
        Path("other/precious").write_text("")
        with pytest.raises(ConfigError, match=r"out: other holds precious but no suite\.json; choose another out=DIR"):
            command.main([word.replace("out=runs", "out=other") for word in COMMAND])

    @pytest.mark.parametrize("damage", ["cut", "edit", "foreign"])
    def test_a_damaged_plan_is_not_used(self, damage: str, runs: Runs) -> None:
        command.main(COMMAND)
        file = Path("runs/suite.json")
        text = file.read_text()
        file.write_text(
            {"cut": text[:50], "edit": text.replace('"repeats": 2', '"repeats": 1'), "foreign": "[]"}[damage]
        )
        with pytest.raises(RecordError, match=r"runs/suite\.json: cannot be read as a suite: "):
            command.main(COMMAND)

    def test_the_fastest_size_is_searched_once_and_used(self, runs: Runs) -> None:
        Path("mine.yaml").write_text(FILE.replace("model.bias=false", "workload.micro_batch_size=4"))
        assert command.main([*COMMAND, "autotune=true"]) == ExitCode.OK
        jobs = dict(runs.jobs)
        assert sorted(jobs) == ["autotune/one", "autotune/two", "one/1", "one/2", "two/1", "two/2"]
        assert len(runs.jobs) == 6
        assert "autotune=true" in jobs["autotune/one"]
        assert "repeats=3" in jobs["autotune/one"]
        load(jobs["autotune/one"])
        assert jobs["one/2"] == ["experiment=smoke", "backend.threads=1", "autotuned=true",
                                 "autotune_dir=runs/autotune/one", "repeats=1"]  # fmt: skip

    def test_the_time_left_is_that_of_the_workload(self) -> None:
        seconds = {"short": [10.0, 20.0], "long": [300.0]}
        assert command.time_left(["short", "short"], seconds) == "about 30 s"
        assert command.time_left(["short", "long", "long"], seconds) == "about 10 min"
        assert command.time_left(["new"], {"one": [10.0], "two": [30.0]}) == "about 20 s"
        assert command.time_left(["long"] * 30, seconds) == "about 2.5 h"


class TestMean:
    def test_is_students_t_of_the_logarithms(self) -> None:
        found = mean_ratio([1.0, 1.1, 1.2, 0.9], [1, 1, 1, 1], 0.05)
        # By hand: logarithms 0, 0.09531, 0.18232, -0.10536; mean 0.04307, sd 0.12384, t(0.975, 3) = 3.18245.
        assert found.estimate == pytest.approx(math.exp(0.043068), rel=1e-5)
        assert found.spread == pytest.approx(0.123837, rel=1e-5)
        assert found.high == pytest.approx(math.exp(0.043068 + 3.182446 * 0.123837 / 2), rel=1e-5)
        assert found.low == pytest.approx(math.exp(0.043068 - 3.182446 * 0.123837 / 2), rel=1e-5)
        assert not found.equivalent
        assert not found.differs

    def test_weights_count_relative_to_each_other(self) -> None:
        one, two = mean_ratio([1.0, 2.0], [1, 3], 0.05), mean_ratio([1.0, 2.0], [10, 30], 0.05)
        assert one == two
        assert one.estimate == pytest.approx(2**0.75)

    def test_a_weighted_variance_is_without_bias(self) -> None:
        source, weights = np.random.default_rng(1), [1, 2, 3, 10]
        spreads = [
            mean_ratio(np.exp(source.normal(0, 0.1, 4)).tolist(), weights, 0.05).spread ** 2 for _ in range(4_000)
        ]
        assert np.mean(spreads) == pytest.approx(0.01, rel=0.06)

    def test_one_workload_is_no_sample(self) -> None:
        assert mean_ratio([0.5], [1], 0.05) == Mean(0.5, None, None, False, False, 0.0, 1)


def workload(name: str, weight: float = 1.0) -> Workload:
    return Workload(name, ("experiment=smoke",), "a reason", weight)


def rows_of(*seconds: float, weights: Sequence[float] | None = None) -> list[Row]:
    """Return rows whose other side takes these times a step, where the reference takes 0.25 s."""
    reference = make_side("one", make_records(5))
    found = []
    for number, each in enumerate(seconds):
        other = make_side("two", [make_record(on=ASCEND, process=10 + index, step_seconds=each) for index in range(5)])
        own = workload(f"w{number}", weights[number] if weights else 1.0)
        found.append(Row(own, compare([reference, other])))
    return found


def judged(rows: Sequence[Row], margin: float = 0.05) -> SuiteComparison:
    return judge_rows(SUITE, ("one", "two"), rows, margin)


class TestVerdict:
    @pytest.mark.parametrize("busy", [0.0, 0.5])
    def test_of_single_processes(self, busy: float) -> None:
        """A cause that moves the times of a single process may move those of all workloads alike."""
        rows = []
        for number in range(8):
            one = make_side("one", [make_record(process=2 * number, contention={"other_processes_cpu_fraction": busy})])
            rows.append(
                Row(workload(f"w{number}"), compare([one, make_side("two", [make_record(process=99 - number)])]))
            )
        found = judged(rows)
        assert holds(found, "not-slower") == (busy == 0.0)
        if busy:
            assert found.verdict == "inconclusive"
            assert "One process a side shows nothing with shared host: run 3 or more a side." in found.summary
            claimed = judge_suite(next(iter(load_claims().values())), found)
            assert (claimed.verdict, claimed.reason) == (
                "inconclusive", "one process a side shows nothing with shared host",
            )  # fmt: skip
        else:
            assert found.verdict.startswith("equivalent")
            assert "One process a side in 8 workloads: cannot estimate run-to-run variance." in found.summary

    def test_equivalent_in_each_workload(self) -> None:
        found = judged(rows_of(0.251, 0.249, 0.25))
        assert found.verdict == "equivalent"
        assert "3 of 3 lie within 5 %" in found.summary
        assert "(3 workloads taken as a sample)" in found.summary
        assert holds(found, "equivalent")
        assert holds(found, "not-slower")
        assert not holds(found, "faster")

    def test_equivalent_on_average_but_not_row_by_row(self) -> None:
        found = judged(rows_of(0.25, 0.249, 0.251, 0.25, 0.25, 0.25, 0.27, 0.235))
        assert found.verdict == "equivalent on average, but not row by row"
        assert "6 of 8 lie within 5 %; best w7 0.9" in found.summary
        assert "worst w6 1.0" in found.summary
        assert holds(found, "equivalent")

    def test_whoever_chooses_the_workload_chooses_the_winner(self) -> None:
        found = judged(rows_of(0.17, 0.35, 0.25, 0.2, 0.31))
        assert found.verdict == "inconclusive"
        assert not holds(found, "not-slower")

    def test_faster_in_each_and_faster_on_average(self) -> None:
        assert judged(rows_of(0.2, 0.19, 0.21)).verdict == "faster"
        found = judged(rows_of(0.15, 0.16, 0.24999, 0.155, 0.16, 0.15))
        assert found.verdict == "faster on average, but not row by row"
        assert holds(found, "faster")
        assert judged(rows_of(0.3, 0.31, 0.32)).verdict == "slower"

    def test_a_workload_that_a_side_could_not_run_is_in_the_sentence_and_shows_nothing(self) -> None:
        rows = [*rows_of(0.25, 0.251, 0.249), Row(workload("huge"), None, (("two", NotRun(OUT_OF_MEMORY, "no")),))]
        found = judged(rows)
        assert found.summary.endswith("'two' could not run 1 of 4: huge (out of memory).")
        assert found.verdict == "equivalent"
        assert not any(holds(found, each) for each in ("equivalent", "faster", "not-slower"))

    def test_a_failed_gate_stops_the_suite(self) -> None:
        other = make_side("two", [make_record(process=9, config={"workload": {"learning_rate": 1e-3}})])
        stopped = Row(workload("other"), compare([make_side("one", make_records(1)), other]))
        found = judged([*rows_of(0.25, 0.25), stopped])
        assert (found.verdict, found.mean) == ("not comparable", None)
        assert "Of 3 workloads: other: not comparable. No mean is stated" in found.summary
        assert any("learning_rate" in line for line in details(found))

    def test_emulated_devices_have_no_speed(self) -> None:
        emulated = [make_record(process=9, device={"emulated": True})]
        both = compare([make_side("one", make_records(1)), make_side("two", emulated)])
        found = judged([Row(workload("a"), both), Row(workload("b"), both)])
        assert found.verdict == "same computation"
        assert found.summary == (
            "'two' computes the same as 'one' in 2 of 2 workloads; a device is emulated: no speed is stated."
        )

    def test_cautions_and_what_a_unit_rests_on_are_in_the_sentence(self) -> None:
        busy: dict[str, Any] = {"contention": {"other_processes_cpu_fraction": 0.5}}
        reference = make_side("one", make_records(3))
        other = make_side("two", [make_record(process=10 + index, **busy) for index in range(3)])
        unit = Unit("cost", (2.0, 1.0), "2026-11-30")
        rows = [Row(workload(name), compare([reference, other], unit=unit)) for name in ("a", "b")]
        found = judge_rows(SUITE, ("one", "two"), rows, 0.05, unit)
        assert ". 1 and 1 devices, 2 and 1 a device-hour (2026-11-30)." in found.summary
        assert found.summary.endswith(" Caution: shared host.")
        assert to_dict(found)["workloads"][0]["cautions"] == ["shared host"]

    def test_weights_move_the_mean(self) -> None:
        equal, weighted = judged(rows_of(0.25, 0.5)), judged(rows_of(0.25, 0.5, weights=[1, 3]))
        assert equal.mean is not None
        assert weighted.mean is not None
        assert weighted.mean.estimate == pytest.approx(2**0.75, rel=0.01)
        assert equal.mean.estimate == pytest.approx(2**0.5, rel=0.01)

    def test_json_and_table_say_the_same(self) -> None:
        found = judged([*rows_of(0.3, 0.25), Row(workload("huge"), None, (("one", NotRun(REFUSED, "no")),))])
        content = json.loads(json.dumps(to_dict(found), allow_nan=False))
        jsonschema.validate(content, json.loads((PROJECT / "harness/schemas/suite_verdict.schema.json").read_text()))
        assert [each["name"] for each in content["workloads"]] == ["w0", "w1", "huge"]
        assert content["workloads"][2]["not_run"] == [{"side": "one", "status": "refused", "reason": "no"}]
        table = list(suite_rows(found))
        assert [cells[0] for cells in table] == ["w1", "w0", "huge", "geometric mean"]
        assert table[1][-1] == "outside the margin"


class TestComparison:
    def folder(self, path: Path, seconds: float, **changes: object) -> SuiteFolder:
        for number, each in enumerate(SUITE.workloads):
            for repeat in (1, 2):
                record = make_record(process=repeat + 10 * number + int(1000 * seconds), step_seconds=seconds)
                (path / each.name / str(repeat)).mkdir(parents=True)
                write_record(path / each.name / str(repeat), record)
        found = SuiteFolder(path, SUITE, (), 2, (0, 1, 1, 0), complete=True)
        for key, value in changes.items():
            setattr(found, key, value)
        found.save()
        return read_suite_folder(path)

    def test_reads_both_folders(self, tmp_path: Path) -> None:
        sides = [self.folder(tmp_path / "a", 0.25), self.folder(tmp_path / "b", 0.251)]
        found = compare_suites(sides, ("a", "b"), 0.05)
        assert [row.workload.name for row in found.rows] == ["one", "two"]
        assert found.mean is not None
        assert found.mean.estimate == pytest.approx(0.251 / 0.25, rel=0.01)

    def test_its_expectation_is_a_case_of_junit(self, tmp_path: Path) -> None:
        for name, seconds in (("a", 0.25), ("b", 0.3)):
            self.folder(tmp_path / name, seconds)
        file = tmp_path / "junit.xml"
        sides = [str(tmp_path / name) for name in ("a", "b")]
        assert main(["compare", *sides, "--expect", "not-slower", "--junit", str(file)]) == 1
        [case] = ElementTree.parse(file).getroot().iter("testcase")
        failure = case.find("failure")
        assert failure is not None
        assert "expected not-slower: not shown (slower)" in (failure.text or "")
        assert "one: " in (failure.text or "")

    def test_an_unfinished_suite_and_another_suite_are_refused(self, tmp_path: Path) -> None:
        whole = self.folder(tmp_path / "a", 0.25)
        with pytest.raises(RecordError, match=r"b: its runs are not complete; give the command that began them again"):
            compare_suites([whole, self.folder(tmp_path / "b", 0.25, complete=False)], ("a", "b"), 0.05)
        other = self.folder(tmp_path / "c", 0.25, suite=Suite("other", "another", SUITE.workloads[::-1]))
        with pytest.raises(RecordError, match="run the same suite, of the same version, on both sides"):
            compare_suites([whole, other], ("a", "c"), 0.05)
