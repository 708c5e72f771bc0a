"""The numerical fingerprint of a run: what it holds, and that it leaves the training alone."""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

from harness import backends
from harness.analysis import fingerprint as differences
from harness.backends.step import StepOutput
from harness.composition import load
from harness.config import WorkloadConfig
from harness.text import layered_settings
from harness.training.distributed.collectives import Ranks
from harness.training.fingerprint import MIN_TOKENS
from harness.training.run import run
from harness.training.short_training import MIN_TOKENS as SHORT_MIN_TOKENS
from harness.training.short_training import RISING, STEPS, part_of_batch, share_of, train_briefly
from harness.workload.data import open_dataset
from harness.workload.initialization import build_model
from harness.world import World
from tests.conftest import PROJECT
from tests.tiny import TINY

WORK = TINY


def train(folder: Path, *overrides: str) -> dict[str, Any]:
    config = load(layered_settings(WORK, [*overrides, f"out={folder}"]))
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
    model = build_model(config.model, config.seed, torch.device("cpu"))
    found = records["fp32"]["fingerprint"]
    batch = torch.from_numpy(open_dataset(config).train(0, found["sequences"]))
    loss = torch.stack([model(sequence[None]) for sequence in batch]).mean()
    loss.backward()
    assert found["fp32"]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.workload.max_grad_norm)
    assert found["fp32"]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
    norms: dict[str, list[float]] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        # Queries, keys and values are one in the record.
        shared = re.sub(r"\.[qkv]\.", ".qkv.", name)
        norms.setdefault(shared, []).append(parameter.grad.norm().item())
    assert found["fp32"]["gradients"].keys() == norms.keys()
    for name, parts in norms.items():
        assert found["fp32"]["gradients"][name]["norm"] == pytest.approx(math.hypot(*parts), rel=1e-5), name


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
    ("global_batch_size", "seq_len", "expected"),
    [(480, 1024, 4), (16, 256, 16), (8, 64, 8), (1024, 4096, 1), (6, 1000, 6), (30, 1000, 5)],
)
def test_sequences_are_a_part_of_the_batch(global_batch_size: int, seq_len: int, expected: int) -> None:
    work = WorkloadConfig(steps=1, timing_warmup_steps=1, seq_len=seq_len, global_batch_size=global_batch_size,
                          micro_batch_size=1, learning_rate=1.0)  # fmt: skip
    assert part_of_batch(work, MIN_TOKENS) == expected


@pytest.mark.parametrize(("sequences", "size"), [(1, 1), (4, 2), (1, 8), (4, 8), (6, 4), (3, 8)])
def test_all_ranks_together_have_every_sequence_equally_often(sequences: int, size: int) -> None:
    worlds = [World(rank=rank, size=size) for rank in range(size)]
    shares = [share_of(sequences, Ranks(world)) for world in worlds]
    assert len({len(share) for share in shares}) == 1
    counts = Counter(number for share in shares for number in share)
    assert set(counts) == set(range(sequences))
    assert len(set(counts.values())) == 1


def test_the_short_training_is_that_of_a_loop_written_out(records: dict[str, dict[str, Any]]) -> None:
    config = load([*WORK])
    work = config.workload
    model = build_model(config.model, config.seed, torch.device("cpu"))
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": work.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(work.beta1, work.beta2), eps=work.epsilon)
    data, count = open_dataset(config), part_of_batch(work, SHORT_MIN_TOKENS)
    found = records["bf16"]["fingerprint"]["short_training"]["fp32"]
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = work.learning_rate * min(1.0, (step + 1) / RISING)
        optimizer.zero_grad()
        loss = model(torch.from_numpy(data.train(step * count, count)))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), work.max_grad_norm)
        assert found["losses"][step] == pytest.approx(loss.item(), rel=1e-5)
        assert found["gradient_norms"][step] == pytest.approx(norm.item(), rel=1e-4)
        optimizer.step()
    assert found["update"]["weight_error_ulps"] < 2


@pytest.mark.parametrize("skipped", [None, 0, STEPS - 1])
def test_updates_that_the_loss_scaler_skips_are_not_counted(skipped: int | None) -> None:
    config = load([*WORK])
    work = replace(config.workload, weight_decay=0.0)
    model = build_model(config.model, config.seed, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(work.beta1, work.beta2),
                                  eps=work.epsilon)  # fmt: skip
    numbers = iter(range(STEPS))

    def step(micro_batches: Sequence[torch.Tensor], rate: float) -> StepOutput:
        optimizer.zero_grad()
        loss = model(torch.cat(list(micro_batches)))
        loss.backward()
        if next(numbers) == skipped:
            return StepOutput(loss, torch.tensor(math.inf))
        norm = nn.utils.clip_grad_norm_(model.parameters(), work.max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        return StepOutput(loss, norm)

    batch = torch.from_numpy(open_dataset(config).train(0, 2))
    parameters = dict(model.named_parameters())
    found = train_briefly(step, parameters, optimizer, work, lambda _: batch, Ranks())  # pyright: ignore[reportArgumentType]
    if skipped == STEPS - 1:
        assert found.update is None
    else:
        assert found.update is not None
        assert found.update["weight_error_ulps"] < 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_short_training_shows_how_rounding_grows(precision: str, records: dict[str, dict[str, Any]]) -> None:
    record = records[precision]
    losses = differences.amplification(record, record, "losses")
    assert 1e-7 < losses < 1e-3
    assert differences.amplification(record, record, "gradient_norms") > losses


def test_no_run_widens_its_own_limits(records: dict[str, dict[str, Any]]) -> None:
    honest = records["bf16"]
    wild = copy.deepcopy(honest)
    own = wild["fingerprint"]["short_training"]["own"]
    own["losses"] = [1.5 * loss for loss in own["losses"]]
    assert differences.amplification(wild, wild, "losses") > 0.1
    expected = differences.amplification(honest, honest, "losses")
    assert differences.amplification(honest, wild, "losses") == expected
    assert differences.amplification(wild, honest, "losses") == expected
    assert differences.amplification(records["fp32"], records["fp32"], "losses") == 1.0


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
    for look in ("fp32", "distances_to_fp32", "short_training", "first_step", "repeated_step"):
        assert resumed["fingerprint"][look] == whole["fingerprint"][look], look
    assert resumed["losses"] == whole["losses"]
