"""The lock of a run's folder: one process holds it, also over NFS and at the same moment; without it none resumes."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.composition import load
from harness.config import Config
from harness.errors import ConfigError, RunFailed, UserError
from harness.layout import Layout
from harness.records import folder_lock
from harness.records.attempts import begin_attempt
from harness.records.folder_lock import FolderLock, is_locked
from harness.records.run_folder import CONFIG_FILE, acquire_run_folder
from tests.tiny import TINY

RESUME = ("checkpoint.every=2", "resume=auto")


@cache
def composed(overrides: tuple[str, ...]) -> Config:
    return load([*TINY, "out=unused", *overrides])


def config(folder: Path, *overrides: str) -> Config:
    return replace(composed(overrides), out=str(folder))


def flock_of_nfs(descriptor: int, operation: int) -> None:
    """Lock as NFS does: exclusively only what is open for writing."""
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    real_flock(descriptor, operation)


real_flock = fcntl.flock


def test_holds_on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock.fcntl, "flock", flock_of_nfs)
    with (
        acquire_run_folder(config(tmp_path / "run", *RESUME), "x"),
        pytest.raises(ConfigError, match="is locked by another process"),
    ):
        acquire_run_folder(config(tmp_path / "run", *RESUME), "x")
    with acquire_run_folder(config(tmp_path / "run", *RESUME), "x") as again:
        assert again.resuming


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_without_locks_no_run_is_resumed(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)
    with pytest.raises(ConfigError, match="is on a file system without locks"):
        acquire_run_folder(config(tmp_path / "run", *RESUME), "x")
    assert list((tmp_path / "run").iterdir()) == []
    # A run that is not resumed has its folder to itself, since it has created config.yaml.
    with acquire_run_folder(config(tmp_path / "run", "checkpoint.every=2"), "x"):
        pass
    with pytest.raises(ConfigError, match="still running or was interrupted"):
        acquire_run_folder(config(tmp_path / "run"), "x")
    with pytest.raises(ConfigError, match="is on a file system without locks"):
        acquire_run_folder(config(tmp_path / "run", *RESUME), "x")
    assert (tmp_path / "run" / CONFIG_FILE).stat().st_size > 0


@pytest.mark.parametrize("resume", [(), RESUME])
def test_deleting_the_locked_file_frees_nothing(resume: tuple[str, ...], tmp_path: Path) -> None:
    with acquire_run_folder(config(tmp_path / "run", *RESUME), "x"):
        begin_attempt(tmp_path / "run", from_step=0, layout=Layout(), host=None)
        (tmp_path / "run" / CONFIG_FILE).unlink()
        with pytest.raises(ConfigError, match=r"holds attempts\.json"):
            acquire_run_folder(config(tmp_path / "run", *resume), "x")
        assert not (tmp_path / "run" / CONFIG_FILE).exists()


def test_a_file_replaced_while_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("a: 1\n")

    def flock(descriptor: int, operation: int) -> None:
        file.rename(tmp_path / "old")
        file.write_text("a: 2\n")
        real_flock(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr(folder_lock.fcntl, "flock", flock)
        with pytest.raises(OSError, match="was replaced"):
            FolderLock(file, new=False)
    assert file.read_text() == "a: 2\n"
    FolderLock(file, new=False).release()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_folder(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with acquire_run_folder(config(tmp_path / "run", *RESUME), "x"):
        pass
    opened = os.open

    def open_read_only(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        if flags & os.O_RDWR and not flags & os.O_EXCL:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *arguments, **keywords)

    monkeypatch.setattr(folder_lock.os, "open", open_read_only)
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be opened for writing: (Permission|Read-only)"):
        acquire_run_folder(config(tmp_path / "run", *RESUME), "x")


def test_a_config_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / CONFIG_FILE)
    with pytest.raises(ConfigError, match="not a regular file"):
        acquire_run_folder(config(tmp_path, *RESUME), "x")


def test_a_start_that_was_killed_at_once_starts_again(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).touch()
    with acquire_run_folder(config(tmp_path, *RESUME), "x") as folder:
        assert not folder.resuming
    assert "hidden_size: 32" in (tmp_path / CONFIG_FILE).read_text()


def test_a_full_disk_leaves_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(folder_lock.os, "write", full)
        with pytest.raises(RunFailed, match=r"config\.yaml: cannot be written: No space left"):
            acquire_run_folder(config(tmp_path / "run"), "x")
    assert list((tmp_path / "run").iterdir()) == []
    acquire_run_folder(config(tmp_path / "run"), "x").__exit__()


class TestProcesses:
    PROGRAM = """
import os, sys, time
from harness.composition import load
from harness.records.run_folder import acquire_run_folder
folder = acquire_run_folder(load(sys.argv[1:]), "x")
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
"""

    @pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "folder.__exit__(); time.sleep(60)"])
    def test_a_forked_process_does_not_keep_the_lock(self, end: str, tmp_path: Path) -> None:
        argv = [*TINY, f"out={tmp_path / 'run'}", *RESUME]
        with subprocess.Popen([sys.executable, "-c", self.PROGRAM + end, *argv], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            child = int(process.stdout.readline())
            try:
                if "kill" in end:
                    assert process.wait(30) == -9
                deadline = time.monotonic() + 10
                while is_locked(tmp_path / "run" / CONFIG_FILE) and time.monotonic() < deadline:
                    time.sleep(0.02)
                with acquire_run_folder(config(tmp_path / "run", *RESUME), "x") as again:
                    assert again.resuming
            finally:
                os.kill(child, signal.SIGKILL)
                process.kill()

    def test_released_also_if_another_descriptor_is_open(self, tmp_path: Path) -> None:
        """As in a process that C code has forked."""
        lock = FolderLock(tmp_path / "a", new=True)
        duplicate = os.dup(lock._descriptor)
        assert is_locked(tmp_path / "a")
        lock.release()
        assert not is_locked(tmp_path / "a")
        os.close(duplicate)

    @pytest.mark.parametrize("resume", [(), RESUME], ids=["new", "resume"])
    def test_of_four_that_start_at_once_one_gets_the_folder(self, resume: tuple[str, ...], tmp_path: Path) -> None:
        fork = multiprocessing.get_context("fork")
        settings = config(tmp_path, *resume)
        for number in range(30):
            barriers = fork.Barrier(4), fork.Barrier(4)
            answers = fork.SimpleQueue()
            settings.out = str(tmp_path / str(number))
            workers = [fork.Process(target=_compete, args=(settings, *barriers, answers)) for _ in range(4)]
            for worker in workers:
                worker.start()
            found = [answers.get() for _ in workers]
            for worker in workers:
                worker.join()
            assert found.count("acquired") == 1, found
            assert all(str(tmp_path / str(number)) in one for one in found if one != "acquired"), found


def _compete(settings: Config, begin: Any, end: Any, answers: Any) -> None:
    begin.wait()
    try:
        acquire_run_folder(settings, "x")
        answers.put("acquired")
    except UserError as error:
        answers.put(str(error))
    # Whoever has the lock holds it until all have tried.
    end.wait()


def test_a_run_that_was_killed_at_once_can_begin_again(tmp_path: Path) -> None:
    with acquire_run_folder(config(tmp_path / "run", "checkpoint.every=2"), "x"):
        pass
    with pytest.raises(ConfigError) as error:
        acquire_run_folder(config(tmp_path / "run"), "x")
    assert "steps.jsonl" not in str(error.value), "there is none"
    assert "add resume=auto (and checkpoint.every, if it is not set) to begin it again" in str(error.value)
    with acquire_run_folder(config(tmp_path / "run", *RESUME), "x"):
        pass


def test_a_run_without_checkpoints_can_begin_again_with_them(tmp_path: Path) -> None:
    with acquire_run_folder(config(tmp_path / "run"), "x"):
        pass
    with pytest.raises(ConfigError, match=r"add resume=auto \(and checkpoint\.every, if it is not set\) to begin"):
        acquire_run_folder(config(tmp_path / "run"), "x")
    with acquire_run_folder(config(tmp_path / "run", *RESUME), "x"):
        pass


def test_an_emptied_config_is_named(tmp_path: Path) -> None:
    with acquire_run_folder(config(tmp_path / "run", *RESUME), "x"):
        pass
    (tmp_path / "run" / CONFIG_FILE).write_text("")
    (tmp_path / "run" / "steps.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"whose config\.yaml is missing or empty; restore that file"):
        acquire_run_folder(config(tmp_path / "run", *RESUME), "x")
    assert (tmp_path / "run" / "steps.jsonl").read_text() == "{}\n"
