"""Run groups, the sides of a comparison: a label and the records of the repeats of one workload on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import measurement_digest
from harness.records.load import LoadedRecord, get_path, load_runs


@dataclass(frozen=True)
class RunGroup:
    """The repeats of one workload on one device, with a label."""

    label: str
    runs: tuple[LoadedRecord, ...]

    @property
    def first(self) -> dict[str, Any]:
        return self.runs[0].record

    def values(self, *keys: str) -> list[Any]:
        """Return the value at a path of keys in every record; None where a key is missing."""
        return [get_path(run.record, *keys) for run in self.runs]

    @property
    def emulated(self) -> bool:
        return any(self.values("device", "emulated"))


def load_run_groups(paths: Sequence[Path], labels: Sequence[str] | None = None) -> list[RunGroup]:
    """Read the sides of a comparison.

    Args:
        paths: a run's folder, a folder of such folders, a record file, or a bundle, each one side.
        labels: names for the sides; by default their paths.

    Raises:
        RecordError: a path holds no run, an unfinished one, a damaged or edited record, or the same record twice.
    """
    names = list(labels) if labels is not None else [str(path) for path in paths]
    sides = [RunGroup(name, load_runs(path)) for name, path in zip(names, paths, strict=True)]
    check_each_once(sides)
    return sides


def check_each_once(sides: Sequence[RunGroup]) -> None:
    """Check that no record is given twice, nor a copy of one.

    Raises:
        RecordError: naming both.
    """
    seen: dict[Any, Path] = {}
    for side in sides:
        for run in side.runs:
            digest = measurement_digest(run.record)
            if digest in seen:
                raise RecordError(
                    f"{run.path}: the same record was given twice, also as {seen[digest]}; give each run once"
                )
            seen[digest] = run.path
            times = tuple(interval["seconds"] for interval in get_path(run.record, "timing", "intervals") or [])
            # Equal seconds within a run come from a scripted clock.
            if len(set(times)) > 1 and times in seen:
                raise RecordError(
                    f"{run.path}: has the same times as {seen[times]}, to the last digit: a copy of its record; give "
                    "each run once"
                )
            seen[times] = run.path
