"""A run as MLPerf log lines (:::MLLOG), for tools that read those.

The keys are the generic ones of mlperf_logging. A run is not a submission and does not say it is one: benchmark and
division are the harness's own. Times are reckoned from the record, which has the start of the run and durations:
evaluations, whose durations it holds as one sum, are taken to be equally long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from harness.errors import RecordError
from harness.records.load import LoadedRecord, get_path

PREFIX = ":::MLLOG"
START, END, POINT = "INTERVAL_START", "INTERVAL_END", "POINT_IN_TIME"
DIVISION, STATUS = "open", "research"
SUCCESS, ABORTED = "success", "aborted"

# Type, seconds since run_start, key, value, metadata.
Happened = tuple[str, float, str, Any, dict[str, Any]]

# Key of mlperf_logging: path in the record.
SETTINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("submission_benchmark", ("config", "model", "name")),
    ("submission_platform", ("device", "name")),
    ("seed", ("config", "seed")),
    ("global_batch_size", ("config", "workload", "global_batch_size")),
    ("max_sequence_length", ("config", "workload", "seq_len")),
    ("max_steps", ("config", "workload", "steps")),
    ("eval_samples", ("eval", "sequences")),
    ("opt_base_learning_rate", ("config", "workload", "learning_rate")),
    ("opt_learning_rate_warmup_steps", ("config", "workload", "lr_warmup_steps")),
    ("opt_adamw_beta_1", ("config", "workload", "beta1")),
    ("opt_adamw_beta_2", ("config", "workload", "beta2")),
    ("opt_adamw_epsilon", ("config", "workload", "epsilon")),
    ("opt_adamw_weight_decay", ("config", "workload", "weight_decay")),
    ("opt_gradient_clip_norm", ("config", "workload", "max_grad_norm")),
)


def mllog_lines(run: LoadedRecord) -> str:
    """Return one line an event, in order of time, each ended by a newline.

    Of a run that did not get so far, run_start and what follows are missing. An emulated device gets no throughput.
    """
    return "".join(f"{PREFIX} {json.dumps(event)}\n" for event in _events(run))


def _events(run: LoadedRecord) -> Iterator[dict[str, Any]]:
    record = run.record
    began = _milliseconds(run)

    def event(kind: str, seconds: float, key: str, value: Any, **metadata: Any) -> dict[str, Any]:
        # mlperf_logging gives the line of the source that logged; a record has its file.
        where = {"file": str(run.path), "lineno": 0}
        return {"namespace": "", "time_ms": began + round(1000 * seconds), "event_type": kind, "key": key,
                "value": value, "metadata": {**where, **metadata}}  # fmt: skip

    yield event(START, 0, "init_start", None)
    yield event(POINT, 0, "submission_division", DIVISION)
    yield event(POINT, 0, "submission_status", STATUS)
    for key, keys in SETTINGS:
        yield event(POINT, 0, key, get_path(record, *keys))
    yield event(POINT, 0, "opt_name", "adamw")
    yield event(POINT, 0, "gradient_accumulation_steps", _accumulation(record))
    start = record["timing"]["setup_seconds"]
    if start is None:
        return
    yield event(END, start, "init_stop", None)
    yield event(START, start, "run_start", None)
    for kind, seconds, key, value, metadata in _training(record):
        yield event(kind, start + seconds, key, value, **metadata)


def _training(record: Mapping[str, Any]) -> Iterator[Happened]:
    """Yield what happened from run_start on: type, seconds since then, key, value, metadata."""
    timing, points, work = record["timing"], record["eval"]["points"], record["config"]["workload"]
    steps, end = len(record["losses"]["train"]), timing["training_seconds"] + timing["evaluation_seconds"]
    evaluation = timing["evaluation_seconds"] / len(points) if points else 0.0
    done, now = 0, 0.0

    def samples(step: int) -> dict[str, Any]:
        return {"samples_count": step * work["global_batch_size"]}

    for number, point in enumerate(points):
        begins = point["training_seconds"] + number * evaluation
        yield START, now, "block_start", None, samples(done)
        yield END, begins, "block_stop", None, samples(done)
        done, now = point["step"], begins + evaluation
        yield START, begins, "eval_start", None, samples(done)
        yield POINT, now, "eval_accuracy", point["loss"], {**samples(done), "metric": "loss, nats/token"}
        yield END, now, "eval_stop", None, samples(done)
    if steps > done:
        yield START, now, "block_start", None, samples(done)
        yield END, end, "block_stop", None, samples(done)
    yield from _throughput(record, end, samples(steps))
    yield POINT, end, "train_samples", samples(steps)["samples_count"], {}
    yield END, end, "run_stop", None, {**samples(steps), "status": _status(record)}


def _throughput(record: Mapping[str, Any], seconds: float, metadata: Mapping[str, Any]) -> Iterator[Happened]:
    timing = record["timing"]
    speed = timing["tokens_per_second"]
    if speed is None or get_path(record, "device", "emulated"):
        return
    value = {
        "throughput": speed / record["config"]["workload"]["seq_len"],
        "tokens_per_second": speed,
        "mean_step_seconds": timing["mean_step_seconds"],
    }
    yield POINT, seconds, "tracked_stats", value, {**metadata, "throughput_unit": "sequences/s"}


def _status(record: Mapping[str, Any]) -> str:
    """A run that was to reach a loss and did not is no success, as in MLPerf."""
    missed = record["target"] is not None and not record["target"]["reached"]
    return SUCCESS if record["status"] == "ok" and not missed else ABORTED


def _accumulation(record: Mapping[str, Any]) -> int:
    work = record["config"]["workload"]
    return work["global_batch_size"] // (work["micro_batch_size"] * record["world_size"])


def _milliseconds(run: LoadedRecord) -> int:
    stamp = get_path(run.record, "started_at")
    try:
        began = datetime.fromisoformat(stamp)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{run.path}: started_at is {stamp!r}, expected a date and time in ISO 8601") from error
    if began.tzinfo is None:
        began = began.replace(tzinfo=timezone.utc)
    return round(1000 * began.timestamp())
