"""The numerical fingerprint of a run: what it holds, and that it leaves the training alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

from harness import backends
from harness.analysis import fingerprint as differences
from harness.composition import load
from harness.config import WorkloadConfig
from harness.training.fingerprint import fingerprint_sequences
from harness.training.run import run
from tests.conftest import PROJECT, TINY

WORK = (*TINY, "workload.steps=6", "workload.timing_warmup_steps=2", "backend.threads=1")


def train(folder: Path, *overrides: str) -> dict[str, Any]:
    config = load([*WORK, *overrides, f"out={folder}"])
    result = run(config, backends.create(config.backend))
    assert result.failure is None
    return json.loads((folder / "record.json").read_text())


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("records")
    return {precision: train(folder / precision, f"precision={precision}") for precision in ("fp32", "bf16", "fp16")}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_is_in_the_record(precision: str, records: dict[str, dict[str, Any]]) -> None:
    record = records[precision]
    jsonschema.validate(record, json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text()))
    found = record["fingerprint"]
    names = set(record["weights"]["final_norms"])
    assert set(found["fp32"]["gradients"]) == names
    assert (found["distances_to_fp32"] is None) == (precision == "fp32")
    assert found["repeated_step"]["loss"] == found["first_step"]["loss"] == record["losses"]["train"][0]
    assert found["seconds"] > 0
    assert found["optimizer_steps"] == [6 - record["losses"]["skipped_steps"]] * 2
    # With fp16 the loss scaler skips the first steps, whose gradients overflow.
    if precision != "fp16":
        assert set(found["first_step"]["gradients"]) == names
        assert found["first_step"]["gradient_norm"] == record["losses"]["gradient_norm"][0]
        assert found["repeated_step"]["distance"] == 0.0
        assert found["first_step"]["update"]["weight_error_ulps"] < 2


def test_the_look_in_float32_does_not_depend_on_the_precision(records: dict[str, dict[str, Any]]) -> None:
    assert records["fp32"]["fingerprint"]["fp32"] == records["bf16"]["fingerprint"]["fp32"]
    assert records["fp32"]["fingerprint"]["fp32"] == records["fp16"]["fingerprint"]["fp32"]


def test_norms_are_those_of_an_independent_backward_pass(records: dict[str, dict[str, Any]]) -> None:
    """The same gradient, written out: model, batch, mean loss, clipping."""
    config = load([*WORK])
    from harness.workload.data import open_dataset
    from harness.workload.initialization import build_model

    model = build_model(config.model, config.seed, torch.device("cpu"))
    found = records["fp32"]["fingerprint"]
    batch = torch.from_numpy(open_dataset(config).train(0, found["sequences"]))
    loss = torch.stack([model(sequence[None]) for sequence in batch]).mean()
    loss.backward()
    assert found["fp32"]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.workload.max_grad_norm)
    assert found["fp32"]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert found["fp32"]["gradients"][name]["norm"] == pytest.approx(parameter.grad.norm().item(), rel=1e-5), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_leaves_the_training_alone(precision: str, records: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    without = train(tmp_path / "without", f"precision={precision}", "fingerprint=false")
    assert without["fingerprint"] is None
    for key in ("losses", "weights", "digests", "workload_id"):
        assert without[key] == records[precision][key], key
    assert [{**point, "training_seconds": 0} for point in without["eval"]["points"]] == [
        {**point, "training_seconds": 0} for point in records[precision]["eval"]["points"]
    ]


def test_formats_are_told_apart_by_their_distance(records: dict[str, dict[str, Any]]) -> None:
    """bf16 rounds 8 times coarser than fp16."""
    [(ratio, _)] = differences.number_format(records["fp16"], records["bf16"])
    assert ratio == pytest.approx(2.08, abs=0.35)


@pytest.mark.parametrize(
    ("global_batch_size", "seq_len", "ranks", "expected"),
    [(480, 1024, 1, 4), (480, 1024, 8, 8), (16, 256, 1, 16), (8, 64, 2, 8), (1024, 4096, 1, 1), (1024, 4096, 64, 64),
     (6, 1000, 1, 6), (6, 1000, 3, 6), (30, 1000, 1, 5)],
)  # fmt: skip
def test_sequences_are_a_part_of_the_batch_that_ranks_share(
    global_batch_size: int, seq_len: int, ranks: int, expected: int
) -> None:
    work = WorkloadConfig(steps=1, timing_warmup_steps=1, seq_len=seq_len, global_batch_size=global_batch_size,
                          micro_batch_size=1, learning_rate=1.0)  # fmt: skip
    assert fingerprint_sequences(work, ranks) == expected


def test_a_resumed_run_keeps_the_looks_of_its_beginning(tmp_path: Path) -> None:
    overrides = ("checkpoint.every=3", "precision=bf16")
    whole = train(tmp_path / "whole", *overrides)
    half = tmp_path / "half"
    train(half, *overrides)
    (half / "record.json").unlink()
    for path in (half / "checkpoints" / "step-00000006").iterdir():
        path.unlink()
    (half / "checkpoints" / "step-00000006").rmdir()
    resumed = train(half, *overrides, "resume=auto")
    assert len(resumed["attempts"]) == 2
    for look in ("fp32", "distances_to_fp32", "first_step", "repeated_step"):
        assert resumed["fingerprint"][look] == whole["fingerprint"][look], look
    assert resumed["losses"] == whole["losses"]
