"""Small trainings through the harness's own modules on either device, and the distance between their curves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch

from harness import backends
from harness.backends.step import residual_dtype
from harness.composition import load
from harness.schedule import learning_rate
from harness.training.probe import probe
from harness.workload.data import open_dataset
from harness.workload.digest import init_digest, parameter_norms
from harness.workload.initialization import build_model
from harness.workload.optimizer import build_optimizer

SHAPES = {
    "gpt2": ("model=gpt2-124m", "model.max_position_embeddings=32"),
    # Two key and value heads for four query heads, and an odd intermediate size.
    "llama": (
        "model=llama-1b",
        "model.num_key_value_heads=2",
        "model.intermediate_size=88",
        "model.max_position_embeddings=32",
    ),
}
EXPERTS = ("model.num_experts=4", "model.max_position_embeddings=32", "model.intermediate_size=48")
MIXTURES = {
    "learned": ("model=llama-1b", *EXPERTS),
    "round_robin": ("model=llama-1b", *EXPERTS, "model.routing=round_robin"),
}
WORK = (
    "model.num_hidden_layers=2",
    "model.hidden_size=64",
    "model.num_attention_heads=4",
    "model.vocab_size=128",
    "workload=smoke",
    "workload.seq_len=32",
    "workload.global_batch_size=4",
    "workload.micro_batch_size=2",
    "workload.timing_warmup_steps=2",
    "workload.learning_rate=3e-3",
    "workload.lr_warmup_steps=2",
    "workload.max_grad_norm=0.8",
    "backend.threads=1",
)
# Weights so large that gradients overflow at the loss scaler's first scale: steps are skipped, and the scale falls.
OVERFLOWING = ("model.initializer_range=1.0",)


class Setup(NamedTuple):
    """Configuration of one training."""

    shape: str
    precision: str
    adamw: str

    def __str__(self) -> str:
        return f"{self.shape}-{self.precision}-{self.adamw}"


def setups(precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")) -> Iterator[Setup]:
    """Yield every combination of shape, precision and AdamW."""
    for shape, precision, adamw in product(SHAPES, precisions, ("foreach", "for_loop", "fused")):
        yield Setup(shape, precision, adamw)


def train(backend_name: str, setup: Setup, steps: int) -> dict[str, Any]:
    """Train from the same weights on the same tokens and return the curves; all numbers as Python floats.

    Keys: `losses`, `norms` (of the gradients, before clipping), `held_out`, `parameters` (their final norms), `init`
    (digest), `effective_settings` (as probed), `skipped` (steps, by the loss scaler).
    """
    config = load([
        f"backend={backend_name}",
        *(SHAPES | MIXTURES)[setup.shape],
        *WORK,
        *(OVERFLOWING if setup.precision == "fp16" else ()),
        f"precision={setup.precision}",
        f"track.adamw={setup.adamw}",
        f"workload.steps={max(steps, 10)}",
    ])  # fmt: skip
    backend = backends.create(config.backend)
    backend.load()
    backend.apply(config.precision)
    work = config.workload
    dataset = open_dataset(config)
    model = build_model(config.model, config.seed, backend.device(), residual_dtype=residual_dtype(config.precision))
    result: dict[str, Any] = {"effective_settings": probe(backend, config), "init": init_digest(model)}
    optimizer = build_optimizer(model, work, config.track)
    # CANN's fused AdamW takes its hyper-parameters in float32: rounded on the CPU, the curves are equal to the bit.
    rounded = np.float32 if setup.adamw == "fused" else float
    for group in optimizer.param_groups:
        group.update(
            betas=tuple(float(rounded(beta)) for beta in group["betas"]),
            eps=float(rounded(group["eps"])),
            weight_decay=float(rounded(group["weight_decay"])),
        )
    step = backend.prepare(model, optimizer, precision=config.precision, max_grad_norm=work.max_grad_norm)
    outputs = []
    for number in range(1, steps + 1):
        batch = torch.from_numpy(dataset.train((number - 1) * work.global_batch_size, work.global_batch_size))
        rate = float(rounded(learning_rate(number, work)))
        outputs.append(step(batch.split(work.micro_batch_size), rate))
    held_out = step.evaluate(torch.from_numpy(dataset.held_out(0, 4)))
    backend.synchronize()
    return {
        **result,
        "losses": [output.loss.item() for output in outputs],
        "norms": [output.gradient_norm.item() for output in outputs],
        "held_out": held_out.item(),
        "parameters": parameter_norms(dict(model.named_parameters())),
        "skipped": step.skipped_steps(),
    }


def distance(reference: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest relative difference of any number of two results.

    A gradient norm that is not a number on both sides, in a skipped step, is no difference; on one side it is infinite.
    """
    pairs = [
        *zip(reference["losses"], other["losses"], strict=True),
        *zip(reference["norms"], other["norms"], strict=True),
        (reference["held_out"], other["held_out"]),
        (reference["skipped"], other["skipped"]),
        *((norm, other["parameters"][name]) for name, norm in reference["parameters"].items()),
    ]
    return max(_difference(a, b) for a, b in pairs)


def _difference(a: float, b: float) -> float:
    # Checked first: comparisons with NaN are false, so that max() would drop it.
    if not (math.isfinite(a) and math.isfinite(b)):
        return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else math.inf
    return abs(a - b) / abs(a) if a else abs(b)
