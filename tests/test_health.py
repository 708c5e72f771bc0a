"""Heartbeats of runs: their writer, their reader, and the difference between a slow run and a hung one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness import log
from harness.commands import health
from harness.errors import ExitCode, UserError
from harness.training.monitoring import heartbeat as heartbeat_module
from harness.training.monitoring.heartbeat import (
    SETUP_LIMIT_SECONDS,
    Heartbeat,
    HeartbeatState,
    HeartbeatWriter,
    heartbeat_folder,
    read_heartbeats,
    read_start_time,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary files of its own, and in it that of heartbeats."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return heartbeat_folder()


def leave(place: Path, **changes: object) -> HeartbeatState:
    own = os.getpid()
    state = HeartbeatState(own, read_start_time(own) or "", "runs/a", "training", 12, time.monotonic() - 5.0, 600.0)
    state = replace(state, **changes)
    (place / f"{state.pid}.json").write_text(json.dumps(vars(state)))
    return state


class TestWriter:
    def test_silence_is_measured_against_the_longest_pause_so_far(self, tmp_path: Path) -> None:
        now = [100.0]
        heartbeat = Heartbeat(clock=lambda: now[0])
        writer = HeartbeatWriter(heartbeat, timeout_seconds=60.0, folder=tmp_path)
        now[0] = 150.0
        writer.set_run_folder(tmp_path / "run")
        writer.interval_begins("first")
        now[0] += 900.0
        heartbeat.beat()
        # Compilation may take as long, and is no measure of what comes after it.
        assert writer.state().allowed_silence_seconds == SETUP_LIMIT_SECONDS
        assert writer.state().phase == "setting up"
        now[0] += 1.0
        writer.interval_ended()
        assert writer.state().allowed_silence_seconds == 60.0
        for _ in range(2):
            now[0] += 50.0
            heartbeat.beat()
        state = writer.state()
        assert state.allowed_silence_seconds == 500.0
        assert (state.beats, state.last_beat_at, state.phase) == (5, 1151.0, "training")
        # A slow run: every step takes five times the patience. Ten times the slowest is hung.
        now[0] += 300.0
        heartbeat.beat()
        assert not writer.state().is_hung(now[0] + 2999.0)
        assert writer.state().is_hung(now[0] + 3001.0)

    def test_a_thread_writes_when_something_advanced_and_the_end_takes_it_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(heartbeat_module, "WRITE_PERIOD_SECONDS", 0.01)
        writer = HeartbeatWriter(Heartbeat(), timeout_seconds=60.0, folder=tmp_path)
        writer.start()
        [file] = tmp_path.glob("*.json")
        first = json.loads(file.read_text())
        assert (first["phase"], first["beats"]) == ("setting up", 0)
        written = file.stat().st_mtime_ns
        time.sleep(0.1)
        assert file.stat().st_mtime_ns == written
        writer.set_run_folder(tmp_path / "run")
        deadline = time.monotonic() + 10
        while json.loads(file.read_text())["beats"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(file.read_text())["folder"] == str(tmp_path / "run")
        writer.stop()
        assert list(tmp_path.iterdir()) == []

    def test_where_none_can_be_left_the_run_goes_on(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        log.set_up([], {})
        writer = HeartbeatWriter(Heartbeat(), timeout_seconds=60.0, folder=tmp_path / "missing")
        writer.start()
        writer.interval_ended()
        writer.stop()
        assert "harness health" in capsys.readouterr().err


class TestVerb:
    def test_no_run(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert health.main([]) == 0
        assert capsys.readouterr().out == "no run is running\n"

    def test_a_run_that_gets_further(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        leave(folder)
        assert health.main([]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"training: runs/a (pid {os.getpid()}), last progress 5 s ago (limit 600 s)")

    def test_one_that_hangs_also_beside_one_that_does_not(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        parent = os.getppid()
        leave(folder, pid=parent, started=read_start_time(parent), folder="runs/b")
        leave(folder, last_beat_at=time.monotonic() - 601.0)
        assert health.main([]) == ExitCode.NOT_AS_EXPECTED
        said = sorted(capsys.readouterr().out.splitlines())
        assert said[0].startswith("HUNG: runs/a")
        assert said[1].startswith("training: runs/b")

    def test_for_machines(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        leave(folder, allowed_silence_seconds=1.0)
        assert health.main(["--json"]) == ExitCode.NOT_AS_EXPECTED
        [told] = json.loads(capsys.readouterr().out)
        assert told["hung"] is True
        assert 4.9 < told["silent_seconds"] < 60

    @pytest.mark.parametrize("change", [{"started": "1"}, {"pid": 2**22 + 1}])
    def test_what_a_process_that_is_gone_left_behind_is_swept_up(self, change: dict[str, object], folder: Path) -> None:
        # A container that is started again has a process of the same number.
        leave(folder, last_beat_at=time.monotonic() - 10_000.0, **change)
        assert read_heartbeats(folder) == []
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize(("pid", "found"), [(None, 1), (1, 1), (2**22 + 1, 0)])
    def test_where_the_kernel_says_no_start_times(
        self, pid: int | None, found: int, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As macOS, which has no /proc."""
        monkeypatch.setattr(heartbeat_module, "read_start_time", lambda _: None)
        leave(folder, last_beat_at=time.monotonic(), started="", pid=pid or os.getpid())
        assert len(read_heartbeats(folder)) == found

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
    def test_a_file_that_is_no_pulse_is_not_believed(self, text: str, folder: Path) -> None:
        (folder / "1.json").write_text(text)
        assert health.main([]) == 0

    def test_somebody_elses_folder_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        place = tmp_path / f"training-harness-{os.getuid()}"
        place.mkdir()
        place.chmod(0o777)
        assert health.main([]) == 0
        assert "belongs to another user" in capsys.readouterr().out
        place.rmdir()
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
        assert health.main([]) == 0
        assert "belongs to another user" in capsys.readouterr().out

    def test_a_host_without_a_place_for_temporary_files(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def none() -> str:
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.setattr(tempfile, "gettempdir", none)
        assert health.main([]) == 0
        assert "--tmpfs /tmp" in capsys.readouterr().out

    def test_bad_words(self) -> None:
        with pytest.raises(UserError, match="unrecognized arguments: runs/a"):
            health.main(["runs/a"])

    def test_needs_no_torch(self, tmp_path: Path) -> None:
        code = (
            "import sys; from harness.__main__ import main; code = main(['health']); "
            "assert not {'torch', 'hydra', 'omegaconf', 'rich'} & set(sys.modules); sys.exit(code)"
        )
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
        assert (done.returncode, done.stdout) == (0, "no run is running\n"), done.stderr
