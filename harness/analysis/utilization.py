"""Model FLOP/s of a run, and their share of its device's peaks: MFU (Chowdhery et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.analysis.chips import find_chip
from harness.analysis.flops import training_flops_per_token
from harness.config import product_format
from harness.records.load import get_path


def utilization(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `utilization` section of a record, or None if no speed was measured or the device is emulated.

    Keys: `flops_per_token`; in FLOP/s of one device `achieved_flops`, `catalogued_peak_flops`, `measured_peak_flops`;
    and the achieved as a share of each peak, `mfu` and `mfu_of_measured_peak`. A share is None where the peak is
    unknown, and where it would be above one: then peak or speed is wrong.
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
    """Return the catalogue's peak FLOP/s of the run's chip and precision, or None."""
    chip = find_chip(get_path(record, "backend", "peak_lookup_key"))
    return None if chip is None else chip.peak_flops.get(product_format(record["config"]["precision"]))


def measured_peak(record: Mapping[str, Any]) -> float | None:
    """Return the peak FLOP/s that `harness peak` measured on the run's device in its precision, or None."""
    return get_path(record, "measured_peak", "flops", product_format(record["config"]["precision"]))
