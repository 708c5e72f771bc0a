"""Runs side by side: fresh processes, interleaved, resumed after an interruption, and a report at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.text import layered_settings
from tests.conftest import Harness
from tests.ranks import shared_zygote
from tests.tiny import TINY


def words(*settings: str) -> str:
    """Return a run's command line."""
    return " ".join(layered_settings(TINY, settings))


COMMAND = ("compare", "--run", words(), "--run", words("workload.micro_batch_size=4"),
           "--repeats", "2", "--label", "one", "--label", "two", "--out", "out")  # fmt: skip


def began(record: Path) -> str:
    return json.loads(record.read_text())["environment"]["command"][-1]


def test_runs_every_side_and_writes_the_report(harness: Harness, tmp_path: Path) -> None:
    done = harness(*COMMAND, timeout=200)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert sorted(plan["order"]) == [0, 0, 1, 1]
    records = sorted((tmp_path / "out").glob("*/*/record.json"))
    assert [str(path.relative_to(tmp_path / "out").parent) for path in records] == [
        "other/1", "other/2", "reference/1", "reference/2",
    ]  # fmt: skip
    for name in ("report.html", "report.md", "verdict.json"):
        assert (tmp_path / "out" / name).is_file()
    assert "one" in done.stdout
    assert "run 4 of 4 done" in done.stderr
    # The same command again has nothing left to run, and says the same.
    before = {path: path.stat().st_mtime_ns for path in records}
    again = harness(*COMMAND)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in records} == before
    assert again.stdout == done.stdout
    # Another comparison does not get into this folder.
    other = harness(*(word if word != "2" else "3" for word in COMMAND))
    assert other.returncode == 2
    assert "holds another comparison (2 repeats of" in other.stderr


def test_goes_on_after_an_interruption(harness: Harness, tmp_path: Path) -> None:
    with subprocess.Popen(
        [shared_zygote().python, "-m", "harness", *COMMAND],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").glob("*/*/record.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        # A run takes about half a second.
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in stderr
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/record.json")
            if json.loads(path.read_text())["status"] == "ok"}  # fmt: skip
    assert 1 <= len(kept) < 4
    done = harness(*COMMAND, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list((tmp_path / "out").glob("*/*/record.json"))) == 4


def test_a_failing_run_ends_it_with_its_reason(harness: Harness, tmp_path: Path) -> None:
    diverging = "workload.learning_rate=1e30"
    sides = (words(diverging), words(diverging, "backend.threads=null"))
    done = harness("compare", "--run", sides[0], "--run", sides[1], "--out", "out")
    assert done.returncode == 5
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "ended with exit code 5" in line
    assert "became" in line
    # Given again, the command makes that run again before any other.
    again = harness("compare", "--run", sides[0], "--run", sides[1], "--out", "out")
    assert again.returncode == 5
    assert [line] == [line for line in again.stderr.splitlines() if line.startswith("error: ")]
    assert len(list((tmp_path / "out").glob("interrupted/*/record.json"))) == 1
    assert len(list((tmp_path / "out").glob("*/*/record.json"))) == 2


@pytest.mark.parametrize("content", ["something of mine", "plan"])
def test_a_folder_that_is_not_a_comparisons_is_left_alone(content: str, harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / ("plan.json" if content == "plan" else "thesis.txt")
    file.write_text("{")
    done = harness(*COMMAND)
    assert done.returncode == 2
    assert "choose another --out" in done.stderr
    assert file.read_text() == "{"
