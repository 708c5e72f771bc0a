"""The metrics file, parsed by the Prometheus client."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import log
from harness.backends.sensors import Reading
from harness.errors import ConfigError
from harness.training.monitoring import prometheus as metrics_file
from harness.training.monitoring.prometheus import PrometheusFile, check_prometheus_file
from harness.training.observer import IntervalReport

parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus-client")

LABELS = {"run": 'runs/"a"', "model": "tiny", "device": "some\nchip"}


def interval(last: int = 20) -> IntervalReport:
    return IntervalReport(
        "measured", last - 9, last, 40, [2.0] * 9 + [1.5], [0.5] * 10, [0.01] * 10, [0.05] * 10, 5120, 0.5
    )


def read(path: Path) -> dict[str, float]:
    families = parser.text_string_to_metric_families(path.read_text())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_values_after_each_interval(tmp_path: Path) -> None:
    path = tmp_path / "harness.prom"
    latest: list[Reading | None] = [None]
    metrics = PrometheusFile(path, LABELS, reading=lambda: latest[0], clock=lambda: 1_700_000_000.0)
    assert read(path) == {"harness_run_info": 1.0, "harness_running": 1.0, "harness_tokens_total": 0.0}
    metrics.interval_done(interval())
    first = read(path)
    assert first == {
        "harness_run_info": 1.0, "harness_running": 1.0, "harness_tokens_total": 5120.0, "harness_step": 20.0,
        "harness_steps_planned": 40.0, "harness_loss": 1.5, "harness_gradient_norm": 0.5,
        "harness_learning_rate": 0.01, "harness_step_seconds": 0.05, "harness_tokens_per_second": 10240.0,
        "harness_last_progress_timestamp_seconds": 1_700_000_000.0,
    }  # fmt: skip
    latest[0] = Reading(power_watts=250.0, temperature_celsius=60.0)
    metrics.interval_done(interval(30))
    metrics.evaluated(30, 1.4)
    assert read(path).items() >= {
        "harness_tokens_total": 10240.0, "harness_evaluation_loss": 1.4, "harness_device_power_watts": 250.0,
        "harness_device_temperature_celsius": 60.0,
    }.items()  # fmt: skip
    # An unknown value is absent, not 0.
    assert "harness_device_clock_mhz" not in read(path)
    metrics.close()
    assert read(path)["harness_running"] == 0.0
    assert [child.name for child in tmp_path.iterdir()] == ["harness.prom"]


def test_labels_are_escaped_and_every_metric_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "harness.prom"
    PrometheusFile(path, LABELS).interval_done(interval())
    families = list(parser.text_string_to_metric_families(path.read_text()))
    [info] = [family for family in families if family.name == "harness_run_info"]
    assert info.samples[0].labels == LABELS
    assert all(family.documentation for family in families)


def test_an_emulated_device_has_no_speed(tmp_path: Path) -> None:
    path = tmp_path / "harness.prom"
    PrometheusFile(path, LABELS, shows_speed=False).interval_done(interval())
    assert not {"harness_step_seconds", "harness_tokens_per_second"} & set(read(path))
    assert "harness_loss" in read(path)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "harness.prom"
    metrics = PrometheusFile(path, LABELS)
    with open(path) as reader:
        metrics.interval_done(interval())
        # The old file is complete: the new one has replaced it.
        assert reader.read().endswith("harness_tokens_total 0.0\n")


def test_a_folder_that_vanishes_is_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up([], {})
    folder = tmp_path / "collector"
    folder.mkdir()
    metrics = PrometheusFile(folder / "harness.prom", LABELS)
    (folder / "harness.prom").unlink()
    folder.rmdir()
    for last in (10, 20, 30):
        metrics.interval_done(interval(last))
    metrics.close()
    assert capsys.readouterr().err.count("cannot be written") == 1


class TestCheck:
    def test_makes_the_folder(self, tmp_path: Path) -> None:
        check_prometheus_file(tmp_path / "new" / "harness.prom")
        assert list((tmp_path / "new").iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("harness.txt", "ending in .prom"),
            ("folder.prom", "is a folder"),
            ("file/harness.prom", "cannot be written"),
        ],
    )
    def test_unusable_files(self, name: str, expected: str, tmp_path: Path) -> None:
        (tmp_path / "folder.prom").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=expected):
            check_prometheus_file(tmp_path / name)

    def test_without_the_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
        with pytest.raises(ConfigError, match="pip install prometheus-client"):
            metrics_file.check_prometheus_file(None)
