"""Model FLOP/s that a run achieved, and which share of its device's ceilings that is (MFU, Chowdhery et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.analysis.chips import find_chip
from harness.analysis.flops import training_flops_per_token
from harness.records.load import get_path


def utilization(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record's part on utilization, or None for a run that measured no speed or ran on an emulation.

    Keys: `flops_per_token`, `achieved_flops` a second and device, `catalogued_peak_flops`, `measured_peak_flops`, and
    the achieved as a share of each, `mfu` and `mfu_of_measured_peak`. A share is None where no peak
    is known, and where it would be above one: then the peak is not the device's, or the speed is none.
    """
    achieved = achieved_flops(record)
    if achieved is None or get_path(record, "device", "emulated"):
        return None
    catalogued, measured = catalogued_peak(record), measured_peak(record)
    config = record["config"]
    return {
        "flops_per_token": training_flops_per_token(config["model"], config["workload"]["seq_len"]),
        "achieved_flops": achieved,
        "catalogued_peak_flops": catalogued,
        "measured_peak_flops": measured,
        "mfu": _share(achieved, catalogued),
        "mfu_of_measured_peak": _share(achieved, measured),
    }


def _share(achieved: float, peak: float | None) -> float | None:
    return None if peak is None or achieved > peak else achieved / peak


def achieved_flops(record: Mapping[str, Any]) -> float | None:
    """Return the model FLOP/s of one device, or None if no speed was measured."""
    speed = get_path(record, "timing", "tokens_per_second")
    if speed is None:
        return None
    config = record["config"]
    return speed * training_flops_per_token(config["model"], config["workload"]["seq_len"]) / record["world_size"]


def catalogued_peak(record: Mapping[str, Any]) -> float | None:
    """Return the FLOP/s that the catalogue gives for the run's chip and precision, or None."""
    chip = find_chip(get_path(record, "backend", "peak_lookup_key"))
    return None if chip is None else chip.peak_flops.get(record["config"]["precision"])


def measured_peak(record: Mapping[str, Any]) -> float | None:
    """Return the FLOP/s of matrix products that `harness peak` measured on the run's device, or None."""
    return get_path(record, "measured_peak", "flops", record["config"]["precision"])
