"""Whether a record has the shape that harness/schemas/record.schema.json describes. Records may come from strangers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

import fastjsonschema

from harness.records.files import content_digest

MAX_SHOWN = 40
WORDS = {"array": "a list", "object": "an object", "string": "text", "boolean": "true or false",
         "integer": "a whole number", "number": "a number", "null": "null"}  # fmt: skip

RULES = {"enum": "one of", "minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most",
         "pattern": "text of the form", "const": "just"}  # fmt: skip


def schema_problem(record: dict[str, Any]) -> str | None:
    """Return the first part of a record that is missing or not what it has to be, or None."""
    try:
        _check()(record)
    except fastjsonschema.JsonSchemaValueException as error:
        return f"has no usable {_explained(error)}; it was not written by this harness, or was edited"
    return None


def _explained(error: fastjsonschema.JsonSchemaValueException) -> str:
    """Return which part it is, what it is and what it should be."""
    path = ".".join(str(part) for part in error.path[1:])
    if error.rule == "required":
        missing = next(name for name in error.rule_definition if name not in error.value)
        return f"{path}.{missing}".lstrip(".")
    found = f"{path}: found {json.dumps(error.value)[:MAX_SHOWN]}"
    if error.rule == "type":
        kinds = error.rule_definition if isinstance(error.rule_definition, list) else [error.rule_definition]
        return f"{found}, expected {' or '.join(WORDS[kind] for kind in kinds)}"
    rule = RULES.get(error.rule or "")
    return found if rule is None else f"{found}, expected {rule} {error.rule_definition}"


@cache
def _check() -> Callable[[Any], Any]:
    schema = json.loads((files("harness") / "schemas" / "record.schema.json").read_text(encoding="utf-8"))
    return fastjsonschema.compile(_open(schema))


def _open(schema: Any) -> Any:
    """Return the schema with room for keys that it does not name: a later harness may write more than this one."""
    if isinstance(schema, dict):
        return {key: _open(value) for key, value in schema.items()
                if not (key == "additionalProperties" and value is False)}  # fmt: skip
    return [_open(value) for value in schema] if isinstance(schema, list) else schema


def record_problems(record: dict[str, Any]) -> Iterable[str]:
    """Yield what is wrong with a record that was read whole: edited, incomplete, or at odds with itself."""
    stated = record.get("content_sha256")
    if stated is not None and stated != content_digest(record):
        yield "was changed after the run had written it (content_sha256 does not fit); use the file that the run wrote"
    if (complaint := schema_problem(record)) is not None:
        yield complaint
    elif record["status"] == "ok":
        yield from _arithmetic_problems(record)


def _arithmetic_problems(record: dict[str, Any]) -> Iterable[str]:
    timing, work = record["timing"], record["config"]["workload"]
    intervals = timing["intervals"]
    if not intervals:
        yield "is of a finished run, yet has no measured interval; it was edited"
        return
    seconds = math.fsum(interval["seconds"] for interval in intervals)
    steps = sum(interval["last_step"] - interval["first_step"] + 1 for interval in intervals)
    tokens = steps * work["global_batch_size"] * work["seq_len"]
    stated = (timing["measured_seconds"], timing["mean_step_seconds"], timing["tokens_per_second"])
    if not seconds > 0:
        yield f"has a measured window of {seconds} s; a clock cannot have run so"
    elif not all(
        isinstance(value, float) and math.isclose(value, expected, rel_tol=1e-6)
        for value, expected in zip(stated, (seconds, seconds / steps, tokens / seconds), strict=True)
    ):
        yield "states a step time or speed that does not follow from its own intervals; it was edited"
    if len(record["losses"]["train"]) != intervals[-1]["last_step"]:
        yield f"has {len(record['losses']['train'])} losses for {intervals[-1]['last_step']} steps; it was edited"
