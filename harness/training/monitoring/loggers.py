"""Who is told of a run's progress, by its settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from harness import log
from harness.backends.sensors import Reading
from harness.config import Config, workload_id
from harness.training.monitoring.progress import JsonProgress, MetricsLogger, MetricsLoggers, Progress
from harness.training.monitoring.prometheus import PrometheusFile
from harness.training.setup import Facts


def build_loggers(
    config: Config,
    facts: Facts,
    folder: Path,
    *,
    done: int,
    stream: TextIO,
    reading: Callable[[], Reading | None],
) -> MetricsLoggers:
    """Return all of them, on the process that speaks for the run.

    Args:
        done: steps that the run has behind it already.
        stream: where the display goes.
        reading: returns the last look at the device.
    """
    # An emulation's speed is nobody's.
    shows_speed = not facts.device.get("emulated")
    steps = config.workload.steps
    found: list[MetricsLogger] = []
    labels = {
        "run": str(folder),
        "workload_id": workload_id(config),
        "model": config.model.name,
        "precision": config.precision,
        "track": config.track.name,
        "backend": config.backend.name,
        "device": str(facts.device.get("name")),
    }
    if log.is_json():
        log.info("run began", **labels, steps=steps, from_step=done)
        found.append(JsonProgress(steps, done=done, shows_speed=shows_speed))
    elif log.shows("info"):
        found.append(Progress(steps, done=done, shows_speed=shows_speed, stream=stream))
    if config.metrics_file is not None:
        path = Path(config.metrics_file).expanduser()
        found.append(PrometheusFile(path, labels, shows_speed=shows_speed, reading=reading))
    if config.tensorboard:
        from harness.training.monitoring.tensorboard import TensorBoard

        found.append(TensorBoard(folder, shows_speed=shows_speed))
    return MetricsLoggers(*found)
