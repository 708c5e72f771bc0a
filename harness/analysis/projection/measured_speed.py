"""Measured speed of one device, from the records of runs on it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from harness.analysis.chips import Chip, Source, find_chip
from harness.analysis.format import tflops
from harness.analysis.projection.model import FULL_RECOMPUTATION, OPTIMIZER_BYTES_PER_PARAMETER, Speed
from harness.analysis.utilization import achieved_flops
from harness.config import product_format
from harness.errors import RecordError
from harness.records.load import LoadedRecord, get_path


def measured_speed(
    runs: tuple[LoadedRecord, ...], precision: str, memory_bytes_per_second: float | None = None
) -> tuple[Chip, Speed]:
    """Return the chip of the records and its measured speed in forward and backward passes.

    Args:
        memory_bytes_per_second: from which the time of the optimizer follows; None: the catalogue's. Where neither
            is known, the speed is that of whole steps.

    Raises:
        RecordError: a record has no usable speed, or the records are not repeats of one run on one device.
    """
    speeds, watts = [], []
    first = runs[0].record
    # By the name of the peak lookup: a slice of a chip has none.
    chip = find_chip(get_path(first, "backend", "peak_lookup_key"))
    memory = memory_bytes_per_second or (None if chip is None else chip.memory_bytes_per_second)
    for run in runs:
        record = run.record
        problem = None
        if record["status"] != "ok":
            problem = f"the run ended {record['status']}"
        elif get_path(record, "device", "emulated"):
            problem = "its device is emulated and has no speed"
        elif record["world_size"] != 1:
            problem = f"it ran on {record['world_size']} devices: give runs on one; collectives are estimated"
        elif product_format(record["config"]["precision"]) != precision:
            problem = f"it ran in {record['config']['precision']}, expected {precision}"
        elif record["device"]["name"] != first["device"]["name"]:
            problem = f"it ran on {record['device']['name']}, others on {first['device']['name']}"
        elif _work(record) != _work(first):
            problem = f"its work differs from that of {runs[0].path}; give repeats of one run"
        speed, peak = achieved_flops(record), _ceiling(record)
        if speed is not None:
            # Recomputation is work of the device, though not of the model.
            speed *= 1 + (FULL_RECOMPUTATION - 1) * recomputed_share(record)
        if problem is None and (speed is None or not 0 < speed < float("inf")):
            problem = "it has no speed"
        if problem is None and speed is not None and peak is not None and speed > peak:
            problem = f"{tflops(speed)} are above the chip's peak of {tflops(peak)}: one is wrong"
        if problem is not None or speed is None:
            raise RecordError(f"{run.path}: {problem}")
        speeds.append(speed * _share_of_step(record, memory))
        watts.append(get_path(record, "telemetry", "mean_power_watts"))
    name = first["device"]["name"] or first["device"]["kind"]
    source = f"{len(runs)} measured run{'' if len(runs) == 1 else 's'} on {name}"
    mean_watts = statistics.fmean(watts) if None not in watts else None
    return chip or unknown_chip(name), Speed(tuple(speeds), source, mean_watts)


def _share_of_step(record: dict[str, Any], memory_bytes_per_second: float | None) -> float:
    """Return the step time over that without the optimizer."""
    step = record["timing"]["mean_step_seconds"]
    optimizer = 0.0
    if memory_bytes_per_second is not None:
        optimizer = OPTIMIZER_BYTES_PER_PARAMETER * record["model"]["parameters"] / memory_bytes_per_second
    # A step that leaves no time for anything else shows that the estimate does not hold.
    return step / (step - optimizer) if optimizer < step / 2 else 1.0


def _ceiling(record: dict[str, Any]) -> float | None:
    chip = find_chip(get_path(record, "backend", "peak_lookup_key"))
    return None if chip is None else chip.ceiling_flops(product_format(record["config"]["precision"]))


def unknown_chip(name: str) -> Chip:
    nowhere = Source("not in the catalogue", "C")
    return Chip(name, "", (), (), {}, {}, (), None, None, None, None, 1, None, {}, None, {"dense_tflops": nowhere})


def _work(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return what repeats of one run share: the work and its implementation."""
    config = record["config"]
    return record["workload_id"], config["track"], config["workload"].get("micro_batch_size")


def recomputed_share(record: Mapping[str, Any]) -> float:
    """Return the share of the blocks whose activations a run computes again in the backward pass."""
    model = get_path(record, "config", "model") or {}
    if not model.get("activation_checkpointing"):
        return 0.0
    blocks = model.get("activation_checkpointing_blocks")
    return 1.0 if blocks is None else blocks / model["num_hidden_layers"]
