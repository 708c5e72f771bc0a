"""Records from paths: files read, their order, and one-line errors."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.run_group import load_run_groups
from harness.errors import RecordError
from harness.records.load import load_runs, load_tree
from harness.records.suite_folder import is_suite_folder
from tests.records import make_record, make_records, merged, sealed, write_runs


def put(folder: Path, record: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record))
    return folder


class TestReading:
    def test_a_run_a_folder_of_runs_and_a_file(self, tmp_path: Path) -> None:
        folder = write_runs(tmp_path / "a", make_records(2))
        assert len(load_runs(folder)) == 2
        assert len(load_runs(folder / "1")) == 1
        copied = tmp_path / "from-another-machine.json"
        copied.write_bytes((folder / "2" / "record.json").read_bytes())
        assert load_runs(copied)[0].record == load_runs(folder / "2")[0].record

    def test_repeats_are_in_natural_order(self, tmp_path: Path) -> None:
        folder = write_runs(tmp_path / "a", make_records(11))
        assert [run.path.parent.name for run in load_runs(folder)] == [str(number) for number in range(1, 12)]

    def test_labels_are_the_paths_or_what_is_given(self, tmp_path: Path) -> None:
        paths = [write_runs(tmp_path / name, make_records(1, process=number)) for number, name in enumerate("ab")]
        assert [side.label for side in load_run_groups(paths)] == [str(path) for path in paths]
        assert [side.label for side in load_run_groups(paths, ["one", "two"])] == ["one", "two"]

    def test_digits_that_are_no_number_are_text(self, tmp_path: Path) -> None:
        folder = write_runs(tmp_path / "run1\u00b2" / "\u2460", make_records(2))
        assert len(load_runs(folder)) == len(load_tree([tmp_path])[0]) == 2

    def test_links_to_folders_are_followed_once(self, tmp_path: Path) -> None:
        write_runs(tmp_path / "elsewhere", make_records(2))
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "a").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path)
        # One that leads to a folder beside it is another name, and not its own.
        (tmp_path / "elsewhere" / "best").symlink_to("2")
        runs, problems = load_tree([tmp_path / "runs"])
        assert ([run.path.parent.name for run in runs], problems) == (["1", "2"], [])


class TestRefusals:
    def test_a_folder_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As another user's: root, who runs these tests in a container, may read all."""
        write_runs(tmp_path / "mine", make_records(1))
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        scan, stat = os.scandir, os.stat

        def forbid(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any = ".", *rest: Any, **more: Any) -> Any:
                if not isinstance(path, int) and theirs in (Path(path), Path(path).parent):
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return real(path, *rest, **more)

            return call

        monkeypatch.setattr(os, "scandir", forbid(scan))
        monkeypatch.setattr(os, "listdir", forbid(os.listdir))
        monkeypatch.setattr(os, "stat", forbid(stat))
        for read in (load_runs, is_suite_folder):
            with pytest.raises(
                RecordError, match=r"theirs.*: cannot be read: Permission denied; check its permissions"
            ):
                read(theirs)
        monkeypatch.setattr(os, "stat", stat)
        runs, [problem] = load_tree([tmp_path])
        assert len(runs) == 1
        assert problem == f"{theirs}: cannot be read: Permission denied; check its permissions"

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(RecordError, match="no such file or folder"):
            load_runs(tmp_path / "nowhere")
        with pytest.raises(RecordError, match="holds no run"):
            load_runs(tmp_path)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(RecordError, match=r"pipe: is a named pipe \(FIFO\), expected a run's folder"):
            load_runs(tmp_path / "pipe")

    def test_a_cut_off_repeat_is_not_passed_over(self, tmp_path: Path) -> None:
        folder = write_runs(tmp_path / "a", make_records(2))
        (folder / "3").mkdir()
        (folder / "3" / "steps.jsonl").touch()
        with pytest.raises(RecordError, match="3: the run is still running or was interrupted"):
            load_runs(folder)

    def test_the_same_run_twice(self, tmp_path: Path) -> None:
        folder = write_runs(tmp_path / "a", make_records(2))
        with pytest.raises(RecordError, match="the same record was given twice"):
            load_run_groups([folder, folder / "1"])

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"schema_version": 4}, "schema_version 4 is newer"),
            ({"schema_version": 2}, "schema_version 2 is older than this harness reads"),
            ({"losses": {"train": None}}, "has no usable losses.train"),
            ({"config": None}, "has no usable config: found null, expected an object"),
            (
                {"config": {"model": {"num_attention_heads": 0}}},
                "has no usable config.model.num_attention_heads: found 0, expected at least 1",
            ),
            ({"world_size": 0}, "has no usable world_size: found 0, expected at least 1"),
            ({"device": {"kind": 7}}, "has no usable device.kind: found 7, expected text"),
            ({"model": {"parameters": "1 B"}}, 'has no usable model.parameters: found "1 B", expected a whole number'),
            ({"telemetry": {}}, "has no usable telemetry.method; it was not written by this harness"),
            ({"timing": {"mean_step_seconds": 0.1}}, "does not follow from its own intervals"),
            ({"timing": {"tokens_per_second": 1e9}}, "does not follow from its own intervals"),
            ({"timing": {"measured_seconds": float(10**9)}}, "does not follow from its own intervals"),
            ({"timing": {"intervals": []}}, "no measured interval"),
            ({"losses": {"train": [5.0]}}, "has 1 losses for 200 steps"),
        ],
        ids=str,
    )
    def test_records_at_odds_with_themselves(self, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
        put(tmp_path, sealed(merged(make_record(), changes)))
        with pytest.raises(RecordError, match=said):
            load_runs(tmp_path)

    def test_a_window_of_no_time(self, tmp_path: Path) -> None:
        record = make_record()
        for interval in record["timing"]["intervals"]:
            interval["seconds"] = 0.0
        put(tmp_path, sealed(record))
        with pytest.raises(RecordError, match="expected more than 0 s"):
            load_runs(tmp_path)

    @pytest.mark.parametrize("key", ["status", "workload_id", "device", "losses", "environment"])
    def test_any_change_after_the_run_wrote_it(self, key: str, tmp_path: Path) -> None:
        record = make_record()
        record[key] = {**record[key], "edited": 1} if isinstance(record[key], dict) else record[key] + " "
        put(tmp_path, record)
        with pytest.raises(RecordError, match="was changed after the run had written it"):
            load_runs(tmp_path)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"schema_version": 2}'])
    def test_no_record_at_all(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "record.json").write_text(text)
        with pytest.raises(RecordError, match=r"record\.json: "):
            load_runs(tmp_path)
