"""Independent reference: the harness's loss curve equals that of another implementation of the same training.

The harness runs from the command line, with gradient accumulation. The reference shares only its initial weights and
sequences: the model is the transformers library's, and schedule, parameter groups, clipping and loop are written here
from their documentation, over whole batches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.composition import load
from harness.config import Config
from harness.workload.data import open_dataset
from harness.workload.initialization import build_model
from tests.conftest import Harness
from tests.test_huggingface import transformers_model
from tests.test_model import gpt2_reference, llama_reference

STEPS, WARMUP, BATCH, PEAK = 20, 5, 8, 3e-3
WORK = (
    "model.num_hidden_layers=2",
    "model.hidden_size=64",
    "model.num_attention_heads=4",
    "model.vocab_size=512",
    "model.max_position_embeddings=64",
    "workload=smoke",
    f"workload.steps={STEPS}",
    "workload.timing_warmup_steps=3",
    "workload.seq_len=64",
    f"workload.global_batch_size={BATCH}",
    f"workload.micro_batch_size={BATCH // 2}",
    f"workload.eval_every={STEPS}",
    "workload.eval_sequences=12",
    f"workload.learning_rate={PEAK}",
    f"workload.lr_warmup_steps={WARMUP}",
    "workload.min_lr_ratio=0.1",
    "workload.weight_decay=0.1",
    "workload.beta1=0.9",
    "workload.beta2=0.95",
    "workload.epsilon=1e-8",
    "backend=cpu",
    "backend.threads=1",
    "precision=fp32",
    "seed=3",
)
# With a clip norm in the middle of the gradient norms of each shape.
SHAPES: dict[str, tuple[tuple[str, ...], float, Callable[..., Any]]] = {
    "gpt2": (("model=gpt2-124m",), 0.9, gpt2_reference),
    "llama": (("model=llama-1b", "model.num_key_value_heads=2", "model.intermediate_size=176"), 0.8, llama_reference),
    # The sequences are four times as long as the original context.
    "llama 3": (
        (
            "model=llama3.2-1b",
            "model.num_key_value_heads=2",
            "model.intermediate_size=176",
            "model.rope_scaling.original_max_position_embeddings=16",
        ),
        0.8,
        transformers_model,
    ),
    "qwen3": (
        (
            "model=qwen3-0.6b",
            "model.num_key_value_heads=2",
            "model.head_dim=24",
            "model.intermediate_size=176",
            "model.rope_scaling.rope_type=yarn",
            "model.rope_scaling.factor=4",
            "model.rope_scaling.original_max_position_embeddings=16",
        ),
        0.88,
        transformers_model,
    ),
    "mixtral": (
        (
            "model=mixtral-8x7b",
            "model.num_key_value_heads=2",
            "model.intermediate_size=96",
            "model.num_experts=5",
        ),
        0.8,
        transformers_model,
    ),
}


@dataclass
class Curve:
    losses: list[float]
    gradient_norms: list[float]
    final_eval_loss: float


def reference_curve(config: Config, clip: float, reference: Callable[..., Any]) -> Curve:
    """Train transformers' model in a loop without the harness."""
    torch.set_num_threads(1)
    weights = dict(build_model(config.model, config.seed, torch.device("cpu")).named_parameters())
    model, dataset = reference(config.model, weights), open_dataset(config)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )

    def loss_of(sequences: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=sequences[:, :-1]).logits
        return -logits.log_softmax(dim=-1).gather(-1, sequences[:, 1:, None]).mean()

    curve = Curve([], [], math.nan)
    for step in range(1, STEPS + 1):
        loss = loss_of(torch.from_numpy(dataset.train((step - 1) * BATCH, BATCH)))
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in parameters))
        for parameter in parameters:
            parameter.grad *= min(1.0, clip / norm)
        done = (step - WARMUP) / (STEPS - WARMUP)
        rate = PEAK * step / WARMUP if step <= WARMUP else PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        curve.losses.append(loss.item())
        curve.gradient_norms.append(norm)
    with torch.no_grad():
        curve.final_eval_loss = loss_of(torch.from_numpy(dataset.held_out(0, 12))).item()
    return curve


def harness_curve(harness: Harness, folder: Path, overrides: tuple[str, ...]) -> Curve:
    done = harness(*overrides, "out=run")
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "run" / "record.json").read_text())
    rows = [json.loads(line) for line in (folder / "run" / "steps.jsonl").read_text().splitlines()]
    assert [point["step"] for point in record["eval"]["points"]] == [STEPS]
    return Curve(record["losses"]["train"], [row["gradient_norm"] for row in rows], record["eval"]["points"][0]["loss"])


def largest_difference(found: list[float], expected: list[float]) -> float:
    return max(abs(one - two) / abs(two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_curve_equals_the_reference(shape: str, harness: Harness, tmp_path: Path) -> None:
    overrides, clip, reference = SHAPES[shape]
    overrides = (*overrides, *WORK, f"workload.max_grad_norm={clip}")
    found = harness_curve(harness, tmp_path, overrides)
    expected = reference_curve(load(list(overrides)), clip, reference)
    assert len(found.losses) == STEPS
    # The comparison is significant only if the loss fell, and if some steps were clipped and some were not.
    assert expected.losses[-1] < expected.losses[0] - 0.3
    assert 5 <= sum(norm > clip for norm in expected.gradient_norms) <= STEPS - 5, expected.gradient_norms
    losses = largest_difference(found.losses, expected.losses)
    norms = largest_difference(found.gradient_norms, expected.gradient_norms)
    evaluation = largest_difference([found.final_eval_loss], [expected.final_eval_loss])
    print(f"{shape}: largest relative difference: loss {losses:.1e}, gradient norm {norms:.1e}, eval {evaluation:.1e}")
    # On a CPU: 2e-7, 2e-6 and 1e-7, the rounding of float32. With AdamW's epsilon at 1e-6: 7e-5, 1e-3 and 7e-5.
    assert losses <= 1e-5
    assert norms <= 1e-4
    assert evaluation <= 1e-5
