"""CheckpointStore: complete or absent, rejected when damaged or foreign, and unable to run code."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import CheckpointError, RunFailed
from harness.records.run_folder import CHECKPOINT_FOLDER, checkpoint_steps
from harness.training import checkpoint, checkpoint_files
from harness.training.checkpoint import FORMAT_VERSION, CheckpointStore, TrainingState
from harness.training.checkpoint_files import MANIFEST
from harness.training.distributed.collectives import Ranks

PROGRESS = {"loop": {"losses": [1.5, float("nan")]}, "batches": "ab"}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((4, 3), value), "optimizer.weight.step": torch.tensor(value)}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, Ranks(), workload_id="0123456789abcdef", keep=2)


def folder(tmp_path: Path, step: int) -> Path:
    return tmp_path / CHECKPOINT_FOLDER / f"step-{step:08d}"


class TestSave:
    def test_save_and_load_in_place(self, store: CheckpointStore) -> None:
        store.save(5, tensors(2.5), PROGRESS)
        found = tensors(0.0)
        weight = found["model.weight"]
        progress = store.load(5, found)
        assert torch.equal(weight, torch.full((4, 3), 2.5))
        assert found["optimizer.weight.step"].item() == 2.5
        assert progress["batches"] == "ab"
        assert progress["loop"]["losses"][1] != progress["loop"]["losses"][1]  # NaN, as it was

    def test_the_newest_two_are_kept(self, store: CheckpointStore, tmp_path: Path) -> None:
        for step in (5, 10, 15):
            store.save(step, tensors(step), PROGRESS)
        assert checkpoint_steps(tmp_path) == [10, 15]
        assert sorted(path.name for path in (tmp_path / CHECKPOINT_FOLDER).iterdir()) == [
            "step-00000010",
            "step-00000015",
        ]

    def test_saving_again_replaces_the_old_one(self, store: CheckpointStore) -> None:
        store.save(5, tensors(1.0), PROGRESS)
        store.save(5, tensors(2.0), PROGRESS)
        found = tensors(0.0)
        store.load(5, found)
        assert found["model.weight"][0, 0].item() == 2.0

    @pytest.mark.parametrize("moment", ["tensors", "manifest", "rename"])
    def test_a_failure_leaves_the_one_before(
        self, moment: str, store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.save(5, tensors(1.0), PROGRESS)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            if moment == "tensors":
                patch.setattr(checkpoint, "save_tensors", full)
            elif moment == "manifest":
                patch.setattr(checkpoint, "write_atomically", full)
            else:
                patch.setattr(checkpoint.os, "rename", full)
            with pytest.raises(RunFailed, match=r"No space left on device.*the checkpoint of step 5 is kept") as failed:
                store.save(10, tensors(2.0), PROGRESS)
        assert failed.value.shared
        assert checkpoint_steps(tmp_path) == [5]
        found = tensors(0.0)
        store.load(5, found)
        assert found["model.weight"][0, 0].item() == 1.0
        # The next save deletes the partial one.
        store.save(10, tensors(2.0), PROGRESS)
        assert sorted(path.name for path in (tmp_path / CHECKPOINT_FOLDER).iterdir()) == [
            "step-00000005",
            "step-00000010",
        ]

    def test_without_an_earlier_one_the_message_says_so(
        self, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_tensors", full)
        with pytest.raises(RunFailed, match="there is no checkpoint yet"):
            store.save(5, tensors(1.0), PROGRESS)


class TestDamage:
    @pytest.fixture(autouse=True)
    def _saved(self, store: CheckpointStore) -> None:
        store.save(5, tensors(1.0), PROGRESS)
        store.save(10, tensors(2.0), PROGRESS)

    def error_of(self, store: CheckpointStore) -> str:
        with pytest.raises(CheckpointError) as raised:
            store.load(10, tensors(0.0))
        return str(raised.value)

    def test_truncated(self, store: CheckpointStore, tmp_path: Path) -> None:
        file = folder(tmp_path, 10) / "__0_0.distcp"
        os.truncate(file, file.stat().st_size - 7)
        message = self.error_of(store)
        assert "__0_0.distcp is damaged: it has" in message
        assert "delete that folder to resume from step 5" in message

    @pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
    def test_one_flipped_bit(self, name: str, store: CheckpointStore, tmp_path: Path) -> None:
        file = folder(tmp_path, 10) / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        assert f"{name} is damaged: its checksum" in self.error_of(store)

    def test_a_missing_file(self, store: CheckpointStore, tmp_path: Path) -> None:
        (folder(tmp_path, 10) / "__0_0.distcp").unlink()
        assert "__0_0.distcp cannot be read: No such file" in self.error_of(store)

    def test_the_only_one(self, store: CheckpointStore, tmp_path: Path) -> None:
        checkpoint._remove(folder(tmp_path, 5))
        (folder(tmp_path, 10) / "__0_0.distcp").unlink()
        assert "there is no earlier checkpoint: start again in another out=DIR" in self.error_of(store)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"workload_id": "f" * 16}, f"is of workload {'f' * 16}, expected 0123456789abcdef"),
            ({"format_version": FORMAT_VERSION + 1}, "is newer than this harness reads"),
            ({"format_version": None}, "not a checkpoint of this harness"),
        ],
    )
    def test_an_unusable_manifest(
        self, change: dict[str, Any], expected: str, store: CheckpointStore, tmp_path: Path
    ) -> None:
        file = folder(tmp_path, 10) / MANIFEST
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        assert expected in self.error_of(store)

    @pytest.mark.parametrize("text", ["", "{", '"x"', "[1]"])
    def test_no_manifest(self, text: str, store: CheckpointStore, tmp_path: Path) -> None:
        (folder(tmp_path, 10) / MANIFEST).write_text(text)
        assert str(folder(tmp_path, 10)) in self.error_of(store)

    def test_of_another_model(self, store: CheckpointStore) -> None:
        with pytest.raises(CheckpointError, match="does not match this model"):
            store.load(10, {"model.other": torch.zeros(2)})
        with pytest.raises(CheckpointError, match="does not match this model"):
            store.load(10, {"model.weight": torch.zeros(7, 7)})


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def reseal(path: Path, name: str) -> None:
    """Update the manifest's checksum of a changed file, as an attacker could."""
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = checkpoint.describe_file(path / name)
    (path / MANIFEST).write_text(json.dumps(manifest))


class TestMaliciousFile:
    def test_metadata_runs_no_code(self, store: CheckpointStore, tmp_path: Path) -> None:
        store.save(5, tensors(1.0), PROGRESS)
        (folder(tmp_path, 5) / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
        reseal(folder(tmp_path, 5), ".metadata")
        with pytest.raises(CheckpointError, match="which no checkpoint needs"):
            store.load(5, tensors(0.0))
        assert not (tmp_path / "boom").exists()

    @pytest.mark.parametrize(
        "name",
        ["os.system", "builtins.eval", "torch.load", "torch.hub.load", "pathlib.os.system", "pathlib._local.os.system"],
    )
    def test_only_types_are_unpickled(self, name: str) -> None:
        module, function = name.rsplit(".", 1)
        with pytest.raises(pickle.UnpicklingError):
            checkpoint_files._MetadataUnpickler(io.BytesIO()).find_class(module, function)

    @pytest.mark.parametrize("home", ["pathlib", "pathlib._local"])
    def test_a_path_written_by_any_release_of_python(self, home: str) -> None:
        pickled = f"c{home}\nPosixPath\n(Va\ntR.".encode()
        assert checkpoint_files._MetadataUnpickler(io.BytesIO(pickled)).load() == Path("a")

    def test_values_other_than_tensors_are_rejected(self, store: CheckpointStore, tmp_path: Path) -> None:
        # PyTorch would unpickle them without restriction.
        store.save(5, {**tensors(1.0), "extra": Bomb(tmp_path / "boom")}, PROGRESS)  # type: ignore[dict-item]
        with pytest.raises(CheckpointError, match="extra is not a tensor"):
            store.load(5, {**tensors(0.0), "extra": torch.zeros(())})
        assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("implementation", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_initializing_the_optimizer_state_keeps_the_weights(implementation: dict[str, Any]) -> None:
    model = torch.nn.Linear(3, 4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, **implementation)
    state = TrainingState(model, optimizer)
    assert set(state.tensors()) == {"model.weight", "model.bias"}
    state.initialize_optimizer_state()
    assert all(torch.equal(now, was) for now, was in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]
    assert "optimizer.weight.exp_avg" in state.tensors()
