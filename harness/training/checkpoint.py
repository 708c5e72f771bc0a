"""CheckpointStore: there as a whole or not at all, of a known step of known work, and unable to run code.

Tensors are written by torch.distributed.checkpoint, so that a run can go on with another number of ranks; whatever is
no tensor lies in manifest.json. A checkpoint is made under another name and renamed when all of it is on disk, with
the checksums of its files. Whatever else lies in the folder of checkpoints is left alone: only what has the name and
the content of a checkpoint is ever deleted, file by file, and no link is followed to do so.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from harness.errors import CheckpointError, RunFailed
from harness.records.files import sync_folder, write_atomically
from harness.records.run_folder import CHECKPOINT_FOLDER, STEP_FOLDER, checkpoint_steps
from harness.training.checkpoint_files import MANIFEST, SafeReader, _damage, _described
from harness.training.distributed.collectives import Ranks

FORMAT_VERSION = 1
# What is being written or deleted: a step, and a random part so that no two processes ever mean the same one.
_UNFINISHED = re.compile(r"\.(partial|removed)-\d{8,}-[0-9a-f]{8}")
# What PyTorch and this module write into a checkpoint's folder.
_CHECKPOINT_FILE = re.compile(
    r"__\d+_\d+\.distcp|\.metadata|\.metadata\.tmp|manifest\.json|\.manifest\.json\.\d+-[0-9a-f]{8}\.partial"
)
T = TypeVar("T")


class CheckpointStore:
    """The checkpoints of one run, in its folder. Every method that says so is a collective of all ranks."""

    def __init__(self, folder: Path, ranks: Ranks, *, workload_id: str, keep: int) -> None:
        self._folder = folder / CHECKPOINT_FOLDER
        self._ranks, self._workload_id, self._keep = ranks, workload_id, keep

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], progress: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step, then remove those beyond `keep`. Collective.

        Args:
            progress: what else a run needs to go on; JSON.

        Raises:
            RunFailed: the disk is full or not writable. Earlier checkpoints are kept.
        """
        final = self._path(step)
        partial = self._on_main(lambda: self._make_partial(step), final)
        try:
            with _alone_is_meant():
                save_tensors(
                    dict(tensors),
                    storage_writer=FileSystemWriter(partial, single_file_per_rank=True, sync_files=True),
                    no_dist=self._ranks.size == 1,
                )
            own = {path.name: _described(path) for path in self._own_files(partial)}
            reason = None
        except (CheckpointException, OSError) as error:
            own, reason = None, _reason(error)
        told = self._ranks.gather((own, reason))
        for _, why in told:
            if why is not None:
                with suppress(OSError):
                    _delete(partial)
                raise self._unwritten(final, why)
        files = {name: facts for part, _ in told for name, facts in (part or {}).items()}
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "workload_id": self._workload_id,
            "world_size": self._ranks.size,
            "files": files,
            "progress": dict(progress),
        }
        self._on_main(lambda: self._publish(partial, final, manifest), final)

    def load(self, step: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Fill `tensors` in place from a step's checkpoint and return its progress. Collective.

        Raises:
            CheckpointError: it is damaged, of another workload, or of a newer version.
        """
        path = self._path(step)
        manifest = self._read_manifest(path)
        names = sorted(manifest["files"])[self._ranks.rank :: self._ranks.size]
        problems = [problem for name in names if (problem := _damage(path / name, manifest["files"][name]))]
        for found in self._ranks.gather(problems):
            for problem in found:
                raise CheckpointError(f"{path}: {problem}; {self._remedy(step)}")
        try:
            SafeReader(path).read_metadata()
        except Exception as error:
            # Whatever a file that is no list of contents makes of the unpickler.
            raise CheckpointError(f"{path}: .metadata cannot be read: {error}; {self._remedy(step)}") from error
        try:
            with _alone_is_meant():
                load_tensors(dict(tensors), storage_reader=SafeReader(path), no_dist=self._ranks.size == 1)
        except CheckpointException as error:
            words = "; ".join(dict.fromkeys(str(inner) for inner, _ in error.failures.values()))
            raise CheckpointError(f"{path}: does not fit this model: {words}; {self._remedy(step)}") from error
        return manifest["progress"]

    def _read_manifest(self, path: Path) -> dict[str, Any]:
        file = path / MANIFEST
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise CheckpointError(
                f"{file}: cannot be read: {why}; delete {path} to go on from the one before"
            ) from error
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        if not isinstance(version, int):
            raise CheckpointError(f"{file}: not a checkpoint of this harness; delete {path}")
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{file}: format_version {version} is newer than this harness reads ({FORMAT_VERSION}); upgrade it"
            )
        if manifest["workload_id"] != self._workload_id:
            raise CheckpointError(
                f"{path}: is of workload {manifest['workload_id']}, expected {self._workload_id}; resume with the "
                "settings that the run began with, or choose another out=DIR"
            )
        return manifest

    def _publish(self, partial: Path, final: Path, manifest: dict[str, Any]) -> None:
        write_atomically(partial / MANIFEST, json.dumps(manifest) + "\n")
        # A run that went on from an earlier checkpoint makes this one once more.
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
        """Make the empty folder that a checkpoint is written into, and delete what a crash left of earlier ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if _UNFINISHED.fullmatch(path.name) and _holds_only_checkpoint_files(path):
                _delete(path)
        partial = self._folder / f".partial-{step:08d}-{secrets.token_hex(4)}"
        partial.mkdir()
        return partial

    def _is_own(self, path: Path) -> bool:
        """Return whether a folder is a whole checkpoint of this run's work, by its name and its manifest."""
        if path.is_symlink() or not STEP_FOLDER.fullmatch(path.name) or not _holds_only_checkpoint_files(path):
            return False
        try:
            return self._read_manifest(path)["step"] == int(path.name.removeprefix("step-"))
        except (CheckpointError, KeyError):
            return False

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _own_files(self, folder: Path) -> list[Path]:
        """Return the files that this rank wrote: its own shards, and rank 0 the metadata."""
        mine = sorted(folder.glob(f"__{self._ranks.rank}_*.distcp"))
        return [*mine, *([folder / ".metadata"] if self._ranks.is_main else [])]

    def _on_main(self, act: Callable[[], T], final: Path) -> T:
        """Return on all ranks what `act` returns on rank 0, the only one to call it; fail on all if it fails there."""

        def attempt() -> tuple[T | None, str | None]:
            try:
                return act(), None
            except OSError as error:
                return None, str(error.strerror or error)
            except RunFailed as error:
                return None, str(error)

        result, why = self._ranks.broadcast_from_main(attempt)
        if why is not None:
            raise self._unwritten(final, why)
        return result  # pyright: ignore[reportReturnType]

    def _unwritten(self, final: Path, why: str) -> RunFailed:
        kept = checkpoint_steps(self._folder.parent)
        remedy = f"the one of step {kept[-1]} is kept" if kept else "there is none yet"
        return RunFailed(f"{final}: cannot be written: {why}; free some space and resume ({remedy})", shared=True)

    def _remedy(self, step: int) -> str:
        before = [other for other in checkpoint_steps(self._folder.parent) if other < step]
        if before:
            return f"delete that folder to go on from step {before[-1]}"
        return "there is no earlier one: begin anew in another out=DIR"


@dataclass
class TrainingState:
    """Model and optimizer of a run, as the tensors of a checkpoint."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return this rank's part of all tensors, sharded ones as such, by names that do not depend on the ranks."""
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self.model.named_parameters():
            found[f"model.{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                found[f"optimizer.{name}.{key}"] = value
        return found

    def initialize_optimizer_state(self) -> None:
        """Have the optimizer make its state, which it does in its first step, for a checkpoint to be read into.

        The step changes nothing: gradients, learning rate and so the decay are zero.
        """
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    """Leave out PyTorch's warning that a run of one process is saved by one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _holds_only_checkpoint_files(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return all(entry.is_file(follow_symlinks=False) and _CHECKPOINT_FILE.fullmatch(entry.name) for entry in entries)


def _remove(folder: Path) -> None:
    """Delete a checkpoint, under another name first: one that is half deleted must not be taken for a checkpoint."""
    step = folder.name.removeprefix("step-")
    doomed = folder.with_name(f".removed-{step}-{secrets.token_hex(4)}")
    os.rename(folder, doomed)
    _delete(doomed)


def _delete(folder: Path) -> None:
    """Delete the files of a checkpoint, and the folder if nothing else lies in it."""
    with os.scandir(folder) as entries:
        own = [
            entry
            for entry in entries
            if entry.is_file(follow_symlinks=False) and _CHECKPOINT_FILE.fullmatch(entry.name)
        ]
    for entry in own:
        os.unlink(entry.path)
    # Anybody may have put a file there meanwhile.
    with suppress(OSError):
        folder.rmdir()


def _reason(error: BaseException) -> str:
    """Return why a save failed: the system's word if there is one at the bottom, else PyTorch's."""
    if isinstance(error, CheckpointException):
        # No Exception, so that nothing but this would catch it.
        return "; ".join(dict.fromkeys(_reason(inner) for inner, _ in error.failures.values()))
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            return str(link.strerror or link)
        link = link.__cause__ or link.__context__
    return " ".join(f"{type(error).__name__}: {error}".split())
