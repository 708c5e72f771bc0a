"""CheckpointStore: complete or absent, rejected when damaged or foreign, and unable to run code."""

from __future__ import annotations

import json
import os
import pickle
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from harness.errors import CheckpointError, RunFailed
from harness.records.files import seal
from harness.records.run_folder import CHECKPOINT_FOLDER, checkpoint_steps
from harness.training import checkpoint, checkpoint_plans
from harness.training.checkpoint import FORMAT_VERSION, CheckpointStore
from harness.training.checkpoint_files import MANIFEST
from harness.training.checkpoint_manager import TrainingState
from harness.training.checkpoint_plans import OwnLoadPlanner, OwnSavePlanner
from harness.training.distributed.collectives import Ranks
from harness.workload.initialization import OwnPart

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

    def test_a_long_write_or_read_is_no_hang(self, tmp_path: Path) -> None:
        beats = []
        store = CheckpointStore(
            tmp_path, Ranks(), workload_id="0123456789abcdef", keep=2, heartbeat=lambda: beats.append(1)
        )
        # Two tensors, and the two files that hold them and their description, which are read again.
        store.save(5, tensors(1.0), PROGRESS)
        assert len(beats) == 4
        store.load(5, tensors(0.0))
        assert len(beats) == 8

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


class TestAsynchronous:
    @pytest.fixture
    def store(self, tmp_path: Path) -> CheckpointStore:
        return CheckpointStore(tmp_path, Ranks(), workload_id="0123456789abcdef", keep=1, asynchronous=True)

    def test_the_run_goes_on_meanwhile(
        self, store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.save(5, tensors(1.0), PROGRESS)
        store.finish()
        go_on, describe = threading.Event(), checkpoint.describe_file

        def wait_and_describe(path: Path, heartbeat: Callable[[], None]) -> dict[str, Any]:
            go_on.wait(timeout=60)
            return describe(path, heartbeat)

        monkeypatch.setattr(checkpoint, "describe_file", wait_and_describe)
        state = tensors(2.0)
        assert store.save(10, state, PROGRESS) > 0
        # The weights change, and until the new checkpoint is complete the one before is there.
        for tensor in state.values():
            tensor.fill_(3.0)
        assert store.is_writing()
        assert checkpoint_steps(tmp_path) == [5]
        go_on.set()
        assert store.finish() > 0
        assert not store.is_writing()
        assert checkpoint_steps(tmp_path) == [10]
        found = tensors(0.0)
        store.load(10, found)
        assert {name: tensor.unique().tolist() for name, tensor in found.items()} == {name: [2.0] for name in found}

    @pytest.mark.parametrize("moment", ["describe_file", "write_atomically"])
    def test_a_failure_leaves_the_one_before(
        self, moment: str, store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        store.save(5, tensors(1.0), PROGRESS)
        store.finish()
        monkeypatch.setattr(checkpoint, moment, full)
        store.save(10, tensors(2.0), PROGRESS)
        with pytest.raises(RunFailed, match=r"No space left on device.*the checkpoint of step 5 is kept") as failed:
            store.finish()
        assert failed.value.shared
        assert checkpoint_steps(tmp_path) == [5]


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

    def test_any_flipped_bit_of_the_manifest(self, store: CheckpointStore, tmp_path: Path) -> None:
        file = folder(tmp_path, 10) / MANIFEST
        content = file.read_bytes()
        for position in random.Random(3).sample(range(8 * len(content)), 300):
            flipped = bytearray(content)
            flipped[position // 8] ^= 1 << position % 8
            file.write_bytes(flipped)
            message = self.error_of(store)
            assert "checkpoints/step-00000010" in message, (position, message)

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
            ({"world_size": 2}, "was changed after it was written"),
        ],
    )
    def test_an_unusable_manifest(
        self, change: dict[str, Any], expected: str, store: CheckpointStore, tmp_path: Path
    ) -> None:
        file = folder(tmp_path, 10) / MANIFEST
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        assert expected in self.error_of(store)

    @pytest.mark.parametrize("text", ["", "{", '"x"', "[1]", "[" * 100_000])
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


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest and update its checksum, as an attacker could."""
    manifest = json.loads((path / MANIFEST).read_text())
    edit(manifest)
    (path / MANIFEST).write_text(json.dumps(seal(manifest)))


class TestMaliciousFile:
    def test_metadata_is_never_unpickled(self, store: CheckpointStore, tmp_path: Path) -> None:
        store.save(5, tensors(1.0), PROGRESS)
        path = folder(tmp_path, 5)
        (path / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
        described = checkpoint.describe_file(path / ".metadata", lambda: None)
        edit_manifest(path, lambda manifest: manifest["files"].update({".metadata": described}))
        found = tensors(0.0)
        store.load(5, found)
        assert found["model.weight"][0, 0].item() == 1.0
        assert not (tmp_path / "boom").exists()

    def test_values_other_than_tensors_cannot_be_saved(self, store: CheckpointStore, tmp_path: Path) -> None:
        # PyTorch would unpickle them without restriction.
        with pytest.raises(TypeError, match="extra is not a tensor"):
            store.save(5, {**tensors(1.0), "extra": Bomb(tmp_path / "boom")}, PROGRESS)  # type: ignore[dict-item]
        assert checkpoint_steps(tmp_path) == []

    def test_nor_read_as_a_tensor(self, store: CheckpointStore, tmp_path: Path) -> None:
        store.save(5, tensors(1.0), PROGRESS)
        path = folder(tmp_path, 5)
        torch.save(Bomb(tmp_path / "boom"), path / "__0_1.distcp")
        size = (path / "__0_1.distcp").stat().st_size

        def edit(manifest: dict[str, Any]) -> None:
            manifest["files"]["__0_1.distcp"] = checkpoint.describe_file(path / "__0_1.distcp", lambda: None)
            chunk = manifest["tensors"]["model.weight"]["chunks"][0]
            chunk.update(file="__0_1.distcp", at_byte=0, bytes=size)

        edit_manifest(path, edit)
        with pytest.raises(CheckpointError):
            store.load(5, tensors(0.0))
        assert not (tmp_path / "boom").exists()

    @pytest.mark.parametrize(
        ("edit", "expected"),
        [
            (lambda it: it["files"].update({"/dev/zero": {"bytes": 0, "sha256": ""}}), "no file of a checkpoint"),
            (lambda it: it["files"].update({"../secret": {"bytes": 0, "sha256": ""}}), "no file of a checkpoint"),
            (lambda it: it["files"].update({"__0_0.distcp": 7}), "has no checksum of __0_0.distcp"),
            (lambda it: it["files"].clear(), "of which it has no checksum"),
            (lambda it: it["tensors"]["model.weight"]["chunks"][0].update(file="/dev/zero"), "names the file '/dev/ze"),
            (lambda it: it["tensors"]["model.weight"]["chunks"][0].update(sizes=["x"]), "holds no layout of tensors"),
            (lambda it: it["tensors"]["model.weight"]["chunks"][0].update(at_byte=10**30), "holds no layout|not match"),
            (lambda it: it["tensors"]["model.weight"].update(dtype="os.system"), "holds no layout of tensors"),
            (lambda it: it["tensors"].update({"model.weight": 3}), "holds no layout of tensors"),
            (lambda it: it["tensors"].clear(), "does not match this model"),
            (lambda it: it.update(step=6), "is of step 6, not 5: it was renamed"),
            (lambda it: it.update(tensors=[]), "has no usable tensors"),
            (lambda it: it.pop("progress"), "has no usable progress"),
            (
                lambda it: it.update(format_version=FORMAT_VERSION - 1),
                rf"format_version {FORMAT_VERSION - 1} is older than this harness reads \({FORMAT_VERSION}\); "
                "go on with the version of the harness",
            ),
        ],
    )
    def test_an_odd_manifest_is_named(
        self, edit: Callable[[dict[str, Any]], object], expected: str, store: CheckpointStore, tmp_path: Path
    ) -> None:
        store.save(5, tensors(1.0), PROGRESS)
        edit_manifest(folder(tmp_path, 5), edit)
        with pytest.raises(CheckpointError, match=expected):
            store.load(5, tensors(0.0))

    @pytest.mark.parametrize("name", ["__0_0.distcp", MANIFEST])
    @pytest.mark.parametrize("kind", ["pipe", "device"])
    def test_a_file_that_never_ends(self, kind: str, name: str, store: CheckpointStore, tmp_path: Path) -> None:
        store.save(5, tensors(1.0), PROGRESS)
        file = folder(tmp_path, 5) / name
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to("/dev/zero")
        with pytest.raises(CheckpointError, match="not a regular file"):
            store.load(5, tensors(0.0))


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
    made = {name: value for name, value in state.tensors().items() if name.startswith("optimizer.")}
    assert len(made) == 6
    assert all(value.count_nonzero() == 0 for value in made.values()), "as before the first step"


@pytest.mark.parametrize(("rows", "offsets"), [(range(1, 3), [(1, 0)]), (range(4, 4), [])])
def test_plans_have_a_ranks_own_part(
    rows: range, offsets: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty part, which begins where the next rank's begins, is left out."""
    whole = torch.ones(4, 2)
    whole.placements = ()  # type: ignore[attr-defined]
    monkeypatch.setattr(checkpoint_plans, "own_part", lambda _: OwnPart(torch.ones(len(rows), 2), rows, range(2)))
    save, load = OwnSavePlanner(lambda: None), OwnLoadPlanner(lambda: None)
    save.set_up_planner({"w": whole}, is_coordinator=True)
    plan = save.create_local_plan()
    assert [tuple(item.index.offset or ()) for item in plan.items] == offsets
    properties = TensorProperties(dtype=torch.float32)
    saved = TensorStorageMetadata(properties, whole.size(), [ChunkStorageMetadata(torch.Size((0, 0)), whole.size())])
    load.set_up_planner({"w": whole}, Metadata({"w": saved}), is_coordinator=True)
    found = [(tuple(item.storage_offsets), tuple(item.lengths)) for item in load.create_local_plan().items]
    assert found == [(offset, (len(rows), 2)) for offset in offsets]
