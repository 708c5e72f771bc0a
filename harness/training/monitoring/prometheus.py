"""Metrics file in Prometheus' text format, for node_exporter's textfile collector: rewritten after each interval."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import log
from harness.backends.sensors import Reading
from harness.errors import ConfigError
from harness.records.files import replace_file
from harness.regular_files import read_file
from harness.training.observer import IntervalReport, LoopObserver

# Gauges and their help texts; the units are in the names, as Prometheus recommends.
GAUGES = {
    "harness_step": "Optimizer steps done.",
    "harness_steps_planned": "Optimizer steps planned for the run.",
    "harness_loss": "Training loss of the last step, nats per token.",
    "harness_gradient_norm": "Global 2-norm of the last step's gradients before clipping.",
    "harness_learning_rate": "Learning rate of the last step.",
    "harness_step_seconds": "Mean time of a step in the last interval.",
    "harness_tokens_per_second": "Tokens per second of the last interval, all devices together.",
    "harness_evaluation_loss": "Loss of the last evaluation, nats per token.",
    "harness_last_progress_timestamp_seconds": "When the last interval or evaluation ended, Unix time.",
    "harness_device_power_watts": "Power of the first device at the last reading.",
    "harness_device_temperature_celsius": "Temperature of the first device at the last reading.",
    "harness_device_clock_mhz": "Clock of the first device at the last reading.",
}


class PrometheusFile(LoopObserver):
    """Writes the metrics file. If it becomes unwritable, the run logs one warning and continues."""

    def __init__(
        self,
        path: Path,
        labels: Mapping[str, str],
        *,
        shows_speed: bool = True,
        reading: Callable[[], Reading | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            labels: of the metric `harness_run_info`, which identifies the run.
            reading: returns the latest reading of the device's sensor, if any.
        """
        prometheus = _library()
        self._path, self._reading, self._clock, self._shows_speed = path, reading, clock, shows_speed
        self._registry = prometheus.CollectorRegistry()
        self._text = prometheus.generate_latest
        info = prometheus.Gauge(
            "harness_run_info", "Labels of the run; always 1.", tuple(labels), registry=self._registry
        )
        info.labels(**labels).set(1)
        self._running = prometheus.Gauge(
            "harness_running", "1 while the run trains, 0 once it has ended.", registry=self._registry
        )
        self._tokens = prometheus.Counter(
            "harness_tokens", "Tokens trained on by this process's run.", registry=self._registry
        )
        self._gauge = prometheus.Gauge
        self._gauges: dict[str, Any] = {}
        self._warned = False
        self._running.set(1)
        self._write()

    def interval_done(self, report: IntervalReport) -> None:
        self._tokens.inc(report.tokens)
        self._set("harness_step", report.last_step)
        self._set("harness_steps_planned", report.steps_planned)
        self._set("harness_loss", report.loss)
        self._set("harness_gradient_norm", report.gradient_norms[-1])
        self._set("harness_learning_rate", report.learning_rates[-1])
        if self._shows_speed:
            self._set("harness_step_seconds", report.seconds / report.steps)
            self._set("harness_tokens_per_second", report.tokens_per_second)
        self._progressed()

    def evaluated(self, step: int, loss: float) -> None:
        self._set("harness_evaluation_loss", loss)
        self._progressed()

    def close(self) -> None:
        """Set `harness_running` to 0; the last values stay."""
        self._running.set(0)
        self._write()

    def _progressed(self) -> None:
        self._set("harness_last_progress_timestamp_seconds", self._clock())
        reading = self._reading()
        if reading is not None:
            self._set("harness_device_power_watts", reading.power_watts)
            self._set("harness_device_temperature_celsius", reading.temperature_celsius)
            self._set("harness_device_clock_mhz", reading.clock_mhz)
        self._write()

    def _set(self, name: str, value: float | None) -> None:
        """Set a gauge, which is in the file from its first value on: an unknown value is absent, not 0."""
        if value is None:
            return
        if name not in self._gauges:
            self._gauges[name] = self._gauge(name, GAUGES[name], registry=self._registry)
        self._gauges[name].set(value)

    def _write(self) -> None:
        try:
            replace_file(self._path, self._text(self._registry).decode("utf-8"))
        except OSError as error:
            if not self._warned:
                log.warning(f"metrics_file: {self._path} cannot be written: {error.strerror}; the run continues")
            self._warned = True


def check_prometheus_file(path: Path | None) -> None:
    """Check, before the run, that the metrics file can be written. None if another process writes it.

    Raises:
        ConfigError: it cannot, it is another program's, or prometheus-client is not installed.
    """
    _library()
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"metrics_file: {path} is a folder; name a file in it, ending in .prom")
    if path.suffix != ".prom":
        raise ConfigError(f"metrics_file: found {path}, expected a name ending in .prom: node_exporter reads no other")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        before = read_file(path).decode("utf-8", errors="replace") if os.path.lexists(path) else ""
    except OSError as error:
        raise ConfigError(
            f"metrics_file: {path} cannot be written: {error.strerror}; choose a folder that this user can write to"
        ) from error
    if before.strip() and "harness_run_info" not in before:
        raise ConfigError(f"metrics_file: {path} exists and was not written by this harness; choose another name")


def _library() -> Any:
    try:
        import prometheus_client  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError(
            "metrics_file: needs the package prometheus-client, which is not installed; pip install prometheus-client "
            "(the extra `ops`)"
        ) from error
    # Otherwise every counter comes with a second metric, its creation time.
    prometheus_client.disable_created_metrics()
    return prometheus_client
