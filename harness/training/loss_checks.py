"""Checks of each interval's losses and gradient norms: a run that diverges fails and names the samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from harness.config import Config
from harness.errors import RunFailed
from harness.text import counted
from harness.training.history import TrainingHistory

# Steps whose median loss a spike is measured against.
SPIKE_WINDOW = 50


def check_losses(config: Config, history: TrainingHistory, first_step: int, losses: Sequence[float],
                 norms: Sequence[float]) -> None:  # fmt: skip
    """Check the losses and gradient norms of the steps from `first_step` on, which are in the history already.

    Steps with a value that is not finite are added to the history.

    Raises:
        RunFailed: a value is not finite, or a loss jumped by more than `loss_spike_factor`.
    """
    _check_finite(config, history, first_step, losses, norms)
    if config.loss_spike_factor is not None:
        _check_spikes(config, config.loss_spike_factor, history, first_step, losses)


def _check_finite(config: Config, history: TrainingHistory, first_step: int, losses: Sequence[float],
                  norms: Sequence[float]) -> None:  # fmt: skip
    batch = config.workload.global_batch_size
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first_step):
        # With fp16 a gradient overflow is normal: the loss scaler skips that update.
        if math.isfinite(loss) and (math.isfinite(norm) or config.precision == "fp16"):
            continue
        what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", norm)
        samples = {"first_sample": (step - 1) * batch, "samples": batch}
        history.nonfinite.append({"step": step, "what": what, "value": str(value), **samples})
        count = len(history.nonfinite)
        if config.on_nonfinite == "skip" and count <= config.nonfinite_limit:
            continue
        skipped = ""
        if config.on_nonfinite == "skip":
            skipped = f", after {counted(count - 1, 'skipped update')} (nonfinite_limit)"
        remedies = "lower workload.learning_rate" + (
            " or lengthen workload.lr_warmup_steps"
            if config.precision == "fp32"
            else ", lengthen workload.lr_warmup_steps, or use precision=fp32"
        )
        raise RunFailed(
            f"the {what} became {value} at step {step} ({_samples(step, batch)}){skipped}; {remedies}",
            status="diverged",
            shared=True,
        )


def _check_spikes(
    config: Config, factor: float, history: TrainingHistory, first_step: int, losses: Sequence[float]
) -> None:
    for step, loss in enumerate(losses, first_step):
        before = history.losses[max(0, step - 1 - SPIKE_WINDOW) : step - 1]
        if len(before) < SPIKE_WINDOW or not loss > factor * statistics.median(before):
            continue
        raise RunFailed(
            f"the loss jumped to {loss:.4f} at step {step} ({_samples(step, config.workload.global_batch_size)}), "
            f"{loss / statistics.median(before):.2f} times the median of the {SPIKE_WINDOW} steps before; inspect "
            f"these samples, lower workload.learning_rate, or raise loss_spike_factor (now {factor:g})",
            status="loss_spike",
            shared=True,
        )


def _samples(step: int, batch: int) -> str:
    return f"samples {(step - 1) * batch} to {step * batch - 1}"
