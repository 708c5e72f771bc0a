"""The record: complete or absent, never overwritten; other files are rejected with a remedy."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError, RecordError, RunFailed
from harness.records import record
from harness.records.files import content_digest, to_json_text
from harness.records.record import read_record, write_record
from harness.records.run_folder import check_no_existing_run, create_run_folder
from harness.records.steps import StepsWriter


class TestWriting:
    def test_write_and_read(self, tmp_path: Path) -> None:
        content = {"schema_version": 3, "losses": [0.1, 1e-300, 3], "name": "Größe"}
        write_record(tmp_path, content)
        sealed = {**content, "content_sha256": content_digest(content)}
        assert read_record(tmp_path) == sealed
        assert read_record(tmp_path / "record.json") == sealed
        assert [path.name for path in tmp_path.iterdir()] == ["record.json"]

    def test_not_a_number_becomes_null(self, tmp_path: Path) -> None:
        write_record(tmp_path, {"schema_version": 3, "losses": [math.nan, math.inf, -math.inf, 1.0], "t": (math.nan,)})
        text = (tmp_path / "record.json").read_text()
        assert json.loads(text, parse_constant=pytest.fail)["losses"] == [None, None, None, 1.0]

    @pytest.mark.parametrize("failing", ["fsync", "replace"])
    def test_a_failed_write_leaves_no_partial_file(
        self, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_record(tmp_path, {"schema_version": 3, "old": True})

        def fail(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, failing, fail)
        with pytest.raises(RunFailed, match="No space left on device; free some space or choose another out=DIR"):
            write_record(tmp_path, {"schema_version": 3, "new": True})
        assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
        assert read_record(tmp_path)["old"] is True

    def test_file_systems_without_fsync_are_tolerated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unsupported(_: int) -> None:
            raise OSError(22, "Invalid argument")

        monkeypatch.setattr(os, "fsync", unsupported)
        write_record(tmp_path, {"schema_version": 3})
        assert read_record(tmp_path)["schema_version"] == 3

    def test_steps_are_on_disk_when_append_returns(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[str] = []
        real = os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda fd: (real(fd), synced.append((tmp_path / "steps.jsonl").read_text()))[0]
        )
        writer = StepsWriter(tmp_path)
        writer.append([{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5}])
        assert [json.loads(line) for line in synced[-1].splitlines()] == [
            {"step": 1, "loss": None},
            {"step": 2, "loss": 0.5},
        ]
        writer.close()


class TestChecksum:
    def test_covers_everything_but_itself(self, tmp_path: Path) -> None:
        write_record(tmp_path, {"schema_version": 3, "losses": [0.1, math.nan], "nested": {"a": (1, 2)}})
        written = read_record(tmp_path)
        assert content_digest(written) == written["content_sha256"]
        for key, value in (("losses", [0.1, 0.0]), ("nested", {"a": [1, 3]}), ("new", None)):
            assert content_digest({**written, key: value}) != written["content_sha256"]

    def test_does_not_depend_on_the_order_of_keys(self) -> None:
        assert content_digest({"a": 1, "b": 2}) == content_digest({"b": 2, "a": 1})


class TestReading:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("{", r"not valid JSON \(line 1\); copy it again"),
            ("", "not valid JSON"),
            ("[]", "not a record of this harness: it has no schema_version"),
            ('{"a": 1}', "not a record of this harness"),
            ('{"schema_version": "1"}', "not a record of this harness"),
            ('{"schema_version": 99}', "schema_version 99 is newer than this harness reads"),
            ('{"schema_version": 2}', "schema_version 2 is older than this harness reads"),
        ],
    )
    def test_other_files_are_rejected(self, text: str, expected: str, tmp_path: Path) -> None:
        (tmp_path / "record.json").write_text(text)
        with pytest.raises(RecordError, match=expected):
            read_record(tmp_path)

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "record.json").write_bytes(b"\xff\xfe")
        with pytest.raises(RecordError, match="cannot be read"):
            read_record(tmp_path)

    def test_a_missing_record_of_an_unfinished_run(self, tmp_path: Path) -> None:
        with pytest.raises(RecordError, match="there is no run"):
            read_record(tmp_path)
        (tmp_path / "steps.jsonl").write_text("")
        with pytest.raises(RecordError, match="still running or was interrupted"):
            read_record(tmp_path)


class TestFolders:
    def test_named_folder_is_made_with_its_parents(self, tmp_path: Path) -> None:
        assert create_run_folder(f"{tmp_path}/a/b", "label").is_dir()

    def test_default_folders_never_collide(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        names = [create_run_folder(None, "cpu-tiny").name for _ in range(3)]
        assert len(set(names)) == 3
        assert all("-cpu-tiny" in name for name in names)

    @pytest.mark.parametrize(
        ("file", "expected"),
        [
            ("record.json", "holds a finished run"),
            ("config.yaml", "was interrupted"),
            ("steps.jsonl", "was interrupted"),
        ],
    )
    def test_an_existing_run_is_an_error(self, file: str, expected: str, tmp_path: Path) -> None:
        (tmp_path / file).write_text("")
        with pytest.raises(ConfigError, match=expected):
            check_no_existing_run(tmp_path)

    def test_repeats_of_a_run_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "1").mkdir()
        with pytest.raises(ConfigError, match="holds the repeats of a run"):
            create_run_folder(str(tmp_path), "label")


def test_schema_knows_every_status() -> None:
    schema = json.loads((Path(record.__file__).parent.parent / "schemas" / "record.schema.json").read_text())
    assert tuple(schema["properties"]["status"]["enum"]) == record.STATUSES
    assert schema["properties"]["schema_version"] == {"const": record.SCHEMA_VERSION}


def test_a_list_of_numbers_is_one_line() -> None:
    content = {"curve": [0.5, None, 1e-07], "intervals": [{"first": 1, "last": 2}, {"first": 3, "last": 4}],
              "nested": [[1, 2], {"deep": {"empty": {}, "none": []}}], 7: "text"}  # fmt: skip
    text = to_json_text(content)
    assert json.loads(text) == json.loads(json.dumps(content))
    lines = [line.strip() for line in text.splitlines()]
    assert '"curve": [0.5,null,1e-07],' in lines
    assert '{"first": 1, "last": 2},' in lines
