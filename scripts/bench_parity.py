"""Distance between honest runs of the same work, as a share of the limits of the parity gate.

    python scripts/bench_parity.py          about three minutes on two cores

The same work is computed with other rounding: another micro-batch size, another number of threads, unfused attention.
The table shows each quantity as a share of its limit (harness/analysis/parity.py). The limits are well above the
largest share here and well below those of the sabotage tests.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# As harness/__main__.py does: an installed plug-in of torch must not be loaded.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch

from harness import backends
from harness.analysis.parity import TOLERANCES, measure
from harness.composition import load
from harness.training.run import run
from harness.workload import model as model_module

WORK = (
    "model=tiny",
    "model.num_hidden_layers=2",
    "model.hidden_size=64",
    "model.num_attention_heads=4",
    "workload=smoke",
    "workload.seq_len=64",
    "workload.global_batch_size=8",
    "workload.micro_batch_size=8",
)
SHAPES = {
    "GPT-2-like": ("model.bias=true",),
    "Llama-like": (
        "model.num_key_value_heads=2",
        "model.norm=rmsnorm",
        "model.activation=swiglu",
        "model.tie_word_embeddings=false",
    ),
}
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def unfused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return causal attention from its definition, with the softmax in float32."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(-1, -2)).float() / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1).to(v.dtype) @ v


VARIANTS: dict[str, tuple[tuple[str, ...], Attention | None]] = {
    "micro-batches of 2, all threads": (("workload.micro_batch_size=2", "backend.threads=null"), None),
    "unfused attention": ((), unfused_attention),
    "both, micro-batches of 1": (("workload.micro_batch_size=1", "backend.threads=null"), unfused_attention),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    print(" " * 44 + " ".join(f"{tolerance.key:>14}" for tolerance in TOLERANCES))
    worst = dict.fromkeys((tolerance.key for tolerance in TOLERANCES), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for label, precision, shares in rows(Path(folder), options.steps):
            print(
                f"{label + ', ' + precision:<44}" + " ".join(f"{share:>14.4f}" for share in shares.values()), flush=True
            )
            worst = {key: max(worst[key], share) for key, share in shares.items()}
    print(f"{'largest share of the limit':<44}" + " ".join(f"{share:>14.4f}" for share in worst.values()))
    return 0 if max(worst.values()) < 1 else 1


def rows(folder: Path, steps: int) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield (variant, precision, share of each limit)."""
    for shape, overrides in SHAPES.items():
        for precision in ("fp32", "bf16", "fp16"):
            base = (*WORK, *overrides, f"workload.steps={steps}", f"precision={precision}", "backend.threads=1")
            reference = record(folder / f"{shape}-{precision}", base, None)
            for name, (changes, attention) in VARIANTS.items():
                other = record(folder / f"{shape}-{precision}-{name}", (*base, *changes), attention)
                shares = {t.key: abs(measure(t.key, reference, other) or 0.0) / t.limits[precision] for t in TOLERANCES}
                yield f"{shape}, {name}"[:36], precision, shares


def record(out: Path, overrides: tuple[str, ...], attention: Attention | None) -> dict[str, Any]:
    """Return the record of one run in this process, with another attention if one is given."""
    config = load([*overrides, f"out='{out}'"])
    fused = model_module.causal_attention
    model_module.causal_attention = attention or fused
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return run(config, backends.create(config.backend)).record
    finally:
        model_module.causal_attention = fused


if __name__ == "__main__":
    sys.exit(main())
