"""Experiment trackers: a finished run's record as a run of Weights & Biases, SwanLab or MLflow, in the run's folder.

A tracker is written once the record is, so that none of its threads and processes exists while anything is timed, and
none of its failures costs a record. It is offline unless its own variable (WANDB_MODE, SWANLAB_MODE,
MLFLOW_TRACKING_URI) says otherwise; each has a command that uploads what it wrote.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import log
from harness.config import flatten
from harness.errors import ConfigError
from harness.records.load import get_path
from harness.records.run_folder import TRACKER_FOLDER

PROJECT = "training-harness"
# MLflow takes no more in one call.
MAX_BATCH = 1000
# Figures of the whole run, by their name in a tracker.
SUMMARY = {
    "status": ("status",),
    "tokens_per_second": ("timing", "tokens_per_second"),
    "mean_step_seconds": ("timing", "mean_step_seconds"),
    "achieved_flops": ("utilization", "achieved_flops"),
    "mfu": ("utilization", "mfu"),
    "peak_memory_bytes": ("memory", "peak_allocated_bytes"),
    "joules_per_token": ("telemetry", "joules_per_token"),
    "final_evaluation_loss": ("eval", "final"),
    "parameters": ("model", "parameters"),
    "device": ("device", "name"),
    "torch": ("environment", "packages", "torch"),
    "git_commit": ("environment", "git", "commit"),
    "workload_id": ("workload_id",),
    "content_sha256": ("content_sha256",),
}
SPEEDS = ("tokens_per_second", "mean_step_seconds", "achieved_flops", "mfu", "joules_per_token")

Record = Mapping[str, Any]
Curves = dict[int, dict[str, float]]


def check_tracker(name: str) -> None:
    """Raise ConfigError if a tracker's package, which has its name, is not installed."""
    found = importlib.util.find_spec(name)
    # A folder of that name, which wandb leaves in the working directory, is found too, without an origin.
    if found is None or found.origin is None:
        raise ConfigError(
            f"tracker={name} needs the package {name}, which is not installed; pip install {name} (the extra of that "
            "name), or set tracker=null"
        )


def write_tracker(name: str, folder: Path, record: Record) -> None:
    """Write a record to a tracker. What fails there is a warning: the record is what counts.

    Args:
        name: one of TRACKERS.
        folder: of the run.
    """
    place = folder / TRACKER_FOLDER
    try:
        place.mkdir(exist_ok=True)
        hint = TRACKERS[name](place, folder.name, record)
    except Exception as error:  # noqa: BLE001 (a foreign library, after the run)
        line = " ".join(str(error).split())
        log.warning(f"tracker={name}: could not write the run: {line[:300]}; its record is complete")
    else:
        log.info(f"tracker: {hint}")


def curves_of(record: Record) -> Curves:
    """Return the values of every step, by step and name; no speed of an emulated device."""
    found: Curves = {}
    losses = record["losses"]
    for name, values in (("loss/train", losses["train"]), ("gradient_norm", losses["gradient_norm"]),
                         ("learning_rate", losses.get("learning_rate") or [])):  # fmt: skip
        for step, value in enumerate(values, 1):
            if value is not None:
                found.setdefault(step, {})[name] = value
    for point in record["eval"]["points"]:
        if point["loss"] is not None:
            found.setdefault(point["step"], {})["loss/evaluation"] = point["loss"]
    if not get_path(record, "device", "emulated"):
        for step, seconds in _measured_steps(record):
            found.setdefault(step, {})["speed/step_seconds"] = seconds
    return dict(sorted(found.items()))


def _measured_steps(record: Record) -> Iterator[tuple[int, float]]:
    timing = record["timing"]
    steps = [step for each in timing["intervals"] for step in range(each["first_step"], each["last_step"] + 1)]
    yield from zip(steps, timing["step_seconds"], strict=False)


def summary_of(record: Record) -> dict[str, Any]:
    """Return the figures of the whole run, without those that it does not have."""
    found = {name: get_path(record, *keys) for name, keys in SUMMARY.items()}
    hidden = SPEEDS if get_path(record, "device", "emulated") else ()
    return {name: value for name, value in found.items() if value is not None and name not in hidden}


def _write_wandb(place: Path, name: str, record: Record) -> str:
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=name,
        dir=str(place),
        mode=os.environ.get("WANDB_MODE", "offline"),
        config=dict(record["config"]),
        settings=wandb.Settings(silent=True, console="off"),
    )
    for step, values in curves_of(record).items():
        run.log(values, step=step)
    run.summary.update(summary_of(record))
    run.finish(exit_code=int(record["status"] != "ok"))
    return _hint("WANDB_MODE", f"wandb sync {place}/wandb/*-run-*")


def _write_swanlab(place: Path, name: str, record: Record) -> str:
    import swanlab  # pyright: ignore[reportMissingImports]

    swanlab.init(
        project=os.environ.get("SWANLAB_PROJ_NAME", PROJECT),
        experiment_name=name,
        logdir=str(place),
        mode=os.environ.get("SWANLAB_MODE", "offline"),
        config={**record["config"], "summary": summary_of(record)},
    )
    for step, values in curves_of(record).items():
        swanlab.log(values, step=step)
    swanlab.finish()
    return _hint("SWANLAB_MODE", f"swanlab sync {place}/run-*")


def _hint(variable: str, command: str) -> str:
    mode = os.environ.get(variable, "offline")
    return f"written; to upload: {command}" if mode == "offline" else f"written, as {variable}={mode} says"


def _write_mlflow(place: Path, name: str, record: Record) -> str:
    # It reports its use to its makers otherwise.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

    own = f"sqlite:///{place.resolve()}/mlflow.db"
    given = os.environ.get("MLFLOW_TRACKING_URI")
    client = MlflowClient(tracking_uri=given or own)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = client.get_experiment_by_name(experiment)
    # Otherwise in the working directory.
    artifacts = None if given else str(place.resolve() / "artifacts")
    number = found.experiment_id if found else client.create_experiment(experiment, artifact_location=artifacts)
    run = client.create_run(number, run_name=name)
    summary = summary_of(record)
    last = max(curves_of(record), default=0)
    figures = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    texts = {key: value for key, value in summary.items() if key not in figures}
    points = [
        Metric(key, value, 0, step) for step, values in curves_of(record).items() for key, value in values.items()
    ]
    points += [Metric(key, value, 0, last) for key, value in figures.items()]
    # It takes a hundred parameters in one call.
    parameters = [Param(key, str(value)) for key, value in {**flatten(record["config"]), **texts}.items()]
    for start in range(0, len(parameters), 100):
        client.log_batch(run.info.run_id, params=parameters[start : start + 100])
    for start in range(0, len(points), MAX_BATCH):
        client.log_batch(run.info.run_id, metrics=points[start : start + MAX_BATCH])
    client.set_terminated(run.info.run_id, "FINISHED" if record["status"] == "ok" else "FAILED")
    # An address may hold a password.
    return (
        "written, where MLFLOW_TRACKING_URI says"
        if given
        else f"written; to see it: mlflow ui --backend-store-uri {own}"
    )


TRACKERS: dict[str, Callable[[Path, str, Record], str]] = {
    "wandb": _write_wandb,
    "swanlab": _write_swanlab,
    "mlflow": _write_mlflow,
}
