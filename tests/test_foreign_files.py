"""Files of other programs survive wherever a run writes, renames or deletes, or are an error that names them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from harness.commands.kept_runs import INTERRUPTED_FOLDER, keep_interrupted
from harness.composition import load
from harness.errors import ConfigError, RunFailed
from harness.records.files import archive_file, check_report_folder, write_atomically
from harness.records.run_folder import acquire_run_folder
from harness.training import checkpoint
from harness.training.checkpoint import CheckpointStore
from harness.training.checkpoint_files import MANIFEST
from harness.training.distributed.collectives import Ranks
from harness.training.monitoring.prometheus import check_prometheus_file
from tests.conftest import Harness
from tests.tiny import TINY

TENSORS = {"model.weight": torch.ones(2)}
# Names similar to those of checkpoints, and files that are common on a scratch disk.
FOREIGN_FILES = (
    ".ssh/id_ed25519",
    ".DS_Store",
    ".nfs000001",
    "lost+found/.keep",
    ".partial-00000005/notes.txt",
    ".partial-00000005-0a1b2c3d/notes.txt",
    ".removed-00000005-0a1b2c3d/__0_0.distcp/mine",
    ".partial-notes",
    "step-00000001/weights.pt",
    "step-00000002/manifest.json",
    "step-3/manifest.json",
    "best/model.pt",
)


def checkpoints(folder: Path, workload_id: str = "0123456789abcdef", keep: int = 1) -> CheckpointStore:
    return CheckpointStore(folder, Ranks(), workload_id=workload_id, keep=keep)


def plant(folder: Path) -> dict[Path, str]:
    for name in FOREIGN_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"precious {name}")
    return contents(folder)


def contents(folder: Path) -> dict[Path, str]:
    return {path: path.read_text(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file()}


class TestCheckpoints:
    @pytest.mark.parametrize("linked", [False, True])
    def test_foreign_files_survive_every_save(self, linked: bool, tmp_path: Path) -> None:
        scratch = tmp_path / "scratch"
        before = plant(scratch)
        run = tmp_path / "run"
        run.mkdir()
        if linked:
            (run / "checkpoints").symlink_to(scratch)
        else:
            scratch.rename(run / "checkpoints")
            before = {run / "checkpoints" / path.relative_to(scratch): text for path, text in before.items()}
        store = checkpoints(run)
        for step in (10, 20, 30):
            store.save(step, TENSORS, {})
        assert before.items() <= contents(scratch if linked else run / "checkpoints").items()
        assert not (run / "checkpoints" / "step-00000020").exists()

    def test_leftovers_of_a_crash_are_deleted(self, tmp_path: Path) -> None:
        for name in (".partial-00000005-0a1b2c3d", ".removed-00000002-0a1b2c3d"):
            (tmp_path / "checkpoints" / name).mkdir(parents=True)
            (tmp_path / "checkpoints" / name / "__0_0.distcp").write_bytes(b"half")
        checkpoints(tmp_path).save(10, TENSORS, {})
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]

    @pytest.mark.parametrize("kind", ["folder", "file in it"])
    def test_no_link_is_followed(self, kind: str, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.mkdir()
        (victim / "__0_0.distcp").write_text("precious")
        stale = tmp_path / "run" / "checkpoints" / ".partial-00000005-0a1b2c3d"
        stale.parent.mkdir(parents=True)
        if kind == "folder":
            stale.symlink_to(victim)
        else:
            stale.mkdir()
            (stale / "__0_0.distcp").symlink_to(victim / "__0_0.distcp")
        checkpoints(tmp_path / "run").save(10, TENSORS, {})
        assert (victim / "__0_0.distcp").read_text() == "precious"
        assert os.path.lexists(stale)

    @pytest.mark.parametrize("foreign", ["file", "folder", "link", "of another workload"])
    def test_a_taken_name_is_an_error(self, foreign: str, tmp_path: Path) -> None:
        path = tmp_path / "checkpoints" / "step-00000010"
        path.parent.mkdir()
        if foreign == "file":
            path.write_text("precious")
        elif foreign == "folder":
            path.mkdir()
            (path / "weights.pt").write_text("precious")
        elif foreign == "link":
            checkpoints(tmp_path).save(10, TENSORS, {})
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        else:
            checkpoints(tmp_path, workload_id="f" * 16).save(10, TENSORS, {})
        before = contents(tmp_path)
        with pytest.raises(RunFailed, match="step-00000010 exists already and is not a checkpoint of this run"):
            checkpoints(tmp_path).save(10, TENSORS, {})
        assert before.items() <= contents(tmp_path).items()

    def test_those_of_another_workload_are_neither_counted_nor_deleted(self, tmp_path: Path) -> None:
        checkpoints(tmp_path, workload_id="f" * 16).save(1, TENSORS, {})
        store = checkpoints(tmp_path, keep=2)
        for step in (10, 20, 30):
            store.save(step, TENSORS, {})
        left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert left == ["step-00000001", "step-00000020", "step-00000030"]

    def test_a_foreign_file_within_a_checkpoint_keeps_it(self, tmp_path: Path) -> None:
        store = checkpoints(tmp_path)
        store.save(10, TENSORS, {})
        note = tmp_path / "checkpoints" / "step-00000010" / "README"
        note.write_text("the best one")
        store.save(20, TENSORS, {})
        assert note.read_text() == "the best one"
        assert (note.parent / MANIFEST).exists()

    def test_a_foreign_file_that_appears_during_deletion(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / ".removed-00000010-0a1b2c3d"
        folder.mkdir()
        (folder / MANIFEST).write_text("{}")
        unlink = os.unlink

        def unlink_and_write(path: str) -> None:
            unlink(path)
            (folder / "notes.txt").write_text("precious")

        monkeypatch.setattr(checkpoint.os, "unlink", unlink_and_write)
        checkpoint._delete(folder)
        assert contents(folder) == {folder / "notes.txt": "precious"}


class TestRunFolder:
    def test_no_link_is_written_through(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("precious")
        (tmp_path / ".record.json.partial").symlink_to(tmp_path / "victim")
        (tmp_path / "record.json").symlink_to(tmp_path / "victim")
        write_atomically(tmp_path / "record.json", "{}\n")
        assert (tmp_path / "victim").read_text() == "precious"
        assert (tmp_path / "record.json").read_text() == "{}\n"
        assert not (tmp_path / "record.json").is_symlink()

    @pytest.mark.parametrize("name", ["attempts.json", "hung.txt", "profile", "tensorboard", "tracker"])
    def test_files_with_the_names_of_a_run_are_an_error(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text("precious")
        with pytest.raises(ConfigError, match=f"holds {name}, which a run would overwrite"):
            acquire_run_folder(load([*TINY, f"out={tmp_path}"]), "cpu-tiny")
        assert (tmp_path / name).read_text() == "precious"

    def test_checkpoints_without_their_run_are_an_error(self, tmp_path: Path) -> None:
        checkpoints(tmp_path).save(10, TENSORS, {})
        with pytest.raises(ConfigError, match="holds checkpoints of another run"):
            acquire_run_folder(load([*TINY, f"out={tmp_path}", "checkpoint.every=2", "resume=auto"]), "cpu-tiny")

    def test_other_files_do_not_matter(self, tmp_path: Path) -> None:
        (tmp_path / "slurm-17.out").write_text("precious")
        (tmp_path / "checkpoints").mkdir()
        with acquire_run_folder(load([*TINY, f"out={tmp_path}", "checkpoint.every=2"]), "cpu-tiny") as acquired:
            assert acquired.path == tmp_path
        assert (tmp_path / "slurm-17.out").read_text() == "precious"

    def test_a_link_to_a_disk_that_is_not_mounted(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").symlink_to(tmp_path / "scratch" / "run")
        with pytest.raises(ConfigError, match=r"checkpoints is a link to .*scratch/run, which does not exist; mount"):
            acquire_run_folder(load([*TINY, f"out={tmp_path}", "checkpoint.every=2", "resume=auto"]), "cpu-tiny")

    @pytest.mark.parametrize("resume", [[], ["checkpoint.every=2", "resume=auto"]])
    @pytest.mark.parametrize("exists", [False, True])
    def test_a_config_that_is_a_link_is_not_written(self, exists: bool, resume: list[str], tmp_path: Path) -> None:
        if exists:
            (tmp_path / "victim").write_text("")
        (tmp_path / "config.yaml").symlink_to(tmp_path / "victim")
        with pytest.raises(ConfigError, match=r"is a link|holds a run"):
            acquire_run_folder(load([*TINY, f"out={tmp_path}", *resume]), "cpu-tiny")
        assert (tmp_path / "config.yaml").is_symlink()
        assert (tmp_path / "victim").exists() == exists
        assert not exists or (tmp_path / "victim").read_text() == ""

    def test_archive_file_takes_a_free_name(self, tmp_path: Path) -> None:
        (tmp_path / "record.json").write_text("third")
        (tmp_path / "record-1.json").write_text("first")
        (tmp_path / "record-2.json").symlink_to(tmp_path / "nowhere")
        assert archive_file(tmp_path / "record.json") == tmp_path / "record-3.json"
        assert (tmp_path / "record-1.json").read_text() == "first"

    @pytest.mark.slow
    def test_steps_before_the_first_checkpoint_are_kept(self, tmp_path: Path, harness: Harness) -> None:
        argv = [*TINY, "out=run", "checkpoint.every=6", "resume=auto"]
        assert harness(*argv, "workload.steps=7").returncode == 0
        rows = (tmp_path / "run" / "steps.jsonl").read_text()
        # As after a kill before the first checkpoint: neither a record nor a complete checkpoint.
        (tmp_path / "run" / "record.json").unlink()
        for path in (tmp_path / "run" / "checkpoints").iterdir():
            checkpoint._remove(path)
        assert harness(*argv, "workload.steps=7").returncode == 0
        assert (tmp_path / "run" / "steps-1.jsonl").read_text() == rows


def test_an_interrupted_run_of_a_comparison_is_kept(tmp_path: Path) -> None:
    for attempt in ("one", "two"):
        (tmp_path / "other" / "2").mkdir(parents=True)
        (tmp_path / "other" / "2" / "steps.jsonl").write_text(attempt)
        keep_interrupted(tmp_path / "other" / "2")
    kept = tmp_path / INTERRUPTED_FOLDER
    assert (kept / "other-2-1" / "steps.jsonl").read_text() == "one"
    assert (kept / "other-2-2" / "steps.jsonl").read_text() == "two"
    keep_interrupted(tmp_path / "other" / "3")
    assert len(list(kept.iterdir())) == 2


class TestReports:
    def test_a_foreign_report_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "report.md").write_text("precious")
        with pytest.raises(ConfigError, match=r"holds report\.md, which is not from an earlier report"):
            check_report_folder(tmp_path, ["verdict.json", "report.md"], marker="verdict.json", key="pairs")

    @pytest.mark.parametrize("text", ["", "[1]", "{}", "[" * 100_000, '{"verdict": "guilty"}'])
    def test_nor_next_to_a_file_with_the_markers_name(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "verdict.json").write_text(text)
        with pytest.raises(ConfigError, match=r"holds verdict\.json"):
            check_report_folder(tmp_path, ["verdict.json", "report.md"], marker="verdict.json", key="pairs")

    def test_an_earlier_report_is(self, tmp_path: Path) -> None:
        (tmp_path / "verdict.json").write_text(json.dumps({"pairs": []}))
        (tmp_path / "report.md").write_text("of yesterday")
        check_report_folder(tmp_path, ["verdict.json", "report.md"], marker="verdict.json", key="pairs")


class TestMetricsFile:
    def test_foreign_metrics_are_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "node.prom").write_text("node_uptime 3\n")
        with pytest.raises(ConfigError, match="exists and was not written by this harness"):
            check_prometheus_file(tmp_path / "node.prom")

    @pytest.mark.parametrize("text", ["", 'harness_run_info{run="a"} 1.0\n'])
    def test_an_earlier_runs_are(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "run.prom").write_text(text)
        check_prometheus_file(tmp_path / "run.prom")

    def test_trying_to_write_leaves_and_deletes_nothing(self, tmp_path: Path) -> None:
        (tmp_path / ".run.prom.probe").write_text("precious")
        check_prometheus_file(tmp_path / "run.prom")
        assert contents(tmp_path) == {tmp_path / ".run.prom.probe": "precious"}
