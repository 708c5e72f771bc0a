"""Provenance of a comparison: devices, versions, settings, digests and records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from harness.analysis.format import UNKNOWN
from harness.analysis.run_group import RunGroup
from harness.analysis.verdict import Comparison
from harness.records.load import get_path
from harness.report.content import all_sides
from harness.text import printable

ABSENT = "none"  # not unknown: another kind of device has no such version
# Title of a row, and the path of its keys in the record.
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("device", ("device", "name")),
    ("backend", ("backend", "name")),
    ("emulated", ("device", "emulated")),
    ("device memory", ("device", "memory_bytes")),
    ("world size", ("world_size",)),
    ("track", ("config", "track", "name")),
    ("precision", ("config", "precision")),
    ("seed", ("config", "seed")),
    ("model", ("config", "model", "name")),
    ("harness", ("environment", "harness_version")),
    ("git commit", ("environment", "git", "commit")),
    ("uncommitted changes", ("environment", "git", "dirty")),
    ("python", ("environment", "python")),
    ("operating system", ("environment", "os")),
    ("kernel", ("environment", "kernel")),
    ("architecture", ("environment", "architecture")),
    ("container", ("environment", "container")),
    ("processor", ("environment", "cpu_model")),
    ("host", ("environment", "host")),
    ("workload id", ("workload_id",)),
    ("initial weights", ("digests", "init")),
    ("batches", ("digests", "batches")),
)
# Effective settings that are measurements, which differ from run to run.
MEASURED_EFFECTS = ("matmul_relative_error", "compilation")
DIGESTS = ("git commit", "workload id", "initial weights", "batches")


def provenance_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return rows of devices, versions, settings and digests: a title and a cell for each side.

    A cell lists all values that differ within its side.
    """
    sides = all_sides(comparison)
    rows = [(name, [_distinct(name, side.values(*keys)) for side in sides]) for name, keys in ROWS]
    for part in (("backend", "versions"), ("environment", "packages")):
        known = [name for name, _ in rows]
        found = [[get_path(run.record, *part) or {} for run in side.runs] for side in sides]
        for name in dict.fromkeys(key for side in found for versions in side for key in versions):
            if name not in known:
                cells = [_distinct(name, [versions.get(name, ABSENT) for versions in side]) for side in found]
                rows.append((printable(name), cells))
    return rows + _differing_settings(sides)


def _differing_settings(sides: Sequence[RunGroup]) -> list[tuple[str, list[str]]]:
    """Return a row for every effective setting that differs between sides: kernels, queues, affinity."""
    rows = []
    effective = [[get_path(run.record, "effective_settings") or {} for run in side.runs] for side in sides]
    for name in dict.fromkeys(key for side in effective for values in side for key in values):
        if name not in MEASURED_EFFECTS:
            cells = [_distinct(name, [values.get(name) for values in side]) for side in effective]
            if len(set(cells)) > 1:
                rows.append((f"in effect: {printable(name)}", cells))
    return rows


def _distinct(name: str, values: Sequence[Any]) -> str:
    return " / ".join(dict.fromkeys(_cell(name, value) for value in values))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "device memory":
        return f"{value / 1e9:,.1f} GB"
    return printable(value if isinstance(value, str) else json.dumps(value))


def records(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return label, path and checksum of every record that the verdict rests on."""
    return [
        (printable(side.label), printable(run.path), printable(run.record["content_sha256"]))
        for side in all_sides(comparison)
        for run in side.runs
    ]
