"""Checkpoints of every layout: the same bits on the same one, the same training on another; asynchronous ones too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.records.run_folder import checkpoint_steps
from harness.text import layered_settings
from tests.conftest import PROJECT
from tests.layouts import MODELS, ONE_PROCESS, SAVED_STEP, SAVING, WORK, copy_at_checkpoint, difference, train
from tests.ranks import record

STEPS = 12
# 257 ids are cut unevenly, over tensor and shards.
OWN = ("model.vocab_size=257", "model.num_hidden_layers=3", "fingerprint=false", f"workload.steps={STEPS}",
       "workload.interval_steps=2", "workload.global_batch_size=4")  # fmt: skip
BOTH = "tensor=2 pipeline=2"
ASYNCHRONOUS = "checkpoint.asynchronous=true"
Whole = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return a function that returns the folder of an unbroken run, which is made once."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def make(model: str, layout: str, *more: str) -> Path:
        key = (model, layout, *more)
        if key not in made:
            settings = layered_settings(WORK, MODELS[model], SAVING, OWN, more)
            found = train(folder, layout, settings, str(len(made)))
            assert isinstance(found, Path), found
            made[key] = found
        return made[key]

    return make


def manifest(run: Path, step: int) -> dict[str, Any]:
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        # First and last stage both have the tied weight.
        ("tied", BOTH, "fsdp shard=4"),
        ("tied", "fsdp shard=4", BOTH),
        ("tied", BOTH, ONE_PROCESS),
        ("tied", ONE_PROCESS, "tensor=2"),
        ("gpt2", "shard=2 tensor=2", "context=2"),
        # Shards of the two parts have other lengths.
        ("gpt2", "context=2", "shard=4 tensor=2"),
    ],
)
def test_another_layout_resumes(model: str, before: str, after: str, whole: Whole, tmp_path: Path) -> None:
    run = copy_at_checkpoint(whole(model, before), tmp_path / "run")
    settings = layered_settings(WORK, MODELS[model], SAVING, OWN)
    assert isinstance(train(tmp_path, after, settings, "run"), Path)
    assert difference(whole(model, ONE_PROCESS), run, "fp32").startswith("ok")
    found = record(run)
    # Steps of another layout are left out of the timing, and those of the warm-up after it.
    assert found["timing"]["resumed"]["steps"] == SAVED_STEP
    assert found["timing"]["intervals"][0]["first_step"] == SAVED_STEP + 5
    layouts = [{axis: size for axis, size in one["layout"].items() if size > 1} for one in found["attempts"]]
    sizes = [dict(part.split("=") for part in one.split() if "=" in part)
             for one in (before, after)]  # fmt: skip
    assert layouts == [{axis: int(size) for axis, size in one.items()} for one in sizes]


@pytest.mark.parametrize(("model", "layout"), [("tied", BOTH), ("gpt2", "shard=2 tensor=2")])
def test_the_same_layout_resumes_with_the_same_bits(model: str, layout: str, whole: Whole, tmp_path: Path) -> None:
    run = copy_at_checkpoint(whole(model, layout), tmp_path / "run")
    settings = layered_settings(WORK, MODELS[model], SAVING, OWN)
    assert isinstance(train(tmp_path, layout, settings, "run"), Path)
    found, expected = record(run), record(whole(model, layout))
    for part in ("workload_id", "digests", "losses", "weights"):
        assert found[part] == expected[part], part
    assert found["timing"]["resumed"]["steps"] == 4


def test_a_checkpoint_has_the_tensors_of_the_whole_model(whole: Whole) -> None:
    shapes = [
        {name: (tensor["dtype"], tensor["shape"]) for name, tensor in manifest(run, STEPS)["tensors"].items()}
        for run in (whole("tied", ONE_PROCESS), whole("tied", BOTH), whole("tied", "fsdp shard=4"))
    ]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("layout", [ONE_PROCESS, BOTH])
def test_asynchronous_checkpoints_have_the_same_bits(layout: str, whole: Whole) -> None:
    plain, run = whole("tied", layout), whole("tied", layout, ASYNCHRONOUS)
    found, expected = record(run), record(plain)
    jsonschema.validate(found, json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text()))
    for part in ("workload_id", "digests", "losses", "weights"):
        assert found[part] == expected[part], part
    for step in checkpoint_steps(plain):
        files = [
            {name: file for name, file in manifest(one, step)["files"].items() if name != ".metadata"}
            for one in (run, plain)
        ]
        assert files[0] == files[1]
        # The first was written while the weights changed.
        assert manifest(run, step)["tensors"] == manifest(plain, step)["tensors"]
    assert checkpoint_steps(run) == checkpoint_steps(plain) == [SAVED_STEP, STEPS]
    timing = found["timing"]
    assert timing["saving"]["steps"] >= 2
    assert timing["measured_steps"] + timing["saving"]["steps"] == STEPS - 4
    assert 0 < timing["checkpoint_staging_seconds"] <= timing["checkpoint_seconds"]
    assert timing["checkpoint_writing_seconds"] > 0
    assert not any(key["first_step"] == SAVED_STEP + 1 for key in timing["intervals"])
    assert not any(expected["timing"][f"checkpoint_{part}_seconds"] for part in ("staging", "writing"))
