"""MLPerf log lines: what the mlperf_logging package reads, in order of time, and true to the record."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from harness.errors import RecordError
from harness.records.load import LoadedRecord
from harness.report.mllog import PREFIX, mllog_lines
from tests.comparisons import EMULATED
from tests.conftest import assert_golden
from tests.records import A100, make_record

REACHED: dict[str, Any] = {"on": A100, "config": {"target_loss": 4.0}}


def lines(**arguments: Any) -> str:
    return mllog_lines(LoadedRecord(Path("runs/a/1/record.json"), make_record(**arguments)))


def events(**arguments: Any) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(PREFIX)) for line in lines(**arguments).splitlines()]


def values(found: list[dict[str, Any]], key: str) -> list[Any]:
    return [event["value"] for event in found if event["key"] == key]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("reached", REACHED),
        ("oom", {"on": A100, "status": "oom", "error": "not enough memory", "finished_steps": 63}),
        ("set-up", {"status": "failed", "error": "x", "finished_steps": 0, "timing": {"setup_seconds": None}}),
    ],
)
def test_golden(name: str, arguments: dict[str, Any]) -> None:
    assert_golden(f"compare/mllog-{name}.txt", lines(**arguments))


@pytest.mark.parametrize("ruleset", ["5.1.0", "6.1.0"])
def test_the_package_reads_every_line(ruleset: str, tmp_path: Path) -> None:
    parser = pytest.importorskip("mlperf_logging.compliance_checker.mlp_parser", reason="needs mlperf_logging")
    (tmp_path / "run.log").write_text("noise\n" + lines(**REACHED) + "more noise\n")
    parsed, errors = parser.parse_file(str(tmp_path / "run.log"), ruleset=ruleset)
    assert errors == []
    assert [line.key for line in parsed] == [event["key"] for event in events(**REACHED)]
    run_stop = next(line for line in parsed if line.key == "run_stop")
    assert run_stop.value["metadata"]["status"] == "success"
    assert run_stop.timestamp == events(**REACHED)[-1]["time_ms"]


def test_the_package_writes_such_lines_and_knows_the_keys() -> None:
    mllog = pytest.importorskip("mlperf_logging.mllog.mllog", reason="needs mlperf_logging")
    constants = pytest.importorskip("mlperf_logging.mllog.constants", reason="needs mlperf_logging")
    known = {value for name, value in vars(constants).items() if name.isupper()}
    for line, event in zip(lines(**REACHED).splitlines(), events(**REACHED), strict=True):
        assert mllog._encode_log(*event.values()) == line
        # tracked_stats is used by the published results, but is no constant of the package.
        assert event["key"] in known | {"tracked_stats"}
        assert event["event_type"] in known


def test_the_compliance_checker_misses_only_what_is_not_so(tmp_path: Path) -> None:
    """Its common rules of order, number and metadata. That caches were cleared would be untrue; nobody submits."""
    module = pytest.importorskip("mlperf_logging.compliance_checker.mlp_compliance", reason="needs mlperf_logging")
    (tmp_path / "run.log").write_text(lines(**REACHED))
    parsed, _ = module.mlp_parser.parse_file(str(tmp_path / "run.log"), ruleset="5.1.0")
    checker = module.make_checker("training", "5.1.0", quiet=True, werror=False)
    checker.configured_checks(parsed, Path(module.__file__).parent / "training_5.1.0" / "common.yaml")
    assert set(checker.overwritable) == {"cache_clear", "submission_org"}
    assert checker.not_overwritable == []


class TestOrder:
    @pytest.mark.parametrize("arguments", [REACHED, {"finished_steps": 63, "status": "oom", "error": "x"}, {}])
    def test_time_never_runs_backwards(self, arguments: dict[str, Any]) -> None:
        times = [event["time_ms"] for event in events(**arguments)]
        assert times == sorted(times)

    def test_every_interval_is_closed_before_the_next_of_its_kind(self) -> None:
        opened: list[str] = []
        for event in events(**REACHED):
            kind = event["key"].rsplit("_", 1)[0]
            if event["event_type"] == "INTERVAL_START":
                assert kind not in opened
                opened.append(kind)
            elif event["event_type"] == "INTERVAL_END":
                opened.remove(kind)
        assert opened == []


class TestTruth:
    def test_times_are_the_record_s(self) -> None:
        record = make_record(**REACHED)
        found = {event["key"]: event for event in events(**REACHED)}
        began = datetime(2026, 11, 24, 10, tzinfo=timezone.utc).timestamp() * 1000
        assert found["init_start"]["time_ms"] == began
        assert found["run_start"]["time_ms"] == began + 1000 * record["timing"]["setup_seconds"]
        timing = record["timing"]
        wall = timing["training_seconds"] + timing["evaluation_seconds"]
        ran = found["run_stop"]["time_ms"] - found["run_start"]["time_ms"]
        assert ran == pytest.approx(1000 * wall, abs=1)
        assert ran == pytest.approx(1000 * record["target"]["wall_seconds"], abs=1)

    def test_a_time_without_zone_is_utc(self) -> None:
        assert lines(started_at="2026-11-24T10:00:00") == lines(started_at="2026-11-24T10:00:00+00:00")
        with pytest.raises(RecordError, match=r"runs/a/1/record\.json: started_at is 'yesterday', expected a date"):
            lines(started_at="yesterday")

    def test_evaluations_are_the_record_s(self) -> None:
        record = make_record(**REACHED)
        assert values(events(**REACHED), "eval_accuracy") == [point["loss"] for point in record["eval"]["points"]]
        samples = [event["metadata"]["samples_count"] for event in events(**REACHED) if event["key"] == "eval_stop"]
        assert samples == [32 * point["step"] for point in record["eval"]["points"]]

    @pytest.mark.parametrize("arguments", [REACHED, {}, {"finished_steps": 63, "status": "oom", "error": "x"}])
    def test_blocks_add_up_to_the_training_and_evaluations_to_theirs(self, arguments: dict[str, Any]) -> None:
        timing = make_record(**arguments)["timing"]
        for kind, seconds in (("block", timing["training_seconds"]), ("eval", timing["evaluation_seconds"])):
            found = events(**arguments)
            edges = [[event["time_ms"] for event in found if event["key"] == f"{kind}_{edge}"]
                     for edge in ("start", "stop")]  # fmt: skip
            lasted = sum(stop - start for start, stop in zip(*edges, strict=True))
            assert lasted == pytest.approx(1000 * seconds, abs=10)

    def test_throughput_is_in_samples_a_second(self) -> None:
        stats = values(events(**REACHED), "tracked_stats")[0]
        assert stats["throughput"] == pytest.approx(32 / stats["mean_step_seconds"], rel=1e-6)

    def test_an_emulated_device_has_no_throughput(self) -> None:
        assert values(events(on=EMULATED), "tracked_stats") == []
        assert len(values(events(), "tracked_stats")) == 1

    @pytest.mark.parametrize(
        ("arguments", "status"),
        [
            (REACHED, "success"),
            ({}, "success"),
            ({"config": {"target_loss": 1.0}}, "aborted"),
            ({"status": "oom", "error": "x", "finished_steps": 63}, "aborted"),
            ({"status": "interrupted", "finished_steps": 63}, "aborted"),
        ],
    )
    def test_status(self, arguments: dict[str, Any], status: str) -> None:
        assert events(**arguments)[-1]["metadata"]["status"] == status

    def test_a_run_that_failed_in_set_up_has_not_begun(self) -> None:
        keys = [event["key"] for event in events(status="failed", error="x", finished_steps=0,
                                                 timing={"setup_seconds": None})]  # fmt: skip
        assert "init_start" in keys
        assert not {"init_stop", "run_start", "run_stop"} & set(keys)
