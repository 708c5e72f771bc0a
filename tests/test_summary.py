"""Summary of a run against golden text, also for runs that failed or ended early."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.report.console import WIDTH, PlainConsole
from harness.report.summary import key_figures, print_summary
from tests.conftest import GOLDEN, PROJECT, assert_golden


@pytest.fixture
def record() -> dict[str, Any]:
    return json.loads((GOLDEN / "record-cpu-smoke.json").read_text())


def summary(record: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_summary(record, Path("runs/smoke"), PlainConsole(WIDTH, stream))
    return "".join(line.rstrip() + "\n" for line in stream.getvalue().splitlines())


def test_golden_record_follows_the_schema(record: dict[str, Any]) -> None:
    schema = json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text())
    jsonschema.validate(record, schema)


def test_finished_run(record: dict[str, Any]) -> None:
    assert_golden("summary-finished.txt", summary(record))


@pytest.mark.parametrize(("used", "said"), [(0.68, True), (0.11, True), (0.09, False), (None, False)])
def test_foreign_load_is_one_line(used: float | None, said: bool, record: dict[str, Any]) -> None:
    record["contention"]["other_processes_cpu_fraction"] = used
    text = summary(record)
    assert text.count("of a busy machine") == said
    assert (f"other processes used {used or 0:.0%} of the CPU cores" in text) is said


def test_foreign_work_on_the_device_is_one_line(record: dict[str, Any]) -> None:
    record["contention"]["device_processes"] = ["python (12)", "train (7)"]
    assert "other processes used the device: python (12), train (7)" in summary(record)


def test_a_busy_host_s_peak_is_said_to_be(record: dict[str, Any]) -> None:
    record["measured_peak"] = {"flops": {"fp32": 1e11}, "other_processes_cpu_fraction": 0.78}
    record["utilization"] = {
        "achieved_flops": 5e10, "mfu": None, "catalogued_peak_flops": None, "mfu_of_measured_peak": 0.5,
        "measured_peak_flops": 1e11,
    }  # fmt: skip
    assert "while other processes used 78% of the CPU cores is too low" in " ".join(summary(record).split())
    record["measured_peak"]["other_processes_cpu_fraction"] = 0.02
    assert "is too low" not in summary(record)


def test_a_device_without_a_name_is_unknown(record: dict[str, Any]) -> None:
    record["device"]["name"] = None
    assert "cpu: unknown, " in summary(record)


def test_target_fp16_and_unknowns(record: dict[str, Any]) -> None:
    record["config"]["precision"] = "fp16"
    record["losses"]["skipped_steps"] = 3
    record["memory"] = None
    record["target"] = {"loss": 2.6, "reached": True, "step": 30, "training_seconds": 1.4, "wall_seconds": 1.5}
    record["data"]["entropy_floor_nats"] = record["data"]["unigram_entropy_nats"] = None
    assert_golden("summary-target-fp16.txt", summary(record))


def test_run_that_ended_before_its_measured_window(record: dict[str, Any]) -> None:
    timing = record["timing"]
    for key in ("mean_step_seconds", "tokens_per_second", "data_wait_fraction", "first_step_seconds"):
        timing[key] = None
    timing.update(intervals=[], step_seconds=[], measured_steps=0, warmup={"steps": 0, "seconds": 0.0})
    record["losses"].update(train=[], gradient_norm=[])
    record["eval"].update(points=[], final=None)
    record.update(status="oom", error="not enough memory; lower workload.micro_batch_size")
    assert_golden("summary-oom.txt", summary(record))


def test_what_was_read_and_left_out_is_shown(record: dict[str, Any]) -> None:
    counts = {"files_not_matched": 2, "files_empty": 0, "files_skipped": {"a gzip file": 3}, "links_repeated": 1}
    lost = {"characters": 4000, "characters_dropped": 1000, "tokens_unknown": 7}
    sizes = {"train_tokens": 2_600, "train_sequences": 10, "held_out_tokens": 500, "held_out_sequences": 1}
    record["config"]["workload"]["seq_len"] = 256
    record["data"] = {"name": "text", "files_read": 1, "size_bytes": 4000, **counts, **lost, **sizes}
    record["data"]["held_out"] = {"files_read": 1, "files_empty": 1}
    shown = " ".join(summary(record).split())
    assert "data 1 file, 4,000 bytes: 2,600 tokens in 10 sequences and 39 left over; 500 tokens held out" in shown
    assert (
        "left out files of other names: 2; skipped as a gzip file: 3; links to what is read already: 1; "
        "characters dropped by the tokenizer: 1,000 of 4,000 (25.0 %); unknown tokens: 7"
    ) in shown
    assert "held-out files empty files: 1" in shown
    assert key_figures(record, Path("out"))["data"] == record["data"]


def test_numbers_are_the_records(record: dict[str, Any]) -> None:
    record["timing"]["mean_step_seconds"] = 0.09509
    assert "95.09 ms, mean of 20 steps" in summary(record)


def test_one_of_a_thing_is_singular(record: dict[str, Any]) -> None:
    record["effective_settings"]["threads"] = 1
    record["eval"].update(sequences=1, points=record["eval"]["points"][:1])
    timing = record["timing"]
    timing["intervals"], timing["measured_steps"], timing["warmup"]["steps"] = timing["intervals"][:1], 1, 1
    record["config"]["precision"], record["losses"]["skipped_steps"] = "fp16", 1
    text = summary(record)
    for one in ("1 host thread\n", "mean of 1 step in 1 interval,", "1 warm-up step ", "(1 sequence, 1 evaluation)",
                "1 update skipped"):  # fmt: skip
        assert one in text
    record["effective_settings"] = {}
    assert "? host threads" in summary(record)


def test_a_quiet_clock_is_not_spoken_of(record: dict[str, Any]) -> None:
    quiet = summary(record)
    for clocks in (
        {"wall_clock_shift_seconds": 1.2, "suspended_seconds": 0.0},
        {"wall_clock_shift_seconds": -0.3, "suspended_seconds": None},
    ):
        record["clocks"] = clocks
        assert summary(record) == quiet


def test_clocks_that_were_set_and_hosts_that_slept(record: dict[str, Any]) -> None:
    record["clocks"] = {"wall_clock_shift_seconds": -3600.0, "suspended_seconds": 120.0}
    said = " ".join(summary(record).split())
    assert "the wall clock was set by -3,600 s during the run and the host was suspended for 120 s" in said
