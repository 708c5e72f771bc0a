"""From paths on the command line to sides of a comparison: each a label and the records of one or more processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.load import LoadedRecord, get_path, load_runs


@dataclass(frozen=True)
class RunGroup:
    """What is compared: the repeats of one workload on one device."""

    label: str
    runs: tuple[LoadedRecord, ...]

    @property
    def first(self) -> dict[str, Any]:
        return self.runs[0].record

    def values(self, *keys: str) -> list[Any]:
        """Return one value of every run, by the path of its keys; None where a key is missing."""
        return [get_path(run.record, *keys) for run in self.runs]

    @property
    def emulated(self) -> bool:
        return any(self.values("device", "emulated"))


def load_run_groups(paths: Sequence[Path], labels: Sequence[str] | None = None) -> list[RunGroup]:
    """Read the sides of a comparison.

    Args:
        paths: a run's folder, a folder of such folders, or a record file, each one side.
        labels: names for the sides; by default their paths.

    Raises:
        RecordError: a path holds no run, an unfinished one, a damaged or edited record, or a run twice.
    """
    names = list(labels) if labels is not None else [str(path) for path in paths]
    sides = [RunGroup(name, load_runs(path)) for name, path in zip(names, paths, strict=True)]
    seen: dict[str, Path] = {}
    for side in sides:
        for run in side.runs:
            digest = run.record["content_sha256"]
            if digest in seen:
                raise RecordError(
                    f"{run.path} is the same run as {seen[digest]}; a run says nothing about itself: give each once"
                )
            seen[digest] = run.path
    return sides
