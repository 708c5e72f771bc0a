"""The figures of a record that stand in a table: one row a run, for pandas, CSV and Parquet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.records.load import LoadedRecord, get_path

# Name of a column, and where its value is in a record; units are in the names.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "status": ("status",),
    "started_at": ("started_at",),
    "workload_id": ("workload_id",),
    "model": ("config", "model", "name"),
    "parameters": ("model", "parameters"),
    "precision": ("config", "precision"),
    "seq_len": ("config", "workload", "seq_len"),
    "global_batch_size": ("config", "workload", "global_batch_size"),
    "micro_batch_size": ("config", "workload", "micro_batch_size"),
    "track": ("config", "track", "name"),
    "seed": ("config", "seed"),
    "backend": ("backend", "name"),
    "device": ("device", "name"),
    "emulated": ("device", "emulated"),
    "world_size": ("world_size",),
    "host": ("environment", "host"),
    "mean_step_seconds": ("timing", "mean_step_seconds"),
    "tokens_per_second": ("timing", "tokens_per_second"),
    "data_wait_fraction": ("timing", "data_wait_fraction"),
    "achieved_flops": ("utilization", "achieved_flops"),
    "mfu": ("utilization", "mfu"),
    "mfu_of_measured_peak": ("utilization", "mfu_of_measured_peak"),
    "peak_allocated_bytes": ("memory", "peak_allocated_bytes"),
    "mean_power_watts": ("telemetry", "mean_power_watts"),
    "joules_per_token": ("telemetry", "joules_per_token"),
    "final_eval_loss": ("eval", "final"),
    "harness_version": ("environment", "harness_version"),
    "git_commit": ("environment", "git", "commit"),
    "torch_version": ("backend", "versions", "torch"),
    "driver_version": ("backend", "versions", "driver"),
    "content_sha256": ("content_sha256",),
}
# Columns that do not stand at one place of a record.
FIRST_COLUMN, LAST_LOSS = "path", "final_train_loss"


def row_of(run: LoadedRecord) -> dict[str, Any]:
    """Return a run's figures by column; None where the record has none."""
    row: dict[str, Any] = {FIRST_COLUMN: str(run.path)}
    row |= {name: get_path(run.record, *keys) for name, keys in COLUMNS.items()}
    losses = get_path(run.record, "losses", "train")
    row[LAST_LOSS] = losses[-1] if losses else None
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def folder_of(run: LoadedRecord) -> Path:
    """Return the folder that names a run in a table: of repeats (DIR/1, DIR/2, ...) the folder above them."""
    folder = run.path.parent
    return folder.parent if folder.name.isdecimal() else folder
