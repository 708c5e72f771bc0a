"""Validation of records against harness/schemas/record.schema.json. Records may come from anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

import fastjsonschema

from harness.config import workload_id
from harness.records.files import content_digest
from harness.text import counted

MAX_SHOWN_CHARACTERS = 40
TYPE_NAMES = {"array": "a list", "object": "an object", "string": "text", "boolean": "true or false",
              "integer": "a whole number", "number": "a number", "null": "null"}  # fmt: skip
RULE_NAMES = {"enum": "one of", "minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most",
              "pattern": "text of the form", "const": "just"}  # fmt: skip


def schema_problem(record: dict[str, Any]) -> str | None:
    """Return the first violation of the schema in a record: the field, the value found, the value expected; or None."""
    try:
        _validator()(record)
    except fastjsonschema.JsonSchemaValueException as error:
        return f"has no usable {_explain(error)}; it was not written by this harness, or was edited"
    return None


def _explain(error: fastjsonschema.JsonSchemaValueException) -> str:
    path = ".".join(str(part) for part in error.path[1:])
    if error.rule == "required":
        missing = next(name for name in error.rule_definition if name not in error.value)
        return f"{path}.{missing}".lstrip(".")
    found = f"{path}: found {json.dumps(error.value)[:MAX_SHOWN_CHARACTERS]}"
    if error.rule == "type":
        kinds = error.rule_definition if isinstance(error.rule_definition, list) else [error.rule_definition]
        return f"{found}, expected {' or '.join(TYPE_NAMES[kind] for kind in kinds)}"
    rule = RULE_NAMES.get(error.rule or "")
    return found if rule is None else f"{found}, expected {rule} {error.rule_definition}"


@cache
def _validator() -> Callable[[Any], Any]:
    schema = json.loads((files("harness") / "schemas" / "record.schema.json").read_text(encoding="utf-8"))
    return fastjsonschema.compile(_allow_more_keys(schema))


def _allow_more_keys(schema: Any) -> Any:
    """Return the schema without the ban on other keys: a later harness may write more than this one."""
    if isinstance(schema, dict):
        return {key: _allow_more_keys(value) for key, value in schema.items()
                if not (key == "additionalProperties" and value is False)}  # fmt: skip
    return [_allow_more_keys(value) for value in schema] if isinstance(schema, list) else schema


def record_problems(record: dict[str, Any]) -> Iterable[str]:
    """Yield the problems of a record that was read: edited, incomplete, or inconsistent with itself."""
    stated = record.get("content_sha256")
    if stated is not None and stated != content_digest(record):
        yield "was changed after the run had written it (content_sha256 differs); use the file that the run wrote"
    if (problem := schema_problem(record)) is not None:
        yield problem
        return
    if record["workload_id"] != workload_id(record["config"]):
        yield "states a workload_id that does not follow from its config; it was edited"
    if record["status"] == "ok":
        yield from _arithmetic_problems(record)


def _arithmetic_problems(record: dict[str, Any]) -> Iterable[str]:
    timing, work = record["timing"], record["config"]["workload"]
    intervals = timing["intervals"]
    if not intervals:
        if _steps_of(timing, "saving"):
            yield (
                "has no timed steps: a checkpoint was being written in all of them; measure again with "
                "checkpoint.asynchronous=false or a larger checkpoint.every"
            )
        elif _steps_of(timing, "resumed"):
            yield "has no timed steps: the run was resumed too late for its timing warm-up; measure again"
        else:
            yield "is of a finished run, yet has no measured interval; it was edited"
        return
    seconds = math.fsum(interval["seconds"] for interval in intervals)
    steps = sum(interval["last_step"] - interval["first_step"] + 1 for interval in intervals)
    tokens = steps * work["global_batch_size"] * work["seq_len"]
    stated = (timing["measured_seconds"], timing["mean_step_seconds"], timing["tokens_per_second"])
    if not seconds > 0:
        yield f"has a measured window of {seconds} s, expected more than 0 s; it was edited"
    elif not all(
        isinstance(value, float) and math.isclose(value, expected, rel_tol=1e-6)
        for value, expected in zip(stated, (seconds, seconds / steps, tokens / seconds), strict=True)
    ):
        yield "states a step time or speed that does not follow from its own intervals; it was edited"
    yield from _coverage_problems(record, intervals)


def _coverage_problems(record: dict[str, Any], intervals: list[dict[str, Any]]) -> Iterable[str]:
    """Yield what is missing or counted twice: intervals adjoin, and every curve has a value for each step."""
    timing = record["timing"]
    left_out = _steps_of(timing, "resumed") + _steps_of(timing, "saving")
    expected = record["config"]["workload"]["timing_warmup_steps"] + 1
    for interval in intervals:
        first, last = interval["first_step"], interval["last_step"]
        if last < first or first < expected or (first > expected and not _may_leave_out(record, expected)):
            yield f"has an interval of steps {first} to {last} where one from step {expected} on is due; it was edited"
            return
        expected = last + 1
    losses, last = record["losses"], intervals[-1]["last_step"]
    if left_out:
        # The last steps may be among them.
        last = 1 + _steps_of(timing, "warmup") + timing["measured_steps"] + left_out
        if last >= expected and not _may_leave_out(record, expected):
            yield f"has no interval from step {expected} on; it was edited"
    for name, values in (("losses", losses["train"]), ("gradient norms", losses["gradient_norm"]),
                         ("learning rates", losses.get("learning_rate") or losses["train"])):  # fmt: skip
        if len(values) != last:
            yield f"has {len(values)} {name} for {counted(last, 'step')}; it was edited"
    if len(record["timing"]["step_seconds"]) != record["timing"]["measured_steps"]:
        yield "has not as many step times as measured steps; it was edited"


def _may_leave_out(record: dict[str, Any], step: int) -> bool:
    """Return whether steps from this one on may be missing in the timing.

    They are where a run was resumed, which warms up again; before that, if it was resumed under other conditions; and
    while a checkpoint is written.
    """
    config, resumed = record["config"], _steps_of(record["timing"], "resumed")
    starts = [attempt["from_step"] for attempt in record.get("attempts") or ()]
    warmup = config["workload"]["timing_warmup_steps"]
    if resumed and any(step <= start + warmup for start in starts if start):
        return True
    every = config["checkpoint"]["every"]
    if not (_steps_of(record["timing"], "saving") and config["checkpoint"]["asynchronous"] and every):
        return False
    # A checkpoint of the warm-up may still be written when the timing begins.
    return (step - 1) % every == 0 or every <= step - 1 == warmup


def _steps_of(timing: dict[str, Any], phase: str) -> int:
    return (timing.get(phase) or {}).get("steps", 0)
