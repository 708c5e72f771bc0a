"""Runs from a Hugging Face model, and back: config.json and weights in, training, weights out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.composition import load
from harness.text import layered_settings
from harness.workload.data import open_dataset
from tests.conftest import Harness
from tests.ranks import run_ranks
from tests.test_huggingface import saved
from tests.tiny import TINY

WORK = [setting for setting in TINY if not setting.startswith("model")]
FAMILIES = ("llama 3, tied", "qwen2", "qwen3", "mixtral", "gpt2")


def words(folder: Path, *more: str) -> list[str]:
    own = ["model=hf", f"model.path='{folder}'", "model.vocab_size=101", f"init='{folder}'"]
    return layered_settings(WORK, own, more)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_in_training_and_weights_out(name: str, harness: Harness, tmp_path: Path) -> None:
    saved(name, tmp_path / "model")
    done = harness(*words(tmp_path / "model", "checkpoint.every=6", "out=run"))
    assert done.returncode == 0, done.stderr
    found = record(tmp_path / "run")
    config = load([*words(tmp_path / "model"), "backend=cpu"])
    dataset = open_dataset(config)
    batch = torch.from_numpy(dataset.train(0, config.workload.global_batch_size))
    held_out = torch.from_numpy(dataset.held_out(0, config.workload.eval_sequences))
    assert found["losses"]["train"][0] == pytest.approx(loss_of(tmp_path / "model", batch), rel=1e-5)
    done = harness("export", "run", "--out", "trained")
    assert done.returncode == 0, done.stderr
    last = found["eval"]["points"][-1]
    assert last["step"] == 6
    # Random weights, and few steps: it need not be lower.
    assert abs(last["loss"] - found["losses"]["train"][0]) > 0.01
    assert loss_of(tmp_path / "trained", held_out) == pytest.approx(last["loss"], rel=1e-5)


def loss_of(folder: Path, sequences: torch.Tensor) -> float:
    """Return the loss of transformers' model."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        return model(input_ids=sequences, labels=sequences).loss.item()


# A rank's rows of the second begin within an expert.
@pytest.mark.parametrize("name", ["qwen3", "qwen3 moe"])
def test_ranks_read_their_shards(name: str, harness: Harness, tmp_path: Path) -> None:
    saved(name, tmp_path / "model", max_shard_size="30KB")
    assert harness(*words(tmp_path / "model", "workload.micro_batch_size=1", "out=alone")).returncode == 0
    settings = words(tmp_path / "model", "workload.micro_batch_size=1", "parallel=fsdp", "out=sharded")
    for ended in run_ranks(2, settings, tmp_path):
        assert ended.code == 0, ended.err
    alone, sharded = record(tmp_path / "alone"), record(tmp_path / "sharded")
    assert alone["digests"] == sharded["digests"]
    assert sharded["losses"]["train"] == pytest.approx(alone["losses"]["train"], rel=1e-5)


def test_other_weights_are_not_comparable(harness: Harness, tmp_path: Path) -> None:
    saved("qwen3", tmp_path / "model")
    assert harness(*words(tmp_path / "model", "out=read")).returncode == 0
    assert harness(*words(tmp_path / "model", "init=random", "out=random")).returncode == 0
    done = harness("compare", "read", "random")
    assert "not comparable" in done.stdout
    assert "initial weights" in done.stdout


def test_weights_of_another_shape_are_refused_before_anything_is_written(harness: Harness, tmp_path: Path) -> None:
    saved("qwen3", tmp_path / "model")
    done = harness(*words(tmp_path / "model", "model.num_hidden_layers=4", "out=run"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "does not hold this model: model.layers.3." in done.stderr
    assert not (tmp_path / "run").exists()


class TestExport:
    def test_of_a_run_without_checkpoints(self, harness: Harness, tmp_path: Path) -> None:
        assert harness(*TINY, "out=run").returncode == 0
        done = harness("export", "run", "--out", "new")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "holds no checkpoint" in done.stderr or "with the other settings" in done.stderr

    def test_of_what_is_no_run(self, harness: Harness) -> None:
        done = harness("export", "nothing", "--out", "new")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "config.yaml: cannot be read" in done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=hf"], "error: model.path: missing; model=hf needs a Hugging Face config.json"),
        (["model=hf", "model.path=nothing"], "error: model.path: nothing: cannot be read: No such file or directory"),
        (["model=hf", "model.path=/dev/zero"], "error: model.path: /dev/zero: is a device, expected a Hugging Face"),
        (["init=nothing"], "error: init: nothing: cannot be read: No such file or directory"),
        (["init=."], "error: init: .: holds neither model.safetensors nor model.safetensors.index.json"),
        (["init=/dev/zero"], "error: init: /dev/zero: is a device, expected a safetensors file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(argv: list[str], message: str, harness: Harness) -> None:
    done = harness(*layered_settings(TINY if argv[0].startswith("init") else WORK, argv, ["out=run"]))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(message), done.stderr
