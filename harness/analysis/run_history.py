"""Records of one thing over time: series of step times, the steps in them, and what changed at each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis.run_table import MIN_DIFFERENCE, no_speed, title_of, work_of
from harness.analysis.step_detection import MIN_RECORDS, MIN_SEGMENT, Step, find_steps
from harness.config import flatten
from harness.records.load import LoadedRecord, get_path

# What may explain a step, by its place in a record.
CAUSES = (("environment", "packages"), ("environment", "variables"), ("environment", "git"), ("environment", "host"),
          ("environment", "kernel"), ("environment", "os"), ("environment", "python"), ("environment", "container"),
          ("environment", "harness_version"), ("environment", "cpu_model"), ("backend", "versions"),
          ("effective_settings",), ("config", "track"), ("config", "workload", "micro_batch_size"))  # fmt: skip
# A step is found this many measurements early or late.
MAX_OFFSET = 3
# Measurements on either side that have to agree on what changed.
WITNESSES = MIN_SEGMENT
NO_REGRESSION = "no-regression"


@dataclass(frozen=True)
class Change:
    """Something that a record knows, and that changed at a step."""

    what: str
    before: str
    after: str
    offset: int
    """Measurements from the step to the change; 0: at the same measurement."""


@dataclass(frozen=True)
class ExplainedStep:
    """A step in a series, and what changed there."""

    step: Step
    run: LoadedRecord
    """The first of the new level."""
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Series:
    """Records of the same work on the same device, oldest first."""

    title: str
    device: str
    runs: tuple[LoadedRecord, ...]
    seconds: tuple[float, ...]
    """Mean step time of each."""
    steps: tuple[ExplainedStep, ...]

    @property
    def is_long_enough(self) -> bool:
        """There are enough records to show a step."""
        return len(self.runs) >= MIN_RECORDS

    @property
    def is_regression(self) -> bool:
        """The newest level is slower than the one before it, by more than MIN_DIFFERENCE."""
        return bool(self.steps) and self.steps[-1].step.ratio > 1 + MIN_DIFFERENCE


def make_history(runs: Sequence[LoadedRecord]) -> tuple[list[Series], list[tuple[str, str]]]:
    """Return the series of some records, and path and reason of the records without a speed."""
    groups: dict[tuple[Any, ...], list[LoadedRecord]] = defaultdict(list)
    left = []
    for run in runs:
        if (reason := no_speed(run)) is not None:
            left.append((str(run.path), reason))
        else:
            groups[(*work_of(run), get_path(run.record, "device", "name"))].append(run)
    return [_series(sorted(group, key=lambda run: run.record["started_at"])) for group in groups.values()], left


def _series(runs: Sequence[LoadedRecord]) -> Series:
    seconds = [run.record["timing"]["mean_step_seconds"] for run in runs]
    facts = [facts_of(run.record) for run in runs]
    steps = find_steps(seconds)
    places = [0, *(step.place for step in steps), len(runs)]
    explained = tuple(
        ExplainedStep(step, runs[step.place], tuple(changes_at(facts, step.place, before, after)))
        for step, before, after in zip(steps, places[:-2], places[2:], strict=True)
    )
    device = get_path(runs[0].record, "device", "name") or "unnamed device"
    return Series(title_of(runs[0].record), str(device), tuple(runs), tuple(seconds), explained)


def facts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what may explain a step, by its name in the record."""
    found: dict[str, str] = {}
    for keys in CAUSES:
        value, name = get_path(record, *keys), ".".join(keys)
        if isinstance(value, dict):
            found |= {f"{name}.{key}": str(each) for key, each in flatten(value).items() if not isinstance(each, float)}
        elif value is not None:
            found[name] = str(value)
    return found


def changes_at(facts: Sequence[Mapping[str, str]], place: int, first: int, last: int) -> list[Change]:
    """Return what changed near a place, nearest first: it has one value before and another one after.

    Args:
        first, last: of the levels on both sides of the place.
    """
    begin, end = max(first, place - WITNESSES), min(last, place + WITNESSES)
    found = []
    for name in sorted({name for each in facts[begin:end] for name in each}):
        values = [each.get(name, "absent") for each in facts[begin:end]]
        changed = [number for number in range(1, len(values)) if values[number] != values[number - 1]]
        if len(changed) == 1 and abs(offset := begin + changed[0] - place) <= MAX_OFFSET:
            found.append(Change(name, values[0], values[-1], offset))
    return sorted(found, key=lambda change: abs(change.offset))


def history_to_dict(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return series as JSON values."""
    return [
        {
            "title": each.title,
            "device": each.device,
            "records": len(each.runs),
            "started_at": [run.record["started_at"] for run in each.runs],
            "mean_step_seconds": list(each.seconds),
            "regression": each.is_regression,
            "steps": [
                {
                    "path": str(found.run.path),
                    "started_at": found.run.record["started_at"],
                    "place": found.step.place,
                    "before_seconds": found.step.before,
                    "after_seconds": found.step.after,
                    "ratio": found.step.ratio,
                    "changes": [
                        {"what": change.what, "before": change.before, "after": change.after, "offset": change.offset}
                        for change in found.changes
                    ],
                }
                for found in each.steps
            ],
        }
        for each in series
    ]
