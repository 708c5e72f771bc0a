"""Scaling efficiency: tokens/s per device of a run over those of a run on fewer devices.

With the same global batch size this is strong scaling, with the same share of it for each device weak scaling.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.config import Config, flatten, to_dict, work_differences
from harness.errors import ConfigError
from harness.records.load import get_path, load_runs
from harness.text import counted

KEY = "parallel.scaling_reference"
BATCH = "workload.global_batch_size"


@dataclass(frozen=True)
class ScalingBaseline:
    """Speed of the runs on fewer devices that `parallel.scaling_reference` names."""

    reference: str
    """The path, as given."""
    kind: str
    """`strong` or `weak`."""
    world_size: int
    runs: int
    tokens_per_second: float
    """Of all devices together, at the mean step time of the runs."""

    def efficiency(self, world_size: int, tokens_per_second: float | None) -> dict[str, Any] | None:
        """Return the `scaling` section of a record, or None if the run measured no speed."""
        if tokens_per_second is None:
            return None
        baseline = self.tokens_per_second / self.world_size
        return {**asdict(self), "efficiency": tokens_per_second / world_size / baseline}


def scaling_baseline(
    config: Config, world_size: int, device: dict[str, Any], threads: int | None
) -> ScalingBaseline | None:
    """Read the runs that `parallel.scaling_reference` names, if any.

    Args:
        device: the `device` section of the starting run's record.
        threads: host threads of each process on the CPU backend; None on others.

    Raises:
        ConfigError: they are not comparable with this run.
        RecordError: they cannot be read.
    """
    given = config.parallel.scaling_reference
    if given is None:
        return None
    runs = load_runs(Path(given).expanduser())
    for run in runs:
        for name, found, expected in _differences(config, device, threads, run.record):
            raise ConfigError(
                f"{KEY}: {run.path} is not comparable with this run: its {name} is {found}, expected {expected}; give "
                "a run of the same work on fewer of the same devices, or leave it out"
            )
    sizes = sorted({run.record["world_size"] for run in runs})
    if len(sizes) > 1 or sizes[0] >= world_size:
        raise ConfigError(
            f"{KEY}: {given} holds runs of world size {' and '.join(map(str, sizes))}, expected one size that is "
            f"smaller than this run's ({world_size})"
        )
    first = runs[0].record
    step_seconds = sum(run.record["timing"]["mean_step_seconds"] for run in runs) / len(runs)
    batches = {run.record["config"]["workload"]["global_batch_size"] for run in runs}
    if len(batches) > 1:
        raise ConfigError(f"{KEY}: {given} holds runs of different {BATCH} ({sorted(batches)}), expected one")
    return ScalingBaseline(
        reference=given,
        kind=_kind(config, world_size, first, given),
        world_size=sizes[0],
        runs=len(runs),
        tokens_per_second=first["timing"]["tokens_per_step"] / step_seconds,
    )


def _differences(config: Config, device: dict[str, Any], threads: int | None, record: dict[str, Any]) -> Any:
    """Yield (name, found, expected) where a record is of other work, of another device, or without a speed."""
    if record["status"] != "ok":
        yield "status", record["status"], "ok"
    if device.get("emulated") or get_path(record, "device", "emulated"):
        yield "device", "emulated", "a real one, since an emulation has no speed"
    if record["device"]["name"] != device.get("name"):
        yield "device", repr(record["device"]["name"]), repr(device.get("name"))
    if threads is not None and get_path(record, "effective_settings", "threads") != threads:
        yield (
            "number of host threads",
            get_path(record, "effective_settings", "threads"),
            f"{threads} (backend.threads)",
        )
    asked, given = to_dict(config), record["config"]
    differences = work_differences(given, asked)
    differences.pop(BATCH, None)
    tracks = [flatten({"track": each["track"]}) for each in (given, asked)]
    differences |= {key: (tracks[0].get(key), value) for key, value in tracks[1].items() if tracks[0].get(key) != value}
    for key, (found, expected) in sorted(differences.items()):
        yield key, found, expected


def _kind(config: Config, world_size: int, record: dict[str, Any], given: str) -> str:
    batch, before = config.workload.global_batch_size, record["config"]["workload"]["global_batch_size"]
    if batch == before:
        return "strong"
    if batch * record["world_size"] == before * world_size:
        return "weak"
    raise ConfigError(
        f"{KEY}: {given} trained {before} sequences a step on {counted(record['world_size'], 'device')}, this run "
        f"trains {batch} on {world_size}; keep {BATCH} ({before}, strong scaling) or each device's share of it "
        f"({before * world_size // record['world_size']}, weak scaling)"
    )
