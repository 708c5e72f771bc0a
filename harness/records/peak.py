"""Records of what a device can do at most: written by `python -m harness peak`, found again by later runs. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import content_digest
from harness.records.record import check_schema_version

PEAK_FILE = "peak.json"


def find_peak(folder: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the newest peak of a run's device and software as the run's record keeps it, or None if there is none.

    Args:
        folder: what the setting `peak_dir` names; it need not exist.
        run: the parts `backend`, `device` and `effective` of the run's record.
    """
    fitting = [(path, peak) for path, peak in _peaks(folder) if identity(peak) == identity(run)]
    if not fitting:
        return None
    path, newest = max(fitting, key=lambda found: found[1]["finished_at"])
    return {
        "path": str(path),
        "measured_at": newest["finished_at"],
        "content_sha256": newest["content_sha256"],
        "flops": {
            precision: None if found is None else found["best_flops"]
            for precision, found in newest["matrix_products"].items()
        },
        "memory_bytes_per_second": newest["memory"]["best_bytes_per_second"],
    }


def identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a peak and its run share: device, software, and threads where they are the device."""
    return {
        "backend": record["backend"]["name"],
        "versions": record["backend"]["versions"],
        "device": record["device"].get("name"),
        "threads": record["effective_settings"].get("threads"),
    }


def read_peak(path: Path) -> dict[str, Any]:
    """Read one peak record.

    Raises:
        RecordError: it is missing, damaged, changed, of a stranger's making, or of a newer version.
    """
    try:
        peak = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(
            f"{path}: cannot be read: {error}; delete it, and measure again with python -m harness peak"
        ) from error
    version = peak.get("schema_version") if isinstance(peak, dict) else None
    if not isinstance(version, int) or peak.get("kind") != "peak":
        raise RecordError(f"{path}: not a peak record of this harness; move it elsewhere")
    check_schema_version(path, version)
    if peak.get("content_sha256") != content_digest(peak):
        raise RecordError(
            f"{path}: was changed after it was written (content_sha256 does not fit); delete it and measure again"
        )
    return peak


def _peaks(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob(f"*/{PEAK_FILE}")):
        yield path, read_peak(path)
