"""Many records as one table, and the Python API."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import harness
from harness.analysis.ratio_statistics import ratio_of
from harness.analysis.run_table import make_table, table_rows
from harness.commands import table as command
from harness.errors import RecordError, UserError
from harness.records.load import load_tree
from harness.records.record import write_record
from harness.report.run_table_content import notes, outlier_sentences
from harness.report.run_table_files import csv_text, render_table_page
from tests.conftest import PROJECT
from tests.records import A100, ASCEND, make_record, merged, save_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three repeats on each of two devices, one run of other work, one that failed, one that is damaged."""
    for repeat in (1, 2, 3):
        save_run(tmp_path / "runs" / "a100" / str(repeat), on=A100, process=repeat, step_seconds=0.25)
        save_run(tmp_path / "runs" / "ascend" / str(repeat), on=ASCEND, process=10 + repeat, step_seconds=0.3)
    save_run(tmp_path / "runs" / "other", on=A100, process=30, config={"workload": {"learning_rate": 1e-3}})
    save_run(tmp_path / "runs" / "failed", on=A100, process=31, status="oom", error="no memory", finished_steps=9)
    damaged = save_run(tmp_path / "runs" / "damaged", on=A100, process=32)
    damaged.write_text(damaged.read_text().replace('"world_size": 1', '"world_size": 2'))
    save_run(tmp_path / "runs" / "interrupted" / "x", on=A100, process=33)
    return tmp_path / "runs"


class TestTable:
    def test_only_what_is_comparable_shares_a_group(self, runs: Path) -> None:
        found, problems = load_tree([runs])
        assert len(problems) == 1
        assert "damaged" in problems[0]
        table = make_table(found, 0.05)
        sides = [[entry.side.label for entry in group.entries] for group in table.groups]
        assert sides == [["a100", "ascend"], ["other"]]
        assert table.without_speed == ((str(runs / "failed" / "record.json"), "ended oom"),)
        ratio = table.groups[0].entries[1].ratio
        assert ratio is not None
        assert ratio.estimate == pytest.approx(1.2, rel=0.02)

    def test_a_run_that_fails_its_own_gates_has_no_speed(self, runs: Path) -> None:
        """Whatever its name, it hides none of the others."""
        record = make_record(on=A100, process=40, step_seconds=0.25)
        for interval in record["timing"]["intervals"]:
            interval["raw_seconds"] = 2 * interval["seconds"]
        (runs / "AAA").mkdir()
        write_record(runs / "AAA", record)
        table = make_table(load_tree([runs])[0], 0.05)
        assert [entry.side.label for entry in table.groups[0].entries] == ["a100", "ascend"]
        reasons = dict(table.without_speed)
        assert "a second clock measures 2.000 times" in reasons[str(runs / "AAA" / "record.json")]

    def test_repeats_of_several_things_are_no_reference(self, runs: Path) -> None:
        for repeat, version in ((1, "2.13.0"), (2, "2.14.0")):
            packages = {"environment": {"packages": {"torch": version}}}
            save_run(runs / "AAA" / str(repeat), on=merged(A100, packages), process=40 + repeat, step_seconds=0.25)
        [group, _] = make_table(load_tree([runs])[0], 0.05).groups
        assert [entry.side.label for entry in group.entries] == ["a100", "ascend"]
        assert [pair.other.label for pair in group.excluded] == ["AAA"]

    def test_the_reference_can_be_named(self, runs: Path) -> None:
        table = make_table(load_tree([runs])[0], 0.05, reference="ascend")
        assert [entry.side.label for entry in table.groups[0].entries] == ["a100", "ascend"], "the fastest is first"
        ratio = table.groups[0].entries[0].ratio
        assert ratio is not None
        assert ratio.estimate == pytest.approx(1 / 1.2, rel=0.02)

    def test_an_entry_can_be_a_device(self, runs: Path) -> None:
        table = make_table(load_tree([runs])[0], 0.05, "device")
        assert [entry.side.label for entry in table.groups[0].entries] == ["NVIDIA A100-SXM4-80GB", "Ascend910B2"]

    def test_intervals_hold_for_all_of_a_group_together(self, tmp_path: Path) -> None:
        for host in range(5):
            for repeat in (1, 2, 3):
                save_run(tmp_path / f"n{host}" / str(repeat), process=10 * host + repeat)
        table = make_table(load_tree([tmp_path])[0], 0.05)
        reference = next(entry for entry in table.groups[0].entries if entry.ratio is None)
        other = next(entry for entry in table.groups[0].entries if entry.ratio is not None)
        sides = [entry.side.values("timing", "mean_step_seconds") for entry in (reference, other)]
        expected = ratio_of(sides[0], sides[1], 0.05, alpha=0.05 / 4)
        assert other.ratio is not None
        assert (other.ratio.low, other.ratio.high) == (expected.low, expected.high)
        assert expected.high is not None
        assert expected.high > (ratio_of(sides[0], sides[1], 0.05).high or 0)
        assert any("for all 4 together (Bonferroni)" in line for line in notes(table.groups[0]))

    def test_a_side_that_computes_something_else_has_no_speed(self, tmp_path: Path) -> None:
        save_run(tmp_path / "one", process=1)
        wrong = make_record(process=2)
        wrong["losses"]["train"] = [loss * 1.2 for loss in wrong["losses"]["train"]]
        save_run(tmp_path / "two", process=2, losses=wrong["losses"])
        [group] = make_table(load_tree([tmp_path])[0], 0.05).groups
        assert [entry.side.label for entry in group.entries] == ["one"]
        assert any(line.startswith("left out: ") and "different computation" in line for line in notes(group))

    def test_one_slow_host_of_a_fleet_is_named(self, tmp_path: Path) -> None:
        for number in range(16):
            seconds = 0.25 * (1.06 if number == 11 else 1.0)
            save_run(tmp_path / f"node{number}", process=number, step_seconds=seconds, process_noise=0.005,
                 environment={"host": f"node{number}"})  # fmt: skip
        [group] = make_table(load_tree([tmp_path])[0], 0.05, "host").groups
        [sentence] = outlier_sentences(group)
        assert sentence.startswith("node11 is ")
        assert sentence.endswith("% slower than its 15 peers (AMD EPYC)")

    def test_what_is_unusual_by_next_to_nothing_is_not_named(self, tmp_path: Path) -> None:
        for number in range(16):
            seconds = 0.25 * (1.005 if number == 11 else 1.0)
            save_run(tmp_path / f"node{number}", process=number, step_seconds=seconds, process_noise=0.0001,
                 noise=0.0001)  # fmt: skip
        [group] = make_table(load_tree([tmp_path])[0], 0.05).groups
        assert outlier_sentences(group) == []

    def test_a_record_counts_once(self, runs: Path) -> None:
        found, problems = load_tree([runs, runs / "a100"])
        assert len(found) == 8
        assert sum("the same record as another one; it counts once" in line for line in problems) == 3

    def test_folders_without_a_record_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RecordError, match=r"nowhere: no such file or folder"):
            load_tree([tmp_path / "nowhere"])
        with pytest.raises(RecordError, match=r"found no record to use; give the folders named by out="):
            load_tree([tmp_path])


class TestFiles:
    def test_csv_parquet_and_json_have_the_same_rows(self, runs: Path, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        names = [tmp_path / "new" / f"table{suffix}" for suffix in (".csv", ".parquet", ".json", ".html")]
        assert command.main([str(runs), *(f"--out={name}" for name in names)]) == 0
        rows = json.loads(names[2].read_text())
        assert rows == table_rows(make_table(load_tree([runs])[0], 0.05))
        assert len(rows) == 7
        assert parquet.read_table(names[1]).to_pylist() == rows
        read = list(csv.DictReader(io.StringIO(names[0].read_text())))
        assert [row["content_sha256"] for row in read] == [row["content_sha256"] for row in rows]
        assert float(read[0]["mean_step_seconds"]) == rows[0]["mean_step_seconds"]

    def test_a_cell_is_no_formula(self, tmp_path: Path) -> None:
        save_run(tmp_path / "a", environment={"host": "=1+1"})
        table = make_table(load_tree([tmp_path])[0], 0.05)
        assert "'=1+1" in csv_text(table)

    def test_the_page_escapes_and_allows_its_own_script_alone(self, tmp_path: Path) -> None:
        save_run(tmp_path / "a", device={"name": "<script>alert(1)</script>"})
        page = render_table_page(make_table(load_tree([tmp_path])[0], 0.05))
        assert "<script>alert" not in page
        assert page.count("<script>") == 1
        assert "script-src 'sha256-" in page
        assert "default-src 'none'" in page

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--out=table.txt"], r"table: --out: found table\.txt, expected a name that ends in \.html, \.csv"),
            (["--margin=2"], "table: --margin: found 2, expected a fraction between 0 and 1"),
            (
                ["--reference=asend"],
                r"--reference: found 'asend', expected the name of an entry; did you mean ascend\?",
            ),
            (["--by=color"], "invalid choice: 'color'"),
        ],
    )
    def test_bad_usage_is_one_line(self, argv: list[str], message: str, runs: Path) -> None:
        with pytest.raises(UserError, match=message):
            command.main([str(runs), *argv])

    def test_the_screen_has_every_entry(
        self, runs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        assert command.main([str(runs)]) == 0
        shown = capsys.readouterr().out
        assert "a100" in shown
        assert "reference" in shown
        assert sum("left out" in message for message in caplog.messages) == 2

    def test_a_name_that_is_not_utf8_is_written(self, tmp_path: Path) -> None:
        folder = os.fsencode(tmp_path / "runs") + b"/caf\xe9"
        os.makedirs(folder)
        write_record(Path(os.fsdecode(folder)), make_record(on=A100))
        for suffix in (".csv", ".parquet", ".json", ".html"):
            file = tmp_path / f"table{suffix}"
            assert command.main([str(tmp_path / "runs"), "--out", str(file)]) == 0
            assert file.stat().st_size > 0
        assert "caf\\udce9" in (tmp_path / "table.csv").read_text()

    def test_twice_as_slow_is_a_plain_number(self, tmp_path: Path) -> None:
        for number in range(8):
            seconds = 0.625 if number == 3 else 0.25
            save_run(tmp_path / f"node{number}", on=A100, process=number, step_seconds=seconds)
        [group] = make_table(load_tree([tmp_path])[0], 0.05).groups
        assert outlier_sentences(group) == ["node3 is 150 % slower than its 7 peers (NVIDIA A100-SXM4-80GB)"]


class TestApi:
    def test_records_are_compared_and_become_a_data_frame(self, runs: Path) -> None:
        one, two = harness.load_records(runs / "a100", label="A100"), harness.load_records(runs / "ascend")
        assert (len(one), one.label) == (3, "A100")
        found = harness.compare(one, two)
        assert found.pairs[0].verdict == "slower"
        pandas = pytest.importorskip("pandas")
        frame = one.to_pandas()
        assert isinstance(frame, pandas.DataFrame)
        assert list(frame["device"].unique()) == ["NVIDIA A100-SXM4-80GB"]
        assert np.allclose(frame["mean_step_seconds"], [run.record["timing"]["mean_step_seconds"] for run in one])

    def test_a_side_is_not_compared_with_itself(self, runs: Path) -> None:
        one = harness.load_records(runs / "a100")
        with pytest.raises(RecordError, match="the same record was given twice"):
            harness.compare(one, harness.load_records(runs / "a100", label="other"))

    def test_many_records_become_a_table(self, runs: Path) -> None:
        found = harness.table(harness.load_all_records(runs), by="device")
        assert len(found.groups) == 2

    def test_the_example_of_the_documentation_runs(
        self, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("pandas")
        text = (PROJECT / "harness" / "docs" / "tables.md").read_text()
        [program] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for name in ("a100", "ascend"):
            (runs.parent / name).symlink_to(runs / name)
        monkeypatch.chdir(runs.parent)
        exec(compile(program, "tables.md", "exec"), {})
        shown = capsys.readouterr().out
        assert "slower" in shown
        assert "Ascend910B2" in shown

    def test_wrong_arguments(self, runs: Path) -> None:
        one = harness.load_records(runs / "a100")
        with pytest.raises(ValueError, match="one or more other sides"):
            harness.compare(one)
        with pytest.raises(AttributeError, match="has no attribute 'lod_records'"):
            harness.lod_records  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]

    def test_importing_the_package_imports_nothing_heavy(self) -> None:
        program = "import sys, harness; print(sorted({'torch', 'scipy', 'numpy', 'yaml'} & set(sys.modules)))"
        assert (
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
        )
        program = "import sys; from harness import load_records; print('torch' in sys.modules)"
        assert (
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
            == "False\n"
        )
