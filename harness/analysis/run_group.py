"""From paths on the command line to sides of a comparison: each a label and the records of one or more processes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analysis.record_shape import shape_complaint
from harness.errors import RecordError
from harness.record import AUTOTUNE_FILE, CONFIG_FILE, RECORD_FILE, STEPS_FILE, content_digest, read_record

DEEPEST_FOLDER = 3


@dataclass(frozen=True)
class Run:
    """One process's record and the file that it came from."""

    path: Path
    record: dict[str, Any]


@dataclass(frozen=True)
class Side:
    """What is compared: the repeats of one workload on one device."""

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> dict[str, Any]:
        return self.runs[0].record

    def values(self, *keys: str) -> list[Any]:
        """Return one value of every run, by the path of its keys; None where a key is missing."""
        return [look_up(run.record, *keys) for run in self.runs]

    @property
    def emulated(self) -> bool:
        return any(self.values("device", "emulated"))


def look_up(record: Any, *keys: str) -> Any:
    """Return record[key1][key2]..., or None where it ends early."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def load_sides(paths: Sequence[Path], labels: Sequence[str] | None = None) -> list[Side]:
    """Read the sides of a comparison.

    Args:
        paths: a run's folder, a folder of such folders, or a record file, each one side.
        labels: names for the sides; by default their paths.

    Raises:
        RecordError: a path holds no run, an unfinished one, a damaged or edited record, or a run twice.
    """
    names = list(labels) if labels is not None else [str(path) for path in paths]
    sides = [Side(name, load_runs(path)) for name, path in zip(names, paths, strict=True)]
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


def load_runs(path: Path) -> tuple[Run, ...]:
    """Read every record of a path, in the natural order of the folders' names."""
    return tuple(Run(file, _checked(file)) for file in record_files(path))


def record_files(path: Path) -> list[Path]:
    """Return the record files that a path stands for; a cut-off run among them is an error, never passed over."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RecordError(f"{path}: no such file or folder; give a run's folder, a folder of runs, or a record.json")
    found = list(_search(path, DEEPEST_FOLDER))
    if not found:
        raise RecordError(f"{path}: no run is in it or in its sub-folders; give the folder named by out=")
    return found


def _search(folder: Path, depth: int) -> Iterable[Path]:
    if (folder / RECORD_FILE).is_file():
        yield folder / RECORD_FILE
        return
    if (folder / CONFIG_FILE).exists() or (folder / STEPS_FILE).exists():
        raise RecordError(
            f"{folder}: the run is under way or was cut off (no {RECORD_FILE}); wait for it, run it again, or move "
            "the folder away"
        )
    if (folder / AUTOTUNE_FILE).exists():
        raise RecordError(
            f"{folder}: holds a search over micro-batch sizes, not repeats of one run; give one of its folders, the "
            f"fastest is named in {AUTOTUNE_FILE}"
        )
    if depth > 0:
        for child in sorted((item for item in folder.iterdir() if item.is_dir()), key=_natural):
            yield from _search(child, depth - 1)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _checked(file: Path) -> dict[str, Any]:
    record = read_record(file)
    for complaint in complaints(record):
        raise RecordError(f"{file}: {complaint}")
    return record


def complaints(record: dict[str, Any]) -> Iterable[str]:
    """Yield what is wrong with a record that was read whole: edited, incomplete, or at odds with itself."""
    stated = record.get("content_sha256")
    if stated is not None and stated != content_digest(record):
        yield "was changed after the run had written it (content_sha256 does not fit); use the file that the run wrote"
    if (complaint := shape_complaint(record)) is not None:
        yield complaint
    elif record["status"] == "ok":
        yield from _arithmetic_complaints(record)


def _arithmetic_complaints(record: dict[str, Any]) -> Iterable[str]:
    timing, work = record["timing"], record["config"]["workload"]
    blocks = timing["blocks"]
    if not blocks:
        yield "is of a finished run, yet has no measured block; it was edited"
        return
    seconds = math.fsum(block["seconds"] for block in blocks)
    steps = sum(block["last_step"] - block["first_step"] + 1 for block in blocks)
    tokens = steps * work["global_batch_size"] * work["seq_len"]
    stated = (timing["measured_seconds"], timing["mean_step_seconds"], timing["tokens_per_second"])
    if not seconds > 0:
        yield f"has a measured window of {seconds} s; a clock cannot have run so"
    elif not all(
        isinstance(value, float) and math.isclose(value, expected, rel_tol=1e-6)
        for value, expected in zip(stated, (seconds, seconds / steps, tokens / seconds), strict=True)
    ):
        yield "states a step time or speed that does not follow from its own blocks; it was edited"
    if len(record["losses"]["train"]) != blocks[-1]["last_step"]:
        yield f"has {len(record['losses']['train'])} losses for {blocks[-1]['last_step']} steps; it was edited"
