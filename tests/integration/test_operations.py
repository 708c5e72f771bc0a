"""A run as operations see it: logs that a collector can read, metrics, curves, health, and no secrets."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.text import layered_settings
from tests.conftest import Harness
from tests.ranks import shared_zygote
from tests.tiny import TINY
from tests.zygote import Forked

LONG = ("workload.steps=100000", "workload.interval_steps=5")


def lines(text: str) -> list[dict[str, Any]]:
    """Every line has to be an object."""
    return [json.loads(line) for line in text.splitlines()]


class TestJsonLogs:
    def test_a_run_that_ends_well(self, harness: Harness) -> None:
        done = harness(*TINY, "log=json", "out=run")
        assert (done.returncode, done.stdout) == (0, "")
        said = lines(done.stderr)
        assert said[0]["message"] == "run began"
        assert said[-1]["message"] == "run ended"
        assert said[-1]["tokens_per_second"] > 0
        assert {line["level"] for line in said} == {"info"}
        assert said[0]["workload_id"] == said[-1]["workload_id"]

    @pytest.mark.parametrize(
        ("argv", "code"),
        [
            (("workload.stps=5",), 2),
            (("trian",), 2),
            (("backend=nothing",), 2),
            (("workload.learning_rate=1e30", "out=run"), 5),
        ],
    )
    def test_one_that_does_not(self, argv: tuple[str, ...], code: int, harness: Harness) -> None:
        done = harness(*argv[:1], *TINY, *argv[1:], "log=json")
        assert done.returncode == code
        last = lines(done.stderr)[-1]
        assert (last["level"], last["exit_code"]) == ("error", code)
        assert done.stdout == ""

    def test_the_summary_alone_is_left_out_by_a_higher_level(self, harness: Harness) -> None:
        done = harness(*TINY, "log=json", "log_level=warning", "out=run")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_for_people_a_higher_level_leaves_the_summary(self, harness: Harness) -> None:
        done = harness(*TINY, "log_level=warning", "out=run")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("run run")

    def test_repeats_each_with_their_own(self, harness: Harness) -> None:
        done = harness(*TINY, "log=json", "repeats=2", "out=runs", timeout=200)
        assert done.returncode == 0, done.stderr
        messages = [line["message"].split(":")[0] for line in lines(done.stderr)]
        assert messages.count("run ended") == 2
        assert "repeat 2 of 2" in messages

    def test_ranks(self, harness: Harness) -> None:
        done = harness("torchrun", "--standalone", "--nproc-per-node=2", *TINY, "parallel=ddp", "log=json",
                       "workload.global_batch_size=4", "workload.micro_batch_size=1", "out=run",
                       timeout=200)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert {line.get("rank") for line in lines(done.stderr)} == {0}


class TestSecrets:
    def test_are_in_nothing_that_is_written_or_said(self, harness: Harness, tmp_path: Path) -> None:
        secret = "s3cr3t-0123456789"
        names = ("HF_TOKEN", "TORCH_ACCESS_KEY", "PYTORCH_PASSWORD", "TORCH_API_KEY", "TORCH_PRIVATE_KEY",
                 "MALLOC_SECRET")  # fmt: skip
        done = harness(*TINY, "log=json", "--metrics-file", "harness.prom", "tensorboard=true", "out=run",
                       env=dict.fromkeys(names, secret))  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert secret not in done.stdout + done.stderr
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or secret.encode() not in path.read_bytes(), path


class TestPermissions:
    @pytest.mark.parametrize("mask", [0o022, 0o077])
    def test_the_users_own_mask_and_nothing_executable(self, mask: int, harness: Harness, tmp_path: Path) -> None:
        done = harness(*TINY, "checkpoint.every=3", "--metrics-file=harness.prom", "out=run",
                       preexec_fn=lambda: os.umask(mask))  # fmt: skip
        assert done.returncode == 0, done.stderr
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
        for path, mode in modes.items():
            assert mode & mask == 0, (path, oct(mode))
            assert path.is_dir() or mode & 0o111 == 0, (path, oct(mode))
            assert mode & 0o7002 == 0, (path, oct(mode))


class TestTelemetry:
    def test_why_there_is_none_is_in_the_record(self, harness: Harness, tmp_path: Path) -> None:
        done = harness(*TINY, "telemetry=false", "out=run")
        assert done.returncode == 0, done.stderr
        told = json.loads((tmp_path / "run" / "record.json").read_text())["telemetry"]
        assert (told["method"], told["reason"], told["measured_joules"]) == ("none", "telemetry=false", None)

    def test_a_cpu_that_counts_its_energy(self, tmp_path: Path) -> None:
        zone = tmp_path / "powercap" / "intel-rapl:0"
        zone.mkdir(parents=True)
        for name, value in (("name", "package-0"), ("energy_uj", "0"), ("max_energy_range_uj", "1000000000")):
            (zone / name).write_text(value)
        # 50 W by a counter that is advanced beside the run; on a busy host a reading can come half a second late.
        program = (
            "import sys, threading, time\n"
            "from functools import partial\n"
            "from pathlib import Path\n"
            "import harness.backends.cpu as cpu, harness.backends.rapl as rapl\n"
            "folder = Path(sys.argv[1])\n"
            "rapl.Rapl.period_seconds = 0.2\n"
            "cpu.open_rapl = partial(rapl.open_rapl, folder)\n"
            "def count():\n"
            "    began = time.perf_counter()\n"
            "    while True:\n"
            "        part = folder / 'part'\n"
            "        part.write_text(str(int(50e6 * (time.perf_counter() - began))))\n"
            "        part.replace(folder / 'intel-rapl:0' / 'energy_uj')\n"
            "        time.sleep(0.002)\n"
            "threading.Thread(target=count, daemon=True).start()\n"
            "from harness.__main__ import main\n"
            "sys.exit(main(sys.argv[2:]))\n"
        )
        # Long intervals: what is written between the short ones of this tiny model takes as long as they do.
        own = ["workload.steps=1000", "workload.interval_steps=500", "workload.eval_every=0", "out=run"]
        argv = [*layered_settings(TINY, own), "--metrics-file", "h.prom"]
        command = [sys.executable, "-c", program, str(tmp_path / "powercap"), *argv]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / "run" / "record.json").read_text())
        told = record["telemetry"]
        assert (told["method"], told["source"], told["reason"]) == ("counter", "RAPL", None)
        assert told["mean_power_watts"] == pytest.approx(50.0, rel=0.2)
        tokens = record["timing"]["measured_steps"] * record["timing"]["tokens_per_step"]
        assert told["joules_per_token"] == pytest.approx(told["measured_joules"] / tokens)
        assert "mJ a token" in done.stdout


class TestMetricsFile:
    def test_ends_as_not_running_also_when_interrupted(self, tmp_path: Path) -> None:
        with started(tmp_path, *LONG, "--metrics-file", "harness.prom", "out=run") as process:
            wait_for(tmp_path / "run" / "steps.jsonl", process)
            assert "harness_running 1.0" in (tmp_path / "harness.prom").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
        text = (tmp_path / "harness.prom").read_text()
        assert "harness_running 0.0" in text
        assert 'run="run"' in text

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (("--metrics-file",), "--metrics-file PATH.prom"),
            (("--metrics-file", "metrics.txt"), "ending in .prom"),
            (("--metrics-file=/proc/no/x.prom",), "cannot be written"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_begins(
        self, argv: tuple[str, ...], said: str, harness: Harness, tmp_path: Path
    ) -> None:
        done = harness(*TINY, "out=run", *argv)
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert said in line
        assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_every_step(harness: Harness, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = harness(*TINY, "tensorboard=true", "out=run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    curve = events.Scalars("loss/train")
    assert [point.step for point in curve] == list(range(1, len(record["losses"]["train"]) + 1))
    assert [point.value for point in curve] == pytest.approx(record["losses"]["train"])
    assert events.Scalars("speed/tokens_per_second")


def started(folder: Path, *argv: str) -> Forked:
    return shared_zygote().start(["harness", *TINY, *argv], folder, {**os.environ, "TMPDIR": str(folder)})


def wait_for(file: Path, process: Forked) -> None:
    deadline = time.monotonic() + 60
    while not (file.is_file() and file.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestHealth:
    @pytest.fixture
    def process(self, tmp_path: Path) -> Iterator[Forked]:
        with started(tmp_path, *LONG, "parallel.timeout_seconds=3", "out=run") as process:
            wait_for(tmp_path / "run" / "steps.jsonl", process)
            yield process
            process.kill()

    def test_a_run_that_gets_further_one_that_is_frozen_and_one_that_is_gone(
        self, process: Forked, harness: Harness, tmp_path: Path
    ) -> None:
        place = {"TMPDIR": str(tmp_path)}
        done = harness("health", env=place)
        assert done.returncode == 0, done.stdout
        assert f"run (pid {process.pid})" in done.stdout
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while (done := harness("health", env=place)).returncode == 0:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert done.returncode == 1
        assert done.stdout.startswith("HUNG: run")
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        done = harness("health", env=place)
        assert (done.returncode, done.stdout) == (0, "no run is running\n")

    def test_a_run_that_was_killed_leaves_no_trace(self, process: Forked, harness: Harness, tmp_path: Path) -> None:
        process.kill()
        process.wait()
        done = harness("health", env={"TMPDIR": str(tmp_path)})
        assert (done.returncode, done.stdout) == (0, "no run is running\n")
