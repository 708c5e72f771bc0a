"""The record: one versioned JSON file with a run's settings, device, settings in effect, timing, losses and outcome.

A run's folder holds config.yaml (the settings, written first), steps.jsonl (one row per step, appended after every
interval) and record.json (written once, at the end, atomically). A folder without record.json is an unfinished run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import replace_nonfinite, seal, to_json_text, write_atomically
from harness.records.steps import STEPS_FILE
from harness.regular_files import parse_json, read_file, strict_json

SCHEMA_VERSION = 3
RECORD_FILE = "record.json"
STATUSES = (
    "ok",
    "diverged",
    "loss_spike",
    "oom",
    "device_fault",
    "interrupted",
    "failed",
    "rank_lost",
    "hung",
    "rank_mismatch",
    "bad_checkpoint",
)


def write_record(folder: Path, record: dict[str, Any], name: str = RECORD_FILE) -> Path:
    """Write a record atomically: a reader sees the complete file or none. NaN and infinity become null.

    A checksum of the content is added: a record that was edited afterwards does not count as evidence.

    Raises:
        RunFailed: the disk is full or not writable; no partial record is left behind.
    """
    return write_atomically(folder / name, to_json_text(seal(replace_nonfinite(record))) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Read one record, given its file or its run's folder.

    Raises:
        RecordError: it is missing, damaged, not a record of this harness, or has another schema version.
    """
    file = path / RECORD_FILE if path.is_dir() else path
    try:
        content = read_file(file)
    except FileNotFoundError as error:
        unfinished = path.is_dir() and (path / STEPS_FILE).exists()
        reason = "the run is still running or was interrupted" if unfinished else "there is no run"
        raise RecordError(f"{file}: no such file: {reason}") from error
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error}") from error
    return parse_record(file, content)


def parse_record(file: Path, content: bytes) -> dict[str, Any]:
    """Return the record in a file's content.

    Raises:
        RecordError: it is damaged, not a record of this harness, or has another schema version.
    """
    try:
        record = parse_json(content, strict_json)
    except UnicodeDecodeError as error:
        raise RecordError(f"{file}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise RecordError(f"{file}: not valid JSON (line {error.lineno}); copy it again") from error
    except ValueError as error:
        raise RecordError(f"{file}: {error}; it was not written by this harness, or was edited") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise RecordError(f"{file}: not a record of this harness: it has no schema_version")
    check_schema_version(file, version)
    return record


def check_schema_version(file: Path, version: int) -> None:
    """Raise RecordError unless a file has the schema version that this harness reads and writes."""
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{file}: schema_version {version} is newer than this harness reads ({SCHEMA_VERSION}); upgrade it"
        )
    if version < SCHEMA_VERSION:
        raise RecordError(
            f"{file}: schema_version {version} is older than this harness reads ({SCHEMA_VERSION}): fields or "
            "parameters have been renamed; measure again"
        )
