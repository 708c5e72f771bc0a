"""Runs of one work in different layouts, and how far they lie apart."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.analysis.calibration import load_calibration
from harness.analysis.parity import compare_computation
from harness.records.load import load_runs
from harness.records.run_folder import checkpoint_steps
from harness.text import layered_settings
from tests.ranks import end_ranks, record, shared_zygote, start_ranks
from tests.zygote import Forked

WORK = (
    "model=tiny",
    "model.num_hidden_layers=4",
    "model.hidden_size=32",
    "model.num_attention_heads=4",
    "workload=smoke",
    "workload.steps=20",
    "workload.timing_warmup_steps=4",
    "workload.seq_len=32",
    "workload.global_batch_size=8",
    "workload.micro_batch_size=1",
    "workload.eval_every=10",
    "workload.eval_sequences=5",
    "workload.lr_warmup_steps=4",
    "backend.threads=1",
)
LLAMA = ("model.norm=rmsnorm", "model.activation=swiglu", "model.position_embedding=rotary")
MODELS = {
    "gpt2": ("model.vocab_size=50257", "model.position_embedding=learned", "model.bias=true"),
    "llama": (*LLAMA, "model.num_key_value_heads=2", "model.tie_word_embeddings=false"),
    "tied": (*LLAMA, "model.num_key_value_heads=1", "model.qk_norm=true", "model.tie_word_embeddings=true"),
    "mha": ("model.norm=rmsnorm", "model.position_embedding=rotary", "model.tie_word_embeddings=false"),
}
TOLERANCE = 1e-5
TIMEOUT_SECONDS = 200
ONE_PROCESS = "one process"
SAVED_STEP = 6
SAVING = (f"checkpoint.every={SAVED_STEP}", "checkpoint.keep=9", "resume=auto")


def start(folder: Path, layout: str, settings: Sequence[str], name: str, fault: str = "none") -> list[Forked]:
    """Start a run: `tensor=2 data=2` of parallel=mesh, `fsdp=4` of parallel=fsdp on 4 processes, or ONE_PROCESS."""
    if layout == ONE_PROCESS:
        argv = ["tests.ranks", fault, *layered_settings(settings, [f"out={name}"])]
        return [shared_zygote().start(argv, folder, os.environ)]
    axes = {axis: int(parts) for axis, parts in (part.split("=") for part in layout.split())}
    mesh = ["parallel=mesh", *(f"parallel.{axis}={parts}" for axis, parts in axes.items())]
    own = layered_settings(["parallel=fsdp"] if "fsdp" in axes else mesh, settings, [f"out={name}"])
    return start_ranks(math.prod(axes.values()), own, folder, fault=fault)


def train(folder: Path, layout: str, settings: Sequence[str], name: str) -> Path | str:
    """Train in a layout, as `start` reads it; return the run's folder, or why there is none."""
    ended = end_ranks(start(folder, layout, settings, name), TIMEOUT_SECONDS)
    errors = [line for one in ended if one.code for line in one.err.strip().splitlines()[-12:]]
    return "\n".join(errors) if errors else folder / name


def copy_at_checkpoint(run: Path, copy: Path, step: int = SAVED_STEP) -> Path:
    """Copy a run's folder, as it was when the run had just saved the checkpoint of `step`."""
    shutil.copytree(run, copy)
    for later in (number for number in checkpoint_steps(copy) if number > step):
        shutil.rmtree(copy / "checkpoints" / f"step-{later:08d}")
    (copy / "record.json").unlink()
    return copy


def train_in_two(folder: Path, layouts: tuple[str, str], settings: Sequence[str], name: str) -> Path | str:
    """Train in one layout, and from its checkpoint of SAVED_STEP on in another; return as `train`."""
    settings = layered_settings(settings, SAVING)
    whole = train(folder, layouts[0], settings, f"{name}-whole")
    if isinstance(whole, str):
        return whole
    copy_at_checkpoint(whole, folder / name)
    return train(folder, layouts[1], settings, name)


def difference(alone: Path, other: Path, precision: str) -> str:
    one, two = record(alone), record(other)
    for what in ("workload_id", "digests"):
        if one[what] != two[what]:
            return f"{what} differ"
    if precision != "fp32":
        [reference], [found] = load_runs(alone), load_runs(other)
        findings = compare_computation(reference, [found], precision, load_calibration())
        bad = [finding.text for finding in findings if finding.passed is not True]
        return f"ok {max(finding.share for finding in findings):.2f}" if not bad else "; ".join(bad)
    loss, norm = (relative(two["losses"][key], one["losses"][key]) for key in ("train", "gradient_norm"))
    return f"{'ok' if max(loss, norm) < TOLERANCE else 'FAIL'} {loss:.0e} {norm:.0e}"


def relative(found: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))
