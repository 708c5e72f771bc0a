"""CheckpointStore: atomic checkpoints with checksums, of a known workload and step, which cannot run code when loaded.

Tensors are written by torch.distributed.checkpoint, so that a run can resume with another number of ranks; everything
else is in manifest.json, with a checksum of its own. A checkpoint is written under a temporary name and renamed when
it is complete on disk, by a thread if the run goes on meanwhile. Other files in the checkpoints' folder are never
touched: only a folder with the name and the content of a checkpoint is deleted, file by file, without following links.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from harness.errors import CheckpointError, RunFailed
from harness.records.files import seal, sync_folder, write_atomically
from harness.records.run_folder import CHECKPOINT_FOLDER, STEP_FOLDER, checkpoint_steps
from harness.training.checkpoint_files import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    MANIFEST,
    Beat,
    ManifestReader,
    PlacingWriter,
    describe_file,
    describe_layout,
    find_damage,
    read_manifest,
)
from harness.training.checkpoint_plans import OwnLoadPlanner, OwnSavePlanner
from harness.training.distributed.collectives import Ranks

# A checkpoint being written or deleted: its step, and a random part that makes the name unique.
_UNFINISHED = re.compile(r"\.(partial|removed)-\d{8,}-[0-9a-f]{8}")
T = TypeVar("T")
# PyTorch's, whenever it saves or loads in a single process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class CheckpointStore:
    """The checkpoints of one run, in its folder. Its methods are collective."""

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        workload_id: str,
        keep: int,
        asynchronous: bool = False,
        heartbeat: Beat = lambda: None,
    ) -> None:
        """
        Args:
            asynchronous: `save` returns when the tensors are copied to the host's memory, and a thread writes them.
        """
        self._folder = folder / CHECKPOINT_FOLDER
        self._ranks, self._workload_id, self._keep, self._heartbeat = ranks, workload_id, keep, heartbeat
        # Those of the thread have a group of their own: the run goes on with other collectives.
        self._writers = ranks.apart() if asynchronous else ranks
        self._thread = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._writing: Future[float] | None = None

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], progress: Mapping[str, Any]) -> float:
        """Write the checkpoint of a step, then delete all but the newest `keep`.

        An asynchronous one is complete after `finish`, which has to be called before the next.

        Args:
            progress: everything besides tensors that a run needs to resume, as JSON values.

        Returns:
            seconds in which an asynchronous one copied the tensors; 0.0 for any other.

        Raises:
            RunFailed: the disk is full or not writable. Earlier checkpoints are kept.
        """
        assert self._writing is None, "the checkpoint before is still being written"
        final, alone = self._path(step), self._ranks.size == 1
        partial = self._on_main(self._ranks, lambda: self._make_partial(step), final)
        writer = PlacingWriter(partial, single_file_per_rank=True, sync_files=True)
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "workload_id": self._workload_id,
            "world_size": self._ranks.size,
            "progress": dict(progress),
        }
        if self._thread is None:
            planner = OwnSavePlanner(self._heartbeat)

            def save() -> Metadata:
                return save_tensors(dict(tensors), storage_writer=writer, planner=planner, no_dist=alone)

            self._write(partial, writer, save, manifest)
            return 0.0
        began = time.perf_counter()
        saving = async_save(
            dict(tensors),
            storage_writer=writer,
            planner=OwnSavePlanner(self._heartbeat),
            process_group=self._writers.host_group,
            no_dist=alone,
        )
        assert isinstance(saving, Future), "PyTorch copies the tensors in the background too"
        self._writing = self._thread.submit(self._write, partial, writer, saving.result, manifest)
        return time.perf_counter() - began

    def is_writing(self) -> bool:
        """Return whether an asynchronous checkpoint is not complete yet: the same answer on every rank."""
        return self._writing is not None and self._ranks.all_max(int(not self._writing.done())) == [1]

    def finish(self) -> float:
        """Wait for an asynchronous checkpoint, if one is being written, and return the seconds that it took.

        Raises:
            RunFailed: as of `save`.
        """
        writing, self._writing = self._writing, None
        return 0.0 if writing is None else writing.result()

    def _write(
        self, partial: Path, writer: PlacingWriter, save: Callable[[], Metadata], manifest: dict[str, Any]
    ) -> float:
        """Write a checkpoint, and return the seconds that it took. In the thread, if it is asynchronous.

        Args:
            save: writes the tensors.
            manifest: without what is known only then.
        """
        began, final = time.perf_counter(), self._path(manifest["step"])
        try:
            saved = save()
            own = {path.name: describe_file(path, self._heartbeat) for path in self._own_files(partial)}
            reason = None
        except (CheckpointException, OSError) as error:
            own, saved, reason = None, None, _reason(error)
        by_rank = self._writers.gather((own, reason))
        for _, why in by_rank:
            if why is not None:
                with suppress(OSError):
                    _delete(partial)
                raise self._write_failure(final, why)
        files = {name: description for part, _ in by_rank for name, description in (part or {}).items()}

        def publish() -> None:
            assert saved is not None
            tensors = describe_layout(saved, writer.places)
            self._publish(partial, final, manifest | {"files": files, "tensors": tensors})

        self._on_main(self._writers, publish, final)
        return time.perf_counter() - began

    def load(self, step: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Fill `tensors` in place from a step's checkpoint and return its progress.

        Raises:
            CheckpointError: it is damaged, of another workload, or of a newer version.
        """
        path = self._path(step)
        manifest = read_manifest(path, self._workload_id, self._remedy(step))
        if manifest["step"] != step:
            raise CheckpointError(
                f"{path}: is of step {manifest['step']}, not {step}: it was renamed; {self._remedy(step)}"
            )
        files: Mapping[str, Any] = manifest["files"]
        names = sorted(files)[self._ranks.rank :: self._ranks.size]
        problems = [problem for name in names if (problem := find_damage(path, name, files[name], self._heartbeat))]
        for found in self._ranks.gather(problems):
            for problem in found:
                raise CheckpointError(f"{path}: {problem}; {self._remedy(step)}")
        try:
            reader = ManifestReader(path, manifest["tensors"], files)
        except ValueError as error:
            raise CheckpointError(f"{path / MANIFEST}: {error}; {self._remedy(step)}") from error
        try:
            alone = self._ranks.size == 1
            load_tensors(dict(tensors), storage_reader=reader, planner=OwnLoadPlanner(self._heartbeat), no_dist=alone)
        except CheckpointException as error:
            causes = "; ".join(dict.fromkeys(str(inner) for inner, _ in error.failures.values()))
            raise CheckpointError(f"{path}: does not match this model: {causes}; {self._remedy(step)}") from error
        return manifest["progress"]

    def _publish(self, partial: Path, final: Path, manifest: dict[str, Any]) -> None:
        write_atomically(partial / MANIFEST, json.dumps(seal(manifest)) + "\n")
        # A run that resumed from an earlier checkpoint writes this one again.
        if os.path.lexists(final):
            if not self._is_own(final):
                raise RunFailed(f"{final.name} exists already and is not a checkpoint of this run: move it elsewhere")
            _remove(final)
        os.rename(partial, final)
        sync_folder(self._folder)
        own = [path for step in checkpoint_steps(self._folder.parent) if self._is_own(path := self._path(step))]
        for path in own[: -self._keep]:
            _remove(path)

    def _make_partial(self, step: int) -> Path:
        """Create the temporary folder of a checkpoint, and delete those that a crash left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if _UNFINISHED.fullmatch(path.name) and _holds_only_checkpoint_files(path):
                _delete(path)
        partial = self._folder / f".partial-{step:08d}-{secrets.token_hex(4)}"
        partial.mkdir()
        return partial

    def _is_own(self, path: Path) -> bool:
        """Return whether a folder is a complete checkpoint of this workload, by its name and its manifest."""
        if not STEP_FOLDER.fullmatch(path.name) or not _holds_only_checkpoint_files(path):
            return False
        try:
            return read_manifest(path, self._workload_id, "")["step"] == int(path.name.removeprefix("step-"))
        except (CheckpointError, KeyError):
            return False

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _own_files(self, folder: Path) -> list[Path]:
        """Return the files that this rank wrote: its shards, and on rank 0 the metadata."""
        mine = sorted(folder.glob(f"__{self._ranks.rank}_*.distcp"))
        return [*mine, *([folder / ".metadata"] if self._ranks.is_main else [])]

    def _on_main(self, ranks: Ranks, act: Callable[[], T], final: Path) -> T:
        """Return on all ranks what `act` returns on rank 0, the only one to call it; raise on all if it fails there."""

        def attempt() -> tuple[T | None, str | None]:
            try:
                return act(), None
            except OSError as error:
                return None, str(error.strerror or error)
            except RunFailed as error:
                return None, str(error)

        result, why = ranks.broadcast_from_main(attempt)
        if why is not None:
            raise self._write_failure(final, why)
        return result  # pyright: ignore[reportReturnType]

    def _write_failure(self, final: Path, why: str) -> RunFailed:
        kept = checkpoint_steps(self._folder.parent)
        remedy = (
            f"resume (the checkpoint of step {kept[-1]} is kept)"
            if kept
            else "start again (there is no checkpoint yet)"
        )
        return RunFailed(f"{final}: cannot be written: {why}; free some space and {remedy}", shared=True)

    def _remedy(self, step: int) -> str:
        before = [other for other in checkpoint_steps(self._folder.parent) if other < step]
        if before:
            return f"delete that folder to resume from step {before[-1]}"
        return "there is no earlier checkpoint: start again in another out=DIR"


def _holds_only_checkpoint_files(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return all(entry.is_file(follow_symlinks=False) and CHECKPOINT_FILE.fullmatch(entry.name) for entry in entries)


def _remove(folder: Path) -> None:
    """Rename a checkpoint, then delete it: a half-deleted one must not look like a checkpoint."""
    step = folder.name.removeprefix("step-")
    removed = folder.with_name(f".removed-{step}-{secrets.token_hex(4)}")
    os.rename(folder, removed)
    _delete(removed)


def _delete(folder: Path) -> None:
    """Delete the files of a checkpoint, and the folder if it is then empty."""
    with os.scandir(folder) as entries:
        own = [
            entry for entry in entries if entry.is_file(follow_symlinks=False) and CHECKPOINT_FILE.fullmatch(entry.name)
        ]
    for entry in own:
        os.unlink(entry.path)
    # Another program may have put a file there meanwhile.
    with suppress(OSError):
        folder.rmdir()


def _reason(error: BaseException) -> str:
    """Return the cause of a failed save: the operating system's error if there is one in the chain, else PyTorch's."""
    if isinstance(error, CheckpointException):
        return "; ".join(dict.fromkeys(_reason(inner) for inner, _ in error.failures.values()))
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            return str(link.strerror or link)
        link = link.__cause__ or link.__context__
    return " ".join(f"{type(error).__name__}: {error}".split())
