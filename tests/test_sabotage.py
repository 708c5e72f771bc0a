"""Sabotage: twenty silent changes of a run's work, each caught by the gate named here, so that none gets a speed.

The sabotage patches the code of a running run; its config and its command line stay as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness import backends
from harness.analysis import verdict
from harness.analysis.run_group import load_run_groups
from harness.backends import eager
from harness.backends.cpu import CpuBackend
from harness.backends.eager import EagerStep
from harness.backends.npu import NpuBackend
from harness.composition import load
from harness.config import TrackConfig, WorkloadConfig
from harness.errors import RecordError
from harness.records.files import content_digest
from harness.text import layered_settings
from harness.training import loop as loop_module
from harness.training import prepare as prepare_module
from harness.training.distributed import parallel as parallel_module
from harness.training.monitoring.stderr_watch import StderrWatch
from harness.training.prefetch import Prefetcher
from harness.training.run import run
from harness.workload import initialization as initialisation
from harness.workload import model as model_module
from harness.workload.model import Transformer

# Small, but with everything that can be sabotaged: accumulation, active clipping, norms, biases, rotary positions.
SETTINGS = (
    "model=tiny", "model.num_hidden_layers=2", "model.hidden_size=64", "model.num_attention_heads=4", "model.bias=true",
    "workload=smoke", "workload.steps=60", "workload.timing_warmup_steps=10", "workload.seq_len=64",
    "workload.global_batch_size=8", "workload.micro_batch_size=4", "workload.eval_every=30",
    "workload.max_grad_norm=0.5", "backend.threads=1",
)  # fmt: skip

Patch = Callable[[pytest.MonkeyPatch], None]
# In the training: the looks of the fingerprint come before it.
LATER_CALL = 40


def train(folder: Path, *overrides: str) -> Path:
    config = load(layered_settings(SETTINGS, [*overrides, f"out={folder}"]))
    run(config, backends.create(config.backend))
    return folder


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("honest")
    return {precision: train(folder / precision, f"precision={precision}") for precision in ("fp32", "bf16")}


def judged(reference: Path, other: Path) -> verdict.Pair:
    return verdict.compare(load_run_groups([reference, other])).pairs[0]


def learning_rate_off(patch: pytest.MonkeyPatch) -> None:
    real = loop_module.learning_rate
    patch.setattr(loop_module, "learning_rate", lambda step, work: 1.02 * real(step, work))


def skipped_batch(patch: pytest.MonkeyPatch) -> None:
    real, calls = Prefetcher.next, []

    def following(self: Prefetcher) -> Any:
        calls.append(1)
        if len(calls) == 5:
            real(self)
        return real(self)

    patch.setattr(Prefetcher, "next", following)
    # One more is made, so that the last step has its data.
    made = Prefetcher.__init__
    patch.setattr(
        Prefetcher, "__init__", lambda self, data, work, **k: made(self, data, replace(work, steps=work.steps + 1), **k)
    )


def shuffled_order(patch: pytest.MonkeyPatch) -> None:
    real, exchanged = Prefetcher._make, {4: 5, 5: 4}

    def make(self: Prefetcher, step: int) -> Any:
        return real(self, exchanged.get(step, step))

    patch.setattr(Prefetcher, "_make", make)


def other_batch_than_was_counted(patch: pytest.MonkeyPatch) -> None:
    """The data are counted as they should be, but the step trains on the last batch once more."""
    real, seen = EagerStep.__call__, []

    def step(self: EagerStep, micro_batches: Sequence[torch.Tensor], rate: float) -> Any:
        seen.append(micro_batches)
        return real(self, seen[-2] if len(seen) == LATER_CALL else micro_batches, rate)

    patch.setattr(EagerStep, "__call__", step)


def frozen_layer(patch: pytest.MonkeyPatch) -> None:
    real = parallel_module.build_model

    def build(*arguments: Any, **named: Any) -> Transformer:
        model = real(*arguments, **named)
        model.blocks[0].feed_forward.down.weight.requires_grad_(False)  # pyright: ignore
        return model

    patch.setattr(parallel_module, "build_model", build)


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, _: torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in parameters]))  # fmt: skip


def half_precision_of_another_kind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(eager, "autocast_dtype", lambda precision: torch.float16)


def optimizer_with(**changes: Any) -> Patch:
    def sabotage(patch: pytest.MonkeyPatch) -> None:
        real = prepare_module.build_optimizer

        def build(model: torch.nn.Module, work: WorkloadConfig, track: TrackConfig) -> torch.optim.AdamW:
            optimizer = real(model, work, track)
            for group in optimizer.param_groups:
                group.update(changes)
            return optimizer

        patch.setattr(prepare_module, "build_optimizer", build)

    return sabotage


def one_layer_fewer(patch: pytest.MonkeyPatch) -> None:
    real = parallel_module.build_model

    def build(config: Any, *rest: Any, **named: Any) -> Transformer:

        return real(replace(config, num_hidden_layers=config.num_hidden_layers - 1), *rest, **named)

    patch.setattr(parallel_module, "build_model", build)


def targets_off_by_one(patch: pytest.MonkeyPatch) -> None:
    def forward(self: Transformer, sequences: torch.Tensor) -> torch.Tensor:
        logits = self.logits(sequences[:, :-1])[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), sequences[:, 2:].flatten())

    patch.setattr(Transformer, "forward", forward)


def half_the_tokens(patch: pytest.MonkeyPatch) -> None:
    def forward(self: Transformer, sequences: torch.Tensor) -> torch.Tensor:
        targets = sequences[:, 1:].clone()
        targets[:, ::2] = -100
        logits = self.logits(sequences[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)

    patch.setattr(Transformer, "forward", forward)


def summed_accumulation(patch: pytest.MonkeyPatch) -> None:
    real = EagerStep._loss
    patch.setattr(EagerStep, "_loss", lambda self, part: real(self, part) * (2 if self._model.training else 1))


def wrong_rotary_base(patch: pytest.MonkeyPatch) -> None:
    real = model_module.rotary_tables
    patch.setattr(model_module, "rotary_tables", lambda length, size, base: real(length, size, 10 * base))


def no_causal_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model_module, "causal_attention", F.scaled_dot_product_attention)


def unscaled_initialisation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(initialisation, "RESIDUAL_OUTPUTS", ())


def zero_gradients(patch: pytest.MonkeyPatch) -> None:
    real = torch.nn.utils.clip_grad_norm_

    def clip(parameters: Sequence[torch.nn.Parameter], limit: float) -> torch.Tensor:
        norm = real(parameters, limit)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        return norm

    patch.setattr(torch.nn.utils, "clip_grad_norm_", clip)


def fallback_on_the_host(patch: pytest.MonkeyPatch) -> None:
    """As the NPU's libraries do it: the work goes on, and only a line on descriptor 2 reports it."""
    patch.setattr(CpuBackend, "fallback_pattern", NpuBackend.fallback_pattern)
    real = EagerStep.__call__

    def step(self: EagerStep, micro_batches: Sequence[torch.Tensor], rate: float) -> Any:
        os.write(2, b"[W1] CAUTION: The operator 'aten::x' is not currently supported on the NPU backend and will fall "
                    b"back to run on the CPU. This may have performance implications.\n")  # fmt: skip
        return real(self, micro_batches, rate)

    patch.setattr(EagerStep, "__call__", step)


def watcher_killed(patch: pytest.MonkeyPatch) -> None:
    """Kill the reader of descriptor 2, so that a fallback to the host cannot be detected."""
    patch.setattr(CpuBackend, "fallback_pattern", NpuBackend.fallback_pattern)
    real = EagerStep.__call__

    def step(self: EagerStep, micro_batches: Sequence[torch.Tensor], rate: float) -> Any:
        watch = StderrWatch._active
        assert watch is not None
        assert watch._reader is not None
        watch._reader.kill()
        return real(self, micro_batches, rate)

    patch.setattr(EagerStep, "__call__", step)


BOTH = ("fp32", "bf16")
SABOTAGE: dict[str, tuple[tuple[str, ...], Patch, str]] = {
    "learning rate off by 2 %": (BOTH, learning_rate_off, "same computation"),
    "a skipped batch": (BOTH, skipped_batch, "comparable"),
    "a shuffled order": (BOTH, shuffled_order, "comparable"),
    "a batch repeated, hidden from the digest": (BOTH, other_batch_than_was_counted, "same computation"),
    "one layer without gradient": (BOTH, frozen_layer, "same computation"),
    "gradient clipping dropped": (BOTH, no_clipping, "same computation"),
    "weight decay on norms and biases": (BOTH, optimizer_with(weight_decay=0.1), "same computation"),
    "another epsilon": (BOTH, optimizer_with(eps=1e-6), "same computation"),
    "one fewer layer with the same config": (BOTH, one_layer_fewer, "comparable"),
    "targets off by one": (BOTH, targets_off_by_one, "same computation"),
    "accumulation not averaged": (BOTH, summed_accumulation, "same computation"),
    "half the tokens masked": (BOTH, half_the_tokens, "same computation"),
    "a wrong rotary base": (BOTH, wrong_rotary_base, "same computation"),
    "no causal mask": (BOTH, no_causal_mask, "same computation"),
    "an unscaled initialisation": (BOTH, unscaled_initialisation, "comparable"),
    "gradients zero": (BOTH, zero_gradients, "same computation"),
    "a fallback on the host": (BOTH, fallback_on_the_host, "finished"),
    "the watch for fallbacks ended from outside": (BOTH, watcher_killed, "finished"),
    "fp16 in place of bf16": (("bf16",), half_precision_of_another_kind, "finished"),
}


@pytest.mark.parametrize(
    ("what", "precision"), [(what, precision) for what, entry in SABOTAGE.items() for precision in entry[0]]
)
def test_is_caught(
    what: str, precision: str, honest: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sabotage, gate = SABOTAGE[what]
    with monkeypatch.context() as patch:
        sabotage(patch)
        train(tmp_path / "run", f"precision={precision}")
    pair = judged(honest[precision], tmp_path / "run")
    print(pair.summary)
    assert pair.verdict not in (verdict.EQUIVALENT, verdict.FASTER, verdict.SLOWER, verdict.INCONCLUSIVE)
    assert pair.quantities == ()
    assert [entry.name for entry in pair.gates if entry.passed is False] == [gate]


def test_another_seed_is_caught(honest: dict[str, Path], tmp_path: Path) -> None:
    pair = judged(honest["fp32"], train(tmp_path / "run", "seed=2"))
    assert pair.verdict == verdict.NOT_COMPARABLE
    assert "seed: 1 against 2" in pair.gates[-1].details


@pytest.mark.parametrize("careful", [False, True], ids=["by an editor", "checksum recomputed"])
def test_a_tampered_record_is_refused(careful: bool, honest: dict[str, Path], tmp_path: Path) -> None:
    record: dict[str, Any] = json.loads((honest["fp32"] / "record.json").read_text())
    record["timing"]["mean_step_seconds"] /= 2
    if careful:
        record["content_sha256"] = content_digest(record)
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match=r"was changed after|does not follow from its own intervals"):
        load_run_groups([honest["fp32"], tmp_path])


def test_the_honest_run_passes(honest: dict[str, Path], tmp_path: Path) -> None:
    """Negative control: the gates catch the sabotage, not the harness."""
    for precision, reference in honest.items():
        again = train(
            tmp_path / precision, f"precision={precision}", "backend.threads=2", "workload.micro_batch_size=8"
        )
        pair = judged(reference, again)
        assert all(gate.passed is not False for gate in pair.gates), pair.summary
        assert pair.quantities
