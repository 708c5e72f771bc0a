"""Records of a device's peak rates: written by `python -m harness peak`, looked up by later runs. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import has_valid_seal
from harness.records.record import check_schema_version
from harness.regular_files import load_json, strict_json
from harness.text import counted

PEAK_FILE = "peak.json"
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_receive")
"""Of the section `collectives`."""


def bus_factor(collective: str, ranks: int) -> float:
    """Return bus bandwidth over algorithm bandwidth: the traffic of a rank's link over the message's bytes.

    By nccl-tests (doc/PERFORMANCE.md). The message is what a rank has before a reduce-scatter and after an all-gather;
    in a send and receive every rank sends one and receives one.
    """
    if collective == "send_receive":
        return 1.0
    return (2 if collective == "all_reduce" else 1) * (ranks - 1) / ranks


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


def find_collectives(path: Path, run: Mapping[str, Any] | None, ranks: int | None = None) -> dict[str, Any]:
    """Return the newest peak record below a path that holds the collectives of a run's device and ranks.

    Args:
        path: a peak.json, its folder, or a folder of such, which need not exist.
        run: the sections `backend`, `device` and `effective_settings` of the run's record; None: of any device.
        ranks: of the run; None: any number above one.

    Raises:
        RecordError: there is none; the message says what the newest one lacks.
    """
    peaks = sorted(((file, read_peak(file)) for file in _peak_files(path)), key=lambda found: found[1]["finished_at"])
    problems = [(file, _collectives_problem(peak, run, ranks)) for file, peak in peaks]
    fitting = [peak for (_, peak), (_, problem) in zip(peaks, problems, strict=True) if problem is None]
    if fitting:
        return fitting[-1]
    name = "NAME" if run is None else run["backend"]["name"]
    found = f"{problems[-1][0]}: {problems[-1][1]}" if problems else f"{path}: found no peak record"
    raise RecordError(
        f"{found}; measure these: python -m harness torchrun --standalone --nproc-per-node={ranks or 'N'} peak "
        f"backend={name} parallel=ddp"
    )


def _peak_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [path / PEAK_FILE] if (path / PEAK_FILE).is_file() else sorted(path.glob(f"*/{PEAK_FILE}"))


def _collectives_problem(peak: Mapping[str, Any], run: Mapping[str, Any] | None, ranks: int | None) -> str | None:
    """Return why a peak does not hold the collectives of a run, or None."""
    expected = {} if run is None else identity(run)
    for name, value in identity(peak).items():
        if run is not None and value != expected[name]:
            return f"was measured on another {name} ({_short(value)}) than the run's ({_short(expected[name])})"
    if peak["world_size"] == 1 or ranks not in (None, peak["world_size"]):
        return f"was measured by {counted(peak['world_size'], 'rank')}, expected {ranks or 'several'}"
    if peak.get("collectives") is None:
        return "has no collectives by size: it is of an earlier version of the harness"
    return None


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)
