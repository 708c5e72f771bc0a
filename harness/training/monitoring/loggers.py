"""Loggers of a run's progress, chosen by its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from harness import log
from harness.config import Config, workload_id
from harness.records.steps import StepsWriter
from harness.training.monitoring.progress import JsonProgress, Progress
from harness.training.monitoring.prometheus import PrometheusFile
from harness.training.monitoring.telemetry import Telemetry
from harness.training.observer import IntervalReport, LoopObserver


class StepsLogger(LoopObserver):
    """Writes every finished step to steps.jsonl."""

    def __init__(self, writer: StepsWriter) -> None:
        self._writer = writer

    def interval_done(self, report: IntervalReport) -> None:
        tokens = report.tokens // report.steps
        self._writer.append(
            {
                "step": report.first_step + index,
                "phase": report.phase,
                "loss": report.losses[index],
                "gradient_norm": report.gradient_norms[index],
                "learning_rate": report.learning_rates[index],
                "tokens": tokens,
                "seconds": report.step_seconds[index],
            }
            for index in range(report.steps)
        )

    def close(self) -> None:
        self._writer.close()


def build_loggers(
    config: Config, folder: Path, device: dict[str, Any], telemetry: Telemetry, *, stream: TextIO, from_step: int
) -> list[LoopObserver]:
    """Return the loggers of rank 0, steps.jsonl first.

    Args:
        device: the record's description.
        telemetry: its latest reading goes into the metrics file.
        stream: of the progress display.
        from_step: steps done by earlier attempts.

    Raises:
        RunFailed: steps.jsonl cannot be written.
    """
    # The speed of an emulation is not that of any device.
    shows_speed = not device.get("emulated")
    steps = config.workload.steps
    loggers: list[LoopObserver] = [StepsLogger(StepsWriter(folder, from_step))]
    labels = {
        "run": str(folder),
        "workload_id": workload_id(config),
        "model": config.model.name,
        "precision": config.precision,
        "track": config.track.name,
        "backend": config.backend.name,
        "device": str(device.get("name")),
    }
    if log.is_json():
        log.info("run began", **labels, steps=steps, from_step=from_step)
        loggers.append(JsonProgress(steps, done=from_step, shows_speed=shows_speed))
    elif log.shows("info"):
        loggers.append(Progress(steps, done=from_step, shows_speed=shows_speed, stream=stream))
    if config.metrics_file is not None:
        path = Path(config.metrics_file).expanduser()
        loggers.append(PrometheusFile(path, labels, shows_speed=shows_speed, reading=lambda: telemetry.latest))
    if config.tensorboard:
        from harness.training.monitoring.tensorboard import TensorBoard

        loggers.append(TensorBoard(folder, shows_speed=shows_speed))
    return loggers
