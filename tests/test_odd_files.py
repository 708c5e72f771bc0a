"""Odd files in a run's folder: one line that names the file, never a traceback, and the folder stays as it was."""

from __future__ import annotations

import json
import os
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from harness.composition import load
from harness.config import Config
from harness.errors import ConfigError, RecordError, UserError
from harness.layout import Layout
from harness.records.attempts import begin_attempt, read_attempts
from harness.records.files import replace_file, seal, write_atomically
from harness.records.peak import find_peak, read_peak
from harness.records.record import read_record, write_record
from harness.records.run_folder import acquire_run_folder, check_no_existing_run
from harness.records.steps import STEPS_FILE, StepsWriter, steps_digest
from harness.regular_files import load_json
from harness.training.history import TrainingHistory
from harness.training.timing import TimedInterval
from tests.records import make_record
from tests.tiny import TINY

# A file that is no JSON object, or that is odd in another way, and what is said about it.
ODD: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_text(""),
    "binary": lambda file: file.write_bytes(b"\xff\xfe"),
    "nested": lambda file: file.write_text("[" * 100_000),
    "a list": lambda file: file.write_text("[1]"),
    "an object": lambda file: file.write_text("{}"),
    "a large number": lambda file: file.write_text('{"seed": ' + "9" * 5000 + "}"),
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a folder": lambda file: file.mkdir(),
    "a sparse terabyte": lambda file: (file.touch(), os.truncate(file, 1 << 40)),
}


@cache
def composed() -> Config:
    return load([*TINY, "out=unused", "checkpoint.every=2", "resume=auto"])


def config(folder: Path) -> Config:
    return replace(composed(), out=str(folder))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a run that was interrupted."""
    with acquire_run_folder(config(tmp_path / "run"), "x"):
        begin_attempt(tmp_path / "run", from_step=0, layout=Layout(), host=None)
    return tmp_path / "run"


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["attempts.json", "config.yaml", "record.json"])
def test_is_named_in_one_line(name: str, odd: str, run: Path) -> None:
    if (name, odd) == ("config.yaml", "empty"):
        pytest.skip("a start that was killed at once")
    (run / name).unlink(missing_ok=True)
    ODD[odd](run / name)
    began = time.process_time()
    with pytest.raises((ConfigError, RecordError), match=name), acquire_run_folder(config(run), "x"):
        read_attempts(run)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_peak_is_named(odd: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    ODD[odd](tmp_path / "a" / "peak.json")
    with pytest.raises(RecordError, match=r"a/peak\.json"):
        read_peak(tmp_path / "a" / "peak.json")


@pytest.mark.parametrize("change", [{"backend": 1}, {"matrix_products": None}, {"memory": []}])
def test_a_peak_with_odd_fields_is_named(change: dict[str, object], tmp_path: Path) -> None:
    same = {"backend": {"name": "cpu", "versions": {}}, "device": {"name": "x"}, "effective_settings": {}}
    peak = {"schema_version": 3, "kind": "peak", "finished_at": "2026", "matrix_products": {}, "memory": {}, **same}
    (tmp_path / "a").mkdir()
    write_record(tmp_path / "a", {**peak, **change}, "peak.json")
    with pytest.raises(RecordError, match=r"a/peak\.json: lacks a field"):
        find_peak(tmp_path, same)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1}\nb: *a\n",
        "seed: 2024-99-99\n",
        "? [1, 2]\n: 3\n",
        "seed: !!python/object/apply:os.system [true]\n",
        "a: {b: {c: {d: {e: 1}}}}\n",
        "a: \x01\n",
    ],
)
def test_an_odd_config_is_named(text: str, run: Path) -> None:
    (run / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        acquire_run_folder(config(run), "x")


class TestFlippedBits:
    def test_attempts(self, run: Path) -> None:
        content = (run / "attempts.json").read_bytes()
        before = read_attempts(run)
        for position in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[position // 8] ^= 1 << position % 8
            (run / "attempts.json").write_bytes(flipped)
            try:
                assert read_attempts(run) == before, position
            except ConfigError:
                continue

    def test_steps(self, tmp_path: Path) -> None:
        writer = StepsWriter(tmp_path)
        writer.append({"step": step, "loss": 1.0 / step} for step in range(1, 6))
        writer.close()
        content = (tmp_path / STEPS_FILE).read_bytes()
        before = steps_digest(tmp_path, 4)
        kept = sum(len(line) + 1 for line in content.split(b"\n")[:4])
        for position in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[position // 8] ^= 1 << position % 8
            (tmp_path / STEPS_FILE).write_bytes(flipped)
            assert (steps_digest(tmp_path, 4) == before) == (position // 8 >= kept), position

    @pytest.mark.parametrize("field", ['"status": "ok', '"seed": ', '"content_sha256": "', '"content_sha'])
    def test_record_of_a_finished_run(self, field: str, run: Path) -> None:
        text = bytearray(write_record(run, make_record()).read_bytes())
        text[text.index(field.encode()) + len(field) - 1] ^= 1
        (run / "record.json").write_bytes(text)
        with pytest.raises(RecordError, match=r"record\.json.* move it elsewhere to resume"):
            acquire_run_folder(config(run), "x")


class TestSteps:
    def test_rows_after_the_checkpoint_are_dropped(self, tmp_path: Path) -> None:
        (tmp_path / STEPS_FILE).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
        writer = StepsWriter(tmp_path, 2)
        writer.append([{"step": 3, "loss": 1.0}])
        writer.close()
        rows = (tmp_path / STEPS_FILE).read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]

    def test_too_few_rows_have_no_digest(self, tmp_path: Path) -> None:
        (tmp_path / STEPS_FILE).write_text('{"step": 1}\n{"step": 2}')
        assert steps_digest(tmp_path, 1) is not None
        assert steps_digest(tmp_path, 2) is None

    def test_a_link_is_not_written(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("precious\n")
        (tmp_path / STEPS_FILE).symlink_to("victim")
        for done in (0, 1):
            with pytest.raises(UserError, match=r"steps\.jsonl: cannot be written"):
                StepsWriter(tmp_path, done)
        assert (tmp_path / "victim").read_text() == "precious\n"


def make_history(steps: int) -> TrainingHistory:
    values = array("d", [1.0] * steps)
    intervals = [("measured", TimedInterval(step, step, 1.0, 0.0, [1.0], None)) for step in range(1, steps + 1)]
    return TrainingHistory(losses=values, gradient_norms=values, learning_rates=values, intervals=intervals)


@pytest.mark.parametrize(
    "change",
    [
        {"losses": [1.0]},
        {"losses": [1.0, 1.0, "1"]},
        {"gradient_norms": []},
        {"learning_rates": None},
        {"intervals": []},
        {"intervals": [["first", {}]]},
        {"more": 1},
    ],
)
def test_a_history_with_too_few_values_is_an_error(change: dict[str, object]) -> None:
    values = json.loads(json.dumps(make_history(3).to_json()))
    assert TrainingHistory.from_json(json.loads(json.dumps(values)), 3) == make_history(3)
    with pytest.raises((KeyError, TypeError, ValueError)):
        TrainingHistory.from_json({**values, **change}, 3)


class TestSettingsThatNoRecordCanHold:
    @pytest.mark.parametrize(
        "override",
        [
            f"seed={10**29}",
            f"seed={2**64}",
            f"workload.interval_steps={10**20}",
            f"checkpoint.every={10**25}",
            f"nonfinite_limit={10**30}",
            "loss_spike_factor=1e150",
            "workload.epsilon=1e100",
            "parallel.timeout_seconds=1e200",
        ],
    )
    def test_are_an_error(self, override: str) -> None:
        with pytest.raises(ConfigError, match=override.split("=", maxsplit=1)[0]):
            load([*TINY, override])

    def test_the_largest_seed_can_be_read_again(self, tmp_path: Path) -> None:
        assert load([*TINY, f"seed={2**64 - 1}"]).seed == 2**64 - 1
        record = make_record()
        record["config"]["seed"] = 2**64 - 1
        assert read_record(write_record(tmp_path, record))["config"]["seed"] == 2**64 - 1


class TestExistingRun:
    def test_says_how_to_go_on(self, run: Path) -> None:
        for step in (10, 20):
            (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        for status in (None, "interrupted", "oom"):
            if status is not None:
                write_record(run, make_record(status=status))
            with pytest.raises(ConfigError, match=r"add resume=auto to go on from step 20, or choose") as raised:
                check_no_existing_run(run)
            assert "delete" not in str(raised.value)
            assert status is None or f"ended with status {status}" in str(raised.value)

    def test_a_finished_one_cannot_go_on(self, run: Path) -> None:
        (run / "checkpoints" / "step-00000020").mkdir(parents=True)
        write_record(run, make_record())
        with pytest.raises(ConfigError, match="holds a finished run; choose another"):
            check_no_existing_run(run)

    def test_a_running_one_is_waited_for(self, run: Path) -> None:
        with acquire_run_folder(config(run), "x"), pytest.raises(ConfigError, match="is locked by another process"):
            check_no_existing_run(run)


def test_no_file_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    for write in (write_atomically, replace_file):
        (tmp_path / "file.json").unlink(missing_ok=True)
        (tmp_path / "file.json").symlink_to("victim")
        write(tmp_path / "file.json", "{}")
        assert (tmp_path / "victim").read_text() == "precious"
        assert load_json(tmp_path / "file.json") == {}


def test_a_seal_survives_the_numbers_of_a_manifest(tmp_path: Path) -> None:
    content = {
        "loss": [float("nan"), float("inf"), 0.1, 5e-324, 2**70],
        "text": "ä\ud800",
        "nested": {"b": (1,), "a": []},
    }
    (tmp_path / "a").write_text(json.dumps(seal(content)))
    found = load_json(tmp_path / "a")
    assert (
        seal({key: value for key, value in found.items() if key != "content_sha256"})["content_sha256"]
        == (found["content_sha256"])
    )
