"""The command `peak`: a record of what the device can do, and runs that are held against it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.records.peak import COLLECTIVES
from tests.conftest import PROJECT, Harness
from tests.ranks import Ended, end_ranks, record, run_harness, start_ranks
from tests.tiny import TINY

QUICK = "quick peak"


def peaks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("runs/peaks/*/peak.json"))]


def run_peak(folder: Path, *argv: str) -> Ended:
    return run_harness(folder, "peak", "backend=cpu", "backend.threads=1", *argv, fault=QUICK)


@pytest.fixture
def measured(tmp_path: Path) -> dict[str, Any]:
    ended = run_peak(tmp_path)
    assert ended.code == 0, ended.err
    assert "TFLOP/s best" in ended.out
    [peak] = peaks(tmp_path)
    return peak


def test_follows_its_schema(measured: dict[str, Any]) -> None:
    jsonschema.validate(measured, json.loads((PROJECT / "harness" / "schemas" / "peak.schema.json").read_text()))
    assert measured["matrix_products"]["fp32"]["best_flops"] > 0
    assert measured["collectives"] is None
    assert measured["host_copies"] is None


def test_a_run_is_held_against_it(measured: dict[str, Any], tmp_path: Path) -> None:
    ended = run_harness(tmp_path, *TINY, "out=run")
    assert ended.code == 0, ended.err
    found = record(tmp_path / "run")
    assert found["measured_peak"]["content_sha256"] == measured["content_sha256"]
    best = measured["matrix_products"]["fp32"]["best_flops"]
    used = found["utilization"]
    assert used["measured_peak_flops"] == best
    assert used["mfu_of_measured_peak"] == pytest.approx(used["achieved_flops"] / best)
    assert used["mfu"] is None
    speed = found["timing"]["tokens_per_second"]
    assert used["achieved_flops"] == pytest.approx(speed * used["flops_per_token"])
    assert "of the measured fp32 peak" in " ".join(ended.out.split())


def test_another_number_of_threads_is_another_device(measured: dict[str, Any], tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    ended = run_harness(tmp_path, *TINY, "backend.threads=2", "out=run")
    assert ended.code == 0, ended.err
    assert record(tmp_path / "run")["measured_peak"] is None


def test_a_damaged_one_is_named(measured: dict[str, Any], tmp_path: Path) -> None:
    [file] = tmp_path.glob("runs/peaks/*/peak.json")
    file.write_text(file.read_text().replace('"kind": "peak"', '"kind": "peak_dir"'))
    ended = run_harness(tmp_path, *TINY, "out=run")
    assert ended.code == 2
    assert "peak.json: not a peak record of this harness; move it elsewhere" in ended.errors[0]


def test_several_processes_measure_what_lies_between_them(tmp_path: Path) -> None:
    argv = ["peak", "backend=cpu", "parallel=ddp"]
    first, second = end_ranks(start_ranks(2, argv, tmp_path, fault=QUICK))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert second.out == second.err == ""
    [peak] = peaks(tmp_path)
    jsonschema.validate(peak, json.loads((PROJECT / "harness" / "schemas" / "peak.schema.json").read_text()))
    assert peak["world_size"] == 2
    found = peak["collectives"]
    assert (found["ranks_per_host"], found["asynchronous"], found["missing_reasons"]) == (2, False, {})
    for name in COLLECTIVES:
        sweep = found[name]["sweep"]
        assert [entry["bytes"] for entry in sweep] == [1 << 10, 1 << 12, 1 << 14]
        for entry in sweep:
            assert entry["algorithm_bytes_per_second"] == pytest.approx(entry["bytes"] / entry["seconds"])
        assert found[name]["latency_seconds"] == sweep[0]["seconds"]
    assert "collectives of 2 ranks" in first.out
    assert "send/receive" in first.out


def test_a_collective_that_the_library_lacks_is_null_with_its_reason(tmp_path: Path) -> None:
    first, second = end_ranks(start_ranks(2, ["peak", "backend=cpu", "parallel=ddp"], tmp_path, fault="no all-to-all"))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    [peak] = peaks(tmp_path)
    jsonschema.validate(peak, json.loads((PROJECT / "harness" / "schemas" / "peak.schema.json").read_text()))
    assert peak["collectives"]["all_to_all"] is None
    assert peak["collectives"]["missing_reasons"] == {"all_to_all": "ProcessGroupFake does not support alltoall_base"}
    assert peak["collectives"]["send_receive"]["latency_seconds"] > 0
    assert "all-to-all: not measured: ProcessGroupFake does not support" in first.out


def test_a_rank_that_dies_ends_all_with_one_line(tmp_path: Path) -> None:
    started = start_ranks(2, ["peak", "backend=cpu", "parallel=ddp"], tmp_path, fault="killed among collectives")
    first, second = end_ranks(started)
    assert second.code == -9
    assert first.code != 0
    assert len(first.errors) == 1
    assert "rank 1" in first.errors[0]
    assert "Traceback" not in first.err
    assert peaks(tmp_path) == []


def test_bad_words_are_said_by_every_process_without_a_launcher(tmp_path: Path) -> None:
    first, second = end_ranks(start_ranks(2, ["peak", "backend=cuda", "parallel=ddp"], tmp_path, fault=QUICK))
    assert (first.code, second.code) == (3, 3)
    assert len(first.errors) == 1
    # No launcher stopped it, so that there might have been no other one to say it.
    assert second.errors == [first.errors[0].replace("rank 0: ", "rank 1: ")]


def test_nothing_is_overwritten(measured: dict[str, Any], tmp_path: Path) -> None:
    for code in (0, 2):
        ended = run_peak(tmp_path, "out=mine")
        assert ended.code == code, ended.err
    assert "out: mine already holds a peak record" in ended.errors[0]
    assert "matrix products" not in ended.err, "it was found out before anything was measured"


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (("backend=cuda",), 3, "backend cuda is not available here"),
        (("backend=none",), 2, "backend"),
        (("backend.thread=1",), 2, "backend.thread"),
    ],
)
def test_bad_usage(argv: tuple[str, ...], code: int, said: str, harness: Harness) -> None:
    done = harness("peak", *argv)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_help(harness: Harness) -> None:
    done = harness("peak", "--help")
    assert done.returncode == 0
    assert "harness peak backend=NAME" in done.stdout
