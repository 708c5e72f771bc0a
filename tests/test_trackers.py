"""Experiment trackers: what each is given, and that none of their failures costs a run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.__main__ import main
from harness.config import Config, iter_settings
from harness.errors import ConfigError, ExitCode
from harness.report import trackers
from harness.report.trackers import check_tracker, curves_of, summary_of, write_tracker
from tests.records import A100, ASCEND, make_record, merged


class Calls(ModuleType):
    """A module of a tracker that notes what it is given."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.started: dict[str, Any] = {}
        self.steps: dict[int, Mapping[str, float]] = {}
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def init(self, **arguments: Any) -> Calls:
        self.started, self.steps = arguments, {}
        return self

    def log(self, values: Mapping[str, float], step: int) -> None:
        assert not self.steps or step > max(self.steps)
        self.steps[step] = values

    def finish(self, exit_code: int | None = None) -> None:
        self.exit_code = exit_code

    def Settings(self, **arguments: Any) -> Any:  # noqa: N802 (the library's name)
        return arguments


@pytest.fixture
def record() -> dict[str, Any]:
    return make_record(on=A100)


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "SWANLAB_MODE", "SWANLAB_PROJ_NAME", "MLFLOW_TRACKING_URI",
                 "MLFLOW_EXPERIMENT_NAME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_every_tracker_of_the_settings_is_known() -> None:
    [item] = [item for key, item, _ in iter_settings(Config) if key == "tracker"]
    assert set(item.metadata["choices"]) == set(trackers.TRACKERS)


def test_curves_hold_every_value_of_the_record(record: dict[str, Any]) -> None:
    curves = curves_of(record)
    assert [values["loss/train"] for values in curves.values()] == record["losses"]["train"]
    assert [values["gradient_norm"] for values in curves.values()] == record["losses"]["gradient_norm"]
    points = {point["step"]: point["loss"] for point in record["eval"]["points"]}
    assert {step: each["loss/evaluation"] for step, each in curves.items() if "loss/evaluation" in each} == points
    timed = {step: values["speed/step_seconds"] for step, values in curves.items() if "speed/step_seconds" in values}
    assert list(timed.values()) == record["timing"]["step_seconds"]
    first = record["timing"]["intervals"][0]["first_step"]
    assert list(timed) == list(range(first, first + len(timed)))
    assert summary_of(record)["tokens_per_second"] == record["timing"]["tokens_per_second"]


def test_a_value_that_is_not_finite_is_left_out(record: dict[str, Any]) -> None:
    losses = {**record["losses"], "train": [None, *record["losses"]["train"][1:]]}
    assert "loss/train" not in curves_of({**record, "losses": losses})[1]


def test_an_emulated_device_has_no_speed() -> None:
    record = merged(make_record(on=ASCEND), {"device": {"emulated": True}})
    assert not any("speed/step_seconds" in values for values in curves_of(record).values())
    assert not {*summary_of(record)} & {*trackers.SPEEDS}


def test_wandb_is_offline_in_the_folder(record: dict[str, Any], tmp_path: Path, modes: pytest.MonkeyPatch) -> None:
    fake = Calls("wandb")
    modes.setitem(sys.modules, "wandb", fake)
    write_tracker("wandb", tmp_path, record)
    assert fake.started["mode"] == "offline"
    assert fake.started["dir"] == str(tmp_path / "tracker")
    assert fake.started["config"] == record["config"]
    assert fake.steps == curves_of(record)
    assert fake.summary == summary_of(record)
    assert fake.exit_code == 0
    modes.setenv("WANDB_MODE", "online")
    modes.setenv("WANDB_PROJECT", "ours")
    write_tracker("wandb", tmp_path, {**record, "status": "diverged"})
    assert (fake.started["mode"], fake.started["project"], fake.exit_code) == ("online", "ours", 1)


def test_swanlab_is_offline_in_the_folder(record: dict[str, Any], tmp_path: Path, modes: pytest.MonkeyPatch) -> None:
    fake = Calls("swanlab")
    modes.setitem(sys.modules, "swanlab", fake)
    write_tracker("swanlab", tmp_path, record)
    assert (fake.started["mode"], fake.started["logdir"]) == ("offline", str(tmp_path / "tracker"))
    assert fake.started["config"] == {**record["config"], "summary": summary_of(record)}
    assert fake.steps == curves_of(record)


class Mlflow:
    """A client of MLflow that notes what it is given."""

    def __init__(self, tracking_uri: str) -> None:
        self.address = tracking_uri
        self.params: dict[str, str] = {}
        self.metrics: dict[tuple[str, int], float] = {}
        self.ended: str | None = None
        self.artifacts: str | None = None
        CLIENTS.append(self)

    def get_experiment_by_name(self, _name: str) -> None:
        return None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        self.artifacts = artifact_location
        return name

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment_id}/{run_name}"))

    def log_batch(self, _run_id: str, metrics: Any = (), params: Any = ()) -> None:
        # The limits of its REST API.
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.metrics |= {(name, step): value for name, value, _, step in metrics}
        self.params |= dict(params)

    def set_terminated(self, _run_id: str, status: str) -> None:
        self.ended = status


CLIENTS: list[Mlflow] = []


@pytest.fixture
def mlflow(modes: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    package, entities = Calls("mlflow"), Calls("mlflow.entities")
    package.MlflowClient = Mlflow  # pyright: ignore[reportAttributeAccessIssue]
    entities.Metric = entities.Param = lambda *values: values  # pyright: ignore[reportAttributeAccessIssue]
    modes.setitem(sys.modules, "mlflow", package)
    modes.setitem(sys.modules, "mlflow.entities", entities)
    return modes


@pytest.mark.usefixtures("mlflow")
def test_mlflow_is_a_file_in_the_folder(record: dict[str, Any], tmp_path: Path) -> None:
    write_tracker("mlflow", tmp_path, record)
    client = CLIENTS.pop()
    assert client.address == f"sqlite:///{tmp_path}/tracker/mlflow.db"
    curves = curves_of(record)
    found = {key: value for key, value in client.metrics.items() if key[0] in curves[1]}
    assert found == {
        (name, step): value for step, values in curves.items() for name, value in values.items() if name in curves[1]
    }
    assert client.metrics["tokens_per_second", max(curves)] == record["timing"]["tokens_per_second"]
    assert client.params["workload.learning_rate"] == str(record["config"]["workload"]["learning_rate"])
    assert client.params["device"] == record["device"]["name"]
    assert client.ended == "FINISHED"
    assert client.artifacts == f"{tmp_path}/tracker/artifacts"


def test_a_tracker_that_fails_is_a_warning(record: dict[str, Any], tmp_path: Path, modes: pytest.MonkeyPatch,
                                           caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    fake = Calls("wandb")
    modes.setattr(fake, "log", lambda *_, **__: 1 / 0)
    modes.setitem(sys.modules, "wandb", fake)
    write_tracker("wandb", tmp_path, record)
    assert "tracker=wandb: could not write the run: division by zero; its record is complete" in caplog.text


def test_a_folder_of_its_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As wandb leaves it in the working directory, from which `python -m` imports first."""
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="needs the package some_tracker, which is not installed"):
        check_tracker("some_tracker")


def test_an_address_with_a_password_is_not_logged(
    record: dict[str, Any], tmp_path: Path, mlflow: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.setenv("MLFLOW_TRACKING_URI", "https://jdoe:hunter2@mlflow.example")
    caplog.set_level("INFO", logger="harness")
    write_tracker("mlflow", tmp_path, record)
    assert CLIENTS.pop().address.startswith("https://jdoe")
    assert "where MLFLOW_TRACKING_URI says" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_missing_package_is_found_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert main(["model=tiny", "tracker=wandb", f"out={tmp_path}/run"]) == ExitCode.USAGE
    assert not (tmp_path / "run").exists()
    assert "pip install wandb (the extra of that name), or set tracker=null" in capsys.readouterr().err
