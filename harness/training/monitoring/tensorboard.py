"""TensorBoard event files of a run, in the run's folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from harness import log
from harness.errors import ConfigError
from harness.records.run_folder import TENSORBOARD_FOLDER
from harness.training.observer import IntervalReport, LoopObserver


def check_tensorboard() -> None:
    """Raise ConfigError if TensorBoard's writer is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "tensorboard=true needs the package tensorboard, which is not installed; pip install tensorboard (the "
            "extra `tensorboard`), or set tensorboard=false"
        )


class TensorBoard(LoopObserver):
    """Writes loss, gradient norm, learning rate and speed of every step, between intervals."""

    def __init__(self, folder: Path, *, shows_speed: bool = True) -> None:
        # Imported here, since it takes a second that most runs save.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / TENSORBOARD_FOLDER))
        self._shows_speed = shows_speed
        self._broken = False

    def interval_done(self, report: IntervalReport) -> None:
        for offset, step in enumerate(range(report.first_step, report.last_step + 1)):
            self._add("loss/train", report.losses[offset], step)
            self._add("gradient_norm", report.gradient_norms[offset], step)
            self._add("learning_rate", report.learning_rates[offset], step)
        if self._shows_speed and report.tokens_per_second is not None:
            self._add("speed/tokens_per_second", report.tokens_per_second, report.last_step)
            self._add("speed/step_seconds", report.seconds / report.steps, report.last_step)

    def evaluated(self, step: int, loss: float) -> None:
        self._add("loss/evaluation", loss, step)

    def close(self) -> None:
        self._guarded(self._writer.close)

    def _add(self, name: str, value: float, step: int) -> None:
        self._guarded(self._writer.add_scalar, name, value, step)

    def _guarded(self, write: Any, *arguments: Any) -> None:
        if self._broken:
            return
        try:
            write(*arguments)
        except OSError as error:
            self._broken = True
            log.warning(f"tensorboard: curves cannot be written: {error}; the run continues without them")
