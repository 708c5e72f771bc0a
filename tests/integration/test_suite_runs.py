"""A suite end to end: fresh processes, kills on the way, and the verdict on two."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.text import layered_settings
from tests.conftest import Harness
from tests.ranks import shared_zygote
from tests.tiny import TINY

SUITE = """\
description: two small ones, and one that cannot be
workloads:
  - {{name: one, reason: plain, settings: "{one}"}}
  - {{name: two, reason: another, settings: "{two}"}}
  - {{name: odd, reason: its heads do not divide, settings: "{odd}"}}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    file = tmp_path / "pair.yaml"
    file.write_text(SUITE.format(
        one=shlex.join(TINY),
        two=shlex.join(layered_settings(TINY, ["workload.seq_len=64"])),
        odd=shlex.join(layered_settings(TINY, ["model.num_attention_heads=3"])),
    ))  # fmt: skip
    return file


def records(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/[0-9]/record.json")}


def test_killed_three_times_it_yields_what_an_undisturbed_one_does(
    suite: Path, harness: Harness, tmp_path: Path
) -> None:
    command = ["suite", str(suite), "repeats=2"]
    done = harness(*command, "out=whole", timeout=200)
    assert done.returncode == 0, done.stderr
    assert "num_attention_heads" in done.stdout, "the workload that is refused is an entry with its reason"
    for kill in range(3):
        # SIGKILL: nothing can be put in order on the way out.
        with subprocess.Popen(
            [shared_zygote().python, "-m", "harness", *command, "out=killed"], cwd=tmp_path, env=dict(os.environ),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        ) as process:  # fmt: skip
            before, deadline = len(records(tmp_path / "killed")), time.monotonic() + 120
            while len(records(tmp_path / "killed")) == before and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(0.3 * kill)
            os.killpg(process.pid, signal.SIGKILL)
    kept = records(tmp_path / "killed")
    assert 3 <= len(kept) <= 4
    done = harness(*command, "out=killed", timeout=200)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "killed")
    assert found.keys() == records(tmp_path / "whole").keys()
    assert len(found) == 4
    assert {name: found[name] for name in kept} == kept, "finished runs are not repeated"
    losses = [[json.loads((tmp_path / side / name).read_text())["losses"]["train"] for name in sorted(found)]
              for side in ("whole", "killed")]  # fmt: skip
    assert losses[0] == losses[1]
    judged = harness("compare", "whole", "killed", "--out", "report", "--format", "json")
    assert judged.returncode == 0, judged.stderr
    verdict = json.loads(judged.stdout)
    assert [each["verdict"] is None for each in verdict["workloads"]] == [False, False, True]
    assert "could not run 1 of 3: odd (refused)" in verdict["summary"]
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "report" / "two" / "report.html").is_file()
    assert json.loads((tmp_path / "report" / "verdict.json").read_text()) == verdict


def test_a_suite_and_a_run_are_not_compared(suite: Path, harness: Harness) -> None:
    assert harness("suite", str(suite), "repeats=1", "out=suite", timeout=200).returncode == 0
    done = harness("compare", "suite", "suite/one")
    assert done.returncode == 2
    assert "suite holds a suite, and suite/one does not; give two suites, or two runs" in done.stderr
    done = harness("compare", "suite", "suite", "suite")
    assert "found 3 suites, expected a reference and one other" in done.stderr
