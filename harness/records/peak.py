"""Records of a device's peak rates: written by `python -m harness peak`, looked up by later runs. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import has_valid_seal
from harness.records.record import check_schema_version
from harness.regular_files import load_json, strict_json

PEAK_FILE = "peak.json"


def find_peak(folder: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the newest peak of a run's device and software in the form that the run's record has, or None.

    Args:
        folder: the setting `peak_dir`; it need not exist.
        run: the sections `backend`, `device` and `effective_settings` of the run's record.

    Raises:
        RecordError: a peak record in the folder cannot be used.
    """
    wanted = identity(run)
    matching = [found for path in sorted(folder.glob(f"*/{PEAK_FILE}")) if (found := _matching(path, wanted))]
    return max(matching, key=lambda found: found["measured_at"], default=None)


def _matching(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a peak as a run's record has it, or None if it is of another device or software."""
    peak = read_peak(path)
    try:
        if identity(peak) != wanted:
            return None
        return {
            "path": str(path),
            "measured_at": str(peak["finished_at"]),
            "content_sha256": peak["content_sha256"],
            "flops": {
                precision: None if found is None else found["best_flops"]
                for precision, found in peak["matrix_products"].items()
            },
            "memory_bytes_per_second": peak["memory"]["best_bytes_per_second"],
            "other_processes_cpu_fraction": (peak.get("contention") or {}).get("other_processes_cpu_fraction"),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: lacks a field that every peak record has ({error}); delete it") from error


def identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields in which a peak and a run must agree: device, software, and threads if they are the device."""
    return {
        "backend": record["backend"]["name"],
        "versions": record["backend"]["versions"],
        "device": record["device"].get("name"),
        "threads": record["effective_settings"].get("threads"),
    }


def read_peak(path: Path) -> dict[str, Any]:
    """Read one peak record.

    Raises:
        RecordError: it is missing, damaged, edited, not a peak record, or has another schema version.
    """
    try:
        peak = load_json(path, strict_json)
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{path}: cannot be read: {error}; delete it, and measure again with python -m harness peak"
        ) from error
    version = peak.get("schema_version") if isinstance(peak, dict) else None
    if not isinstance(version, int) or peak.get("kind") != "peak":
        raise RecordError(f"{path}: not a peak record of this harness; move it elsewhere")
    check_schema_version(path, version)
    if not has_valid_seal(peak):
        raise RecordError(
            f"{path}: was changed after it was written (content_sha256 differs); delete it and measure again"
        )
    return peak
