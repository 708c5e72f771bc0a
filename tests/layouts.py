"""Runs of one work in different layouts, and how far they lie apart."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.analysis.calibration import load_calibration
from harness.analysis.parity import ParityResult, compare_computation
from harness.layout import AXES
from harness.records.load import load_runs
from harness.records.run_folder import checkpoint_steps
from harness.text import layered_settings
from tests.ranks import Ended, end_ranks, record, run_harness, shared_zygote, start_ranks
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
# Less of it, for faults that show in the first steps.
SHORT_WORK = (
    "model.num_hidden_layers=3",
    "workload.global_batch_size=4",
    "workload.steps=8",
    "workload.eval_every=4",
    "workload.seq_len=16",
)
LLAMA = ("model.norm=rmsnorm", "model.activation=swiglu", "model.position_embedding=rotary")
EXPERTS = ("model.num_experts=4", "model.intermediate_size=48", "model.tie_word_embeddings=false")
MODELS = {
    "gpt2": ("model.vocab_size=50257", "model.position_embedding=learned", "model.bias=true"),
    "llama": (*LLAMA, "model.num_key_value_heads=2", "model.tie_word_embeddings=false"),
    "tied": (*LLAMA, "model.num_key_value_heads=1", "model.qk_norm=true", "model.tie_word_embeddings=true"),
    "experts": (*LLAMA, *EXPERTS),
    "turns": (*LLAMA, *EXPERTS, "model.routing=round_robin"),
    "mha": ("model.norm=rmsnorm", "model.position_embedding=rotary", "model.tie_word_embeddings=false"),
}
TOLERANCE = 1e-5
TIMEOUT_SECONDS = 400
ONE_PROCESS = "one process"
SAVED_STEP = 6
SAVING = (f"checkpoint.every={SAVED_STEP}", "checkpoint.keep=9", "resume=auto")


def short_work(model: str, *more: str) -> list[str]:
    return layered_settings(WORK, SHORT_WORK, MODELS[model], more)


def overrides_of(layout: str) -> tuple[int, list[str]]:
    """Return the number of processes of a layout, and its settings.

    Args:
        layout: words such as "pipeline=2 pipeline_schedule=gpipe", settings of `parallel=mesh`; "fsdp shard=2", of
            another preset; or "pipeline=2 model.num_hidden_layers=5", of other work too.
    """
    words = layout.split()
    presets = [word for word in words if "=" not in word]
    settings = [word for word in words if "." in word.partition("=")[0]]
    axes = [word for word in words if word not in presets and word not in settings]
    sizes = [int(size) for axis, size in (word.split("=") for word in axes) if axis in AXES]
    return math.prod(sizes), [f"parallel={[*presets, 'mesh'][0]}", *(f"parallel.{word}" for word in axes), *settings]


def other_work(layout: str) -> list[str]:
    """Return the settings of a layout that one process has too."""
    return [word for word in overrides_of(layout)[1] if not word.startswith("parallel")]


def file_name(layout: str) -> str:
    return layout.replace(" ", "-").replace("=", "")


def start(
    folder: Path, layout: str, settings: Sequence[str], name: str, *, fault: str = "none", **options: Any
) -> list[Forked]:
    """Start a training in a layout.

    Args:
        layout: as `overrides_of` reads it, or ONE_PROCESS.
        fault: one of tests/red_team.
        options: of `start_ranks`.
    """
    if layout == ONE_PROCESS:
        return [shared_zygote().start(["harness", *settings, f"out={name}"], folder, os.environ)]
    module = "tests.ranks" if fault == "none" else "tests.red_team.drive"
    size, own = overrides_of(layout)
    own = layered_settings(settings, own, [f"out={name}"])
    return start_ranks(size, own, folder, fault=fault, module=module, **options)


def train(folder: Path, layout: str, settings: Sequence[str], name: str, **options: Any) -> Path | str:
    """Train as `start` does, unless that is done; return the run's folder, or why there is none."""
    if is_done(folder / name):
        return folder / name
    if "resume=auto" not in settings:
        shutil.rmtree(folder / name, ignore_errors=True)
    ended = end_ranks(start(folder, layout, settings, name, **options), TIMEOUT_SECONDS)
    if not any(one.code for one in ended):
        return folder / name
    said = [line for rank, one in enumerate(ended) for line in (f"rank {rank}: exit code {one.code}", *_said(one))]
    return "\n".join([*said, *(error for one in ended for error in one.errors)])


def _said(ended: Ended) -> list[str]:
    """Return what a process wrote last, without the addresses of frames, which would be most of it."""
    return [line for line in ended.err.splitlines() if not line.startswith("frame #")][-25:]


def train_alone(folder: Path, settings: Sequence[str], name: str) -> Path:
    """Train in one process, unless that is done; return the run's folder."""
    if not is_done(folder / name):
        ended = run_harness(folder, *settings, f"out={name}", timeout=TIMEOUT_SECONDS)
        assert ended.code == 0, ended.err
    return folder / name


def honest(folder: Path, model: str, layout: str) -> Path:
    """Train the short work of a model in a layout, or in one process, unless that is done; return the run's folder."""
    if not layout:
        return train_alone(folder, short_work(model), model)
    # Every micro-batch costs many small collectives, and only a pipeline needs several.
    more = [] if "pipeline" in layout else ["workload.micro_batch_size=2"]
    found = train(folder, layout, short_work(model, *more), f"{model}-{file_name(layout)}")
    assert isinstance(found, Path), found
    return found


def is_done(run: Path) -> bool:
    return (run / "record.json").exists() and record(run)["status"] == "ok"


def compare(alone: Path, other: Path, precision: str) -> list[ParityResult]:
    """Return the results of the gate *same computation* between a run of one process and another."""
    [reference], [found] = load_runs(alone), load_runs(other)
    return compare_computation(reference, [found], precision, load_calibration())


def copy_at_checkpoint(run: Path, copy: Path, step: int = SAVED_STEP) -> Path:
    """Copy a run's folder, as it was when the run had just saved the checkpoint of `step`."""
    shutil.copytree(run, copy)
    for later in (number for number in checkpoint_steps(copy) if number > step):
        shutil.rmtree(copy / "checkpoints" / f"step-{later:08d}")
    (copy / "record.json").unlink()
    return copy


def train_in_two(
    folder: Path, layouts: tuple[str, str], settings: Sequence[str], name: str, **options: Any
) -> Path | str:
    """Train in one layout, and from its checkpoint of SAVED_STEP on in another; return as `train`."""
    settings = layered_settings(settings, SAVING)
    whole = train(folder, layouts[0], settings, f"{name}-whole", **options)
    if isinstance(whole, str):
        return whole
    if not is_done(folder / name):
        shutil.rmtree(folder / name, ignore_errors=True)
        copy_at_checkpoint(whole, folder / name)
    return train(folder, layouts[1], settings, name, **options)


def difference(alone: Path, other: Path, precision: str) -> str:
    one, two = record(alone), record(other)
    for what in ("workload_id", "digests"):
        if one[what] != two[what]:
            return f"{what} differ"
    if precision != "fp32":
        findings = compare(alone, other, precision)
        bad = [finding.text for finding in findings if finding.passed is not True]
        return f"ok {max(finding.share for finding in findings):.2f}" if not bad else "; ".join(bad)
    curves = [{**run["losses"], "eval": [point["loss"] for point in run["eval"]["points"]]} for run in (one, two)]
    train, held_out, norm = (relative(curves[1][key], curves[0][key]) for key in ("train", "eval", "gradient_norm"))
    loss = max(train, held_out)
    return f"{'ok' if max(loss, norm) < TOLERANCE else 'FAIL'} {loss:.0e} {norm:.0e}"


def relative(found: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))
