"""The command `compare`: inputs, output, errors and exit codes, without torch."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness.__main__ import main
from harness.analysis import parity
from harness.analysis.parity import SPIKE_NEIGHBORS, medians_of_neighbors
from harness.commands import compare as compare_module
from harness.commands.interleaved_runs import balanced_order
from tests.records import make_record, make_records, write_runs


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    made = {"reference": make_records(3)}
    for name, step_seconds in (("same", 0.250), ("slow", 0.300), ("fast", 0.200)):
        made[name] = [make_record(process=50 + number, step_seconds=step_seconds) for number in range(3)]
    made["other-work"] = [make_record(process=70, config={"seed": 2})]
    made["oom"] = [make_record(process=80, status="oom", error="not enough memory", finished_steps=40)]
    return {name: write_runs(tmp_path / name, records) for name, records in made.items()}


def compare(folders: dict[str, Path], *argv: str) -> int:
    return main(["compare", *(str(folders.get(word, word)) for word in argv)])


class TestExitCodes:
    @pytest.mark.parametrize(
        ("argv", "code"),
        [
            (("reference", "same"), 0),
            (("reference", "slow"), 0),
            (("reference", "same", "--expect", "equivalent"), 0),
            (("reference", "slow", "--expect", "not-slower"), 1),
            (("reference", "fast", "--expect", "not-slower"), 0),
            (("reference", "slow", "--expect", "not-slower", "--margin", "0.5"), 0),
            (("reference", "other-work"), 4),
            (("reference", "oom"), 5),
            (("reference", "same", "other-work"), 4),
        ],
        ids=str,
    )
    def test_are_as_documented(
        self, argv: tuple[str, ...], code: int, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert compare(folders, *argv) == code
        assert capsys.readouterr().out

    @pytest.mark.parametrize(
        ("argv", "lines"),
        [
            (("reference", "slow", "--expect", "not-slower"), ["error: expected not-slower: not shown (slower)"]),
            (("reference", "same", "--expect", "faster"), ["error: expected faster: not shown (equivalent)"]),
            (("reference", "same", "--expect", "equivalent"), ["expected equivalent: shown (equivalent)"]),
            (("reference", "oom", "--expect", "not-slower"), ["error: expected not-slower: not shown (failed)"]),
            (
                ("reference", "fast", "slow", "--expect", "faster", "--format", "json",
                 "--label", "a", "--label", "b", "--label", "c"),
                ["expected faster of b: shown (faster)", "error: expected faster of c: not shown (slower)"],
            ),
        ],
        ids=str,
    )  # fmt: skip
    def test_an_expectation_is_answered_with_the_verdict(
        self, argv: tuple[str, ...], lines: list[str], folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        compare(folders, *argv)
        assert capsys.readouterr().err.splitlines() == lines

    def test_without_an_expectation_there_is_none(
        self, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        compare(folders, "reference", "slow")
        assert capsys.readouterr().err == ""


class TestRefusals:
    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            ((), "found 0 sides, expected a reference and one or more others"),
            (("reference",), "found 1 side, expected"),
            (("reference", "nowhere"), "nowhere: no such file or folder"),
            (("reference", "reference"), "the same record was given twice"),
            (("reference", "same", "--margin", "5"), "--margin: found 5, expected a fraction between 0 and 1"),
            (("reference", "same", "--margin", "nan"), "--margin: found nan"),
            (("reference", "same", "--margin", "wide"), "invalid float value: 'wide'"),
            (("reference", "same", "--expect", "better"), "invalid choice: 'better'"),
            (("reference", "same", "--label", "one"), "found 1 --label for 2 sides"),
            (("reference", "same", "--tabel"), "unrecognized arguments: --tabel"),
            (("reference", "same", "--run", "backend=cpu"), "found both --run and the path"),
            (("--run", "backend=cpu"), "found 1 side, expected"),
            (("--run", "backend=cpu", "--run", "backend=tpu"), "found 'tpu', expected one of"),
            (("--run", "backend=cpu", "--run", "seed=2"), "is not the same work as"),
            (("--run", "out=x", "--run", "backend=cpu"), "sets out, which compare decides"),
            (("--run", "'", "--run", "backend=cpu"), "cannot be split as a command line"),
            (("--run", "backend=cpu", "--run", "backend=cpu ", "--repeats", "0"), "--repeats: found 0"),
        ],
        ids=str,
    )
    def test_are_one_line_with_exit_code_2(
        self, argv: tuple[str, ...], said: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert compare(folders, *argv) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        [line] = printed.err.splitlines()
        assert line.startswith("error: ")
        assert said in line

    def test_a_backend_that_is_not_there_is_refused_before_anything_runs(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = main(["compare", "--run", "backend=cpu", "--run", "backend=npu", "--out", str(tmp_path / "out")])
        assert code == 3
        assert "backend npu is not available here" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


class TestFormats:
    def test_json_is_the_verdict(self, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
        compare(folders, "reference", "slow", "--format", "json", "--label", "A", "--label", "B")
        found = json.loads(capsys.readouterr().out)
        assert found["pairs"][0]["verdict"] == "slower"
        assert found["reference"]["label"] == "A"
        assert found["pairs"][0]["other"]["label"] == "B"

    def test_out_writes_the_report(self, folders: dict[str, Path], tmp_path: Path) -> None:
        compare(folders, "reference", "slow", "--out", str(tmp_path / "report"))
        names = {path.name for path in (tmp_path / "report").iterdir()}
        assert {"report.html", "report.md", "verdict.json"} <= names
        assert json.loads((tmp_path / "report" / "verdict.json").read_text())["pairs"][0]["verdict"] == "slower"

    def test_help_fits_a_screen_and_names_every_option(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["compare", "--help"]) == 0
        text = capsys.readouterr().out
        assert len(text.splitlines()) <= 40
        assert max(map(len, text.splitlines())) <= 120
        for option in ("--run", "--repeats", "--out", "--margin", "--label", "--expect", "--format"):
            assert option in text


def test_needs_no_torch(folders: dict[str, Path]) -> None:
    script = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'hydra'): raise ImportError(f'{name} is not here')\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from harness.__main__ import main\n"
        f"sys.exit(main(['compare', {str(folders['reference'])!r}, {str(folders['same'])!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TestOrder:
    @pytest.mark.parametrize(("sides", "repeats"), [(2, 4), (2, 5), (3, 6), (3, 5)])
    def test_every_side_runs_once_a_round_and_comes_equally_often_at_each_place(self, sides: int, repeats: int) -> None:
        order = list(balanced_order(sides, repeats, random.Random(1)))
        rounds = [order[start : start + sides] for start in range(0, len(order), sides)]
        assert len(rounds) == repeats
        assert all(sorted(one) == list(range(sides)) for one in rounds)
        for place in range(sides):
            counts = Counter(one[place] for one in rounds[: repeats // sides * sides])
            assert set(counts.values()) == {repeats // sides}

    def test_is_random(self) -> None:
        assert len({tuple(balanced_order(2, 6, random.Random(seed))) for seed in range(20)}) > 3


def test_a_missing_package_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(*_: object) -> int:
        raise ModuleNotFoundError("No module named 'hydra'", name="hydra.core")

    monkeypatch.setattr(compare_module, "main", lacking)
    assert main(["compare"]) == 2
    assert "the package hydra.core is not installed" in capsys.readouterr().err


def test_a_reader_who_leaves_early_does_not_cost_the_report(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(compare_module, "_print", closed)
    with pytest.raises(BrokenPipeError):
        compare_module.main([str(folders["reference"]), str(folders["same"]), "--out", str(tmp_path / "report")])
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize("steps", [2, 5, 11, 20, 21, 22, 23, 60])
def test_the_medians_of_neighbors_are_those_of_each_step_alone(steps: int) -> None:
    values = np.random.default_rng(steps).random(steps)
    for missing in ([], [0], [steps // 2, steps - 1]):
        values[missing] = np.nan
        expected = []
        for step in range(steps):
            first = max(0, step - SPIKE_NEIGHBORS)
            expected.append(np.median(np.delete(values[first : step + SPIKE_NEIGHBORS + 1], step - first)))
        assert np.array_equal(medians_of_neighbors(values), expected, equal_nan=True)


def test_a_million_steps_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(500)
    whole = medians_of_neighbors(values)
    monkeypatch.setattr(parity, "MAX_WINDOWS", 64)
    assert np.array_equal(medians_of_neighbors(values), whole)
