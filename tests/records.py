"""Builder of artificial records: complete, consistent and valid.

`make_record` follows one story from its arguments: a configuration, the device that it ran on, the speed of that
device with its scatter, and a loss curve. Everything else (intervals, digests, identity, checksum) is derived, the way
a run derives it, so that the readers of records find nothing to complain of. Chance comes from the arguments alone:
the same call gives the same record on every machine.

    make_record(on=A100, step_seconds=0.25, process=2)
    make_record(config={"workload": {"learning_rate": 1e-3}})
    make_record(status="oom", error="not enough memory", finished_steps=40)
    make_side("A100", make_records(5, on=A100, step_seconds=0.25))
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from harness.analysis.run_group import RunGroup
from harness.config import Config, to_dict, workload_id
from harness.records.files import content_digest
from harness.records.load import LoadedRecord
from harness.records.record import SCHEMA_VERSION, write_record
from tests.record_curves import EVALUATION_SECONDS, SETUP_SECONDS, LossCurve, Speed, batch_digest, digest, make_timing

BEGAN = datetime(2026, 11, 24, 10, 0, 0, tzinfo=timezone.utc)
BETWEEN_REPEATS = timedelta(minutes=10)
HOST_MEMORY = 128 * 2**30

CONFIG: dict[str, Any] = {
    "backend": {"name": "cpu"},
    "model": {
        "name": "gpt2-124m",
        "vocab_size": 50257,
        "max_position_embeddings": 1024,
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "activation": "gelu_tanh",
        "position_embedding": "learned",
        "bias": True,
    },
    "data": {"name": "synthetic"},
    "workload": {
        "name": "made-up",
        "steps": 200,
        "timing_warmup_steps": 20,
        "interval_steps": 10,
        "seq_len": 1024,
        "global_batch_size": 32,
        "micro_batch_size": 8,
        "eval_every": 50,
        "eval_sequences": 64,
        "learning_rate": 6e-4,
        "lr_warmup_steps": 20,
    },
    "parallel": {"name": "single"},
    "track": {"name": "portable"},
    "precision": "bf16",
}

# Devices: what differs between records of the same work, as changes of a record.
CPU: dict[str, Any] = {
    "config": {"backend": {"name": "cpu"}},
    "backend": {"name": "cpu", "versions": {"torch": "2.13.0+cpu"}, "peak_lookup_key": None},
    "device": {"kind": "cpu", "name": "AMD EPYC", "index": 0, "count": 1, "memory_bytes": HOST_MEMORY,
               "emulated": False, "cores": 32},
    "effective_settings": {"threads": 32, "attention_kernel": "ScaledDotProductFlashAttentionForCpuBackward0"},
    "environment": {"host": "bench-0", "packages": {"torch": "2.13.0+cpu"}},
    "memory": {"peak_allocated_bytes": 11_400_000_000, "peak_reserved_bytes": None, "total_bytes": HOST_MEMORY},
}  # fmt: skip
A100: dict[str, Any] = {
    "config": {"backend": {"name": "cuda"}},
    "backend": {"name": "cuda", "versions": {"torch": "2.13.0+cu128", "driver": "570.86.15", "cudnn": "9.8.0"},
                "peak_lookup_key": "NVIDIA A100-SXM4-80GB"},
    "device": {"kind": "cuda", "name": "NVIDIA A100-SXM4-80GB", "index": 0, "count": 8,
               "memory_bytes": 85_100_000_000, "emulated": False},
    "effective_settings": {"threads": 16, "attention_kernel": "ScaledDotProductFlashAttentionBackward0"},
    "environment": {"host": "bench-1", "packages": {"torch": "2.13.0+cu128"}},
    "memory": {"peak_allocated_bytes": 14_200_000_000, "peak_reserved_bytes": 15_900_000_000,
               "total_bytes": 85_100_000_000},
    "contention": {"device_processes": []},
}  # fmt: skip
ASCEND: dict[str, Any] = {
    "config": {"backend": {"name": "npu"}},
    "backend": {"name": "npu", "versions": {"torch": "2.13.0+cpu", "torch_npu": "2.13.0", "cann": "8.5.0",
                                            "driver": "25.2.0"},
                "peak_lookup_key": "Ascend910B2"},
    "device": {"kind": "npu", "name": "Ascend910B2", "index": 0, "count": 8, "memory_bytes": 65_500_000_000,
               "emulated": False},
    "effective_settings": {"threads": 16, "attention_kernel": "NpuFusionAttentionBackward0"},
    "environment": {"host": "bench-2", "architecture": "aarch64", "packages": {"torch": "2.13.0+cpu"}},
    "memory": {"peak_allocated_bytes": 15_100_000_000, "peak_reserved_bytes": 17_000_000_000,
               "total_bytes": 65_500_000_000},
    "contention": {"device_processes": []},
}  # fmt: skip

# What a device with sensors adds.
SENSOR = {"mean": 300.0, "min": 200.0, "max": 400.0}
TELEMETRY = {
    "method": "sampled", "reason": None, "source": "NVML", "scope": "board", "period_seconds": 1.0, "readings": 9,
    "failed_readings": 0, "measured_joules": 900.0, "mean_power_watts": 300.0, "joules_per_token": 0.001,
    "power_watts": SENSOR, "temperature_celsius": SENSOR, "clock_mhz": SENSOR, "utilization_percent": SENSOR,
    "throttled": {"thermal": 0.5}, "samples": [[0.0, 300.0]],
}  # fmt: skip


def make_record(
    *,
    on: Mapping[str, Any] = CPU,
    step_seconds: float = 0.250,
    noise: float = 0.004,
    process_noise: float = 0.002,
    data_wait: float = 0.002,
    loss_noise: float = 1e-5,
    process: int = 1,
    finished_steps: int | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return one record, sealed with its checksum.

    Args:
        on: the device, as changes of a record: CPU, A100, ASCEND or your own.
        step_seconds: mean step time of the device.
        noise: relative standard deviation of interval means within a process, and of steps within a interval.
        process_noise: relative standard deviation of a process's mean step time between processes.
        data_wait: share of the step that is spent waiting for data.
        loss_noise: relative rounding noise of losses and gradients; it grows tenfold over the run.
        process: the number of the process: it decides the noise, and when the run began.
        finished_steps: how far the run came; None for all the way (or to config.target_loss).
        **changes: parts of the record, by its top-level keys; dictionaries are merged, all else is put in place.
            Changes of `config` come first and everything follows from them; the rest is put in last, so that a
            record can also be made to contradict itself.
    """
    config = _config(on, changes)
    identity = f"{config.model.name} {config.precision} {config.seed} {config.backend.name} {process}"
    curve = LossCurve(config, loss_noise, random.Random(f"losses of {identity}"))
    steps = curve.last_step if finished_steps is None else finished_steps
    speed = Speed(step_seconds, noise, process_noise, data_wait)
    timing = make_timing(config, steps, speed, random.Random(f"times of {identity}"))
    record = _assembled(config, curve, timing, steps, process)
    for layer in (on, changes):
        record = merged(record, {key: value for key, value in layer.items() if key != "config"})
    return sealed(record)


def make_records(count: int, **arguments: Any) -> list[dict[str, Any]]:
    """Return the records of a number of repeats, numbered from 1; arguments as of `make_record`."""
    return [make_record(**{"process": number, **arguments}) for number in range(1, count + 1)]


def make_side(label: str, records: Sequence[Mapping[str, Any]], folder: str | None = None) -> RunGroup:
    """Return records as a side of a comparison, as if read from runs/LABEL/1, runs/LABEL/2, ..."""
    home = Path(folder or f"runs/{label}")
    return RunGroup(
        label,
        tuple(
            LoadedRecord(home / str(number) / "record.json", dict(record)) for number, record in enumerate(records, 1)
        ),
    )


def write_runs(folder: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write records as repeats of a run: folder/1/record.json, folder/2/record.json, ...; return the folder."""
    for number, record in enumerate(records, 1):
        (folder / str(number)).mkdir(parents=True)
        write_record(folder / str(number), dict(record))
    return folder


def save_run(folder: Path, **arguments: Any) -> Path:
    """Write a record of `make_record` as that of a run in a new folder; return its file."""
    folder.mkdir(parents=True)
    return write_record(folder, make_record(**arguments))


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its checksum recomputed, for tests that change one."""
    return {**record, "content_sha256": content_digest(dict(record))}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return base with changes merged in recursively; both stay as they are."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def _config(on: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    return configuration(merged(merged(CONFIG, on.get("config", {})), changes.get("config", {})))


def configuration(asked: Mapping[str, Any]) -> Config:
    """Return the full config of a run, from its differences to the defaults."""
    return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), dict(asked))))


def _assembled(config: Config, curve: LossCurve, timing: dict[str, Any], steps: int, process: int) -> dict[str, Any]:
    """Return everything that does not depend on the device."""
    points = curve.points(steps, timing)
    timing["evaluation_seconds"] = EVALUATION_SECONDS * len(points)
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "ok",
        "error": None,
        "workload_id": workload_id(config),
        "digests": {
            "init": digest("weights", config.seed, config.model),
            "batches": batch_digest(config, steps) if steps else None,
        },
        "world_size": 1,
        **_dates(timing, process),
        "config": to_dict(config),
        "model": {"parameters": 124_439_808},
        "data": {"name": config.data.name, "entropy_floor_nats": 3.1, "unigram_entropy_nats": 9.6},
        "effective_settings": _EFFECTIVE | {"track": config.track.name, "adamw": config.track.adamw},
        "environment": _ENVIRONMENT | {"command": ["python", "-m", "harness", f"backend={config.backend.name}"]},
        "timing": timing,
        "losses": curve.losses(steps),
        "eval": {
            "unit": "nats/token",
            "sequences": config.workload.eval_sequences if config.workload.eval_every else 0,
            "points": points,
            "final": points[-1]["loss"] if points else None,
        },
        "target": curve.target(points),
        "weights": {"final_norms": curve.norms() if steps == curve.last_step else None},
        "fingerprint": curve.fingerprint() if steps == curve.last_step else None,
        "contention": {"other_processes_cpu_fraction": 0.01, "device_processes": None},
    }


def _dates(timing: Mapping[str, Any], process: int) -> dict[str, str]:
    began = BEGAN + (process - 1) * BETWEEN_REPEATS
    seconds = SETUP_SECONDS + timing["training_seconds"] + timing["evaluation_seconds"]
    return {"started_at": began.isoformat(), "finished_at": (began + timedelta(seconds=math.ceil(seconds))).isoformat()}


_EFFECTIVE: dict[str, Any] = {
    "matmul_dtype": "bfloat16",
    "matmul_relative_error": 0.0017,
    "deterministic_algorithms": False,
    "compiled": False,
    "linear_output_dtypes": ["bfloat16"],
}
_ENVIRONMENT: dict[str, Any] = {
    "harness_version": "0.1.0",
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "source_sha256": "0123456789abcdef" * 4,
    "host": "bench",
    "os": "Ubuntu 24.04.2 LTS",
    "kernel": "6.8.0-60-generic",
    "architecture": "x86_64",
    "container": "docker",
    "cpu_model": "AMD EPYC",
    "cpu_count": 32,
    "cpu_cores_allowed": 32,
    "memory_total_bytes": HOST_MEMORY,
    "memory_limit_bytes": HOST_MEMORY,
    "python": "3.11.7",
    "packages": {"numpy": "2.4.6"},
    "variables": {},
}
