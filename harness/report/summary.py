"""The one screen that ends a run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.analysis.format import gibibytes, tflops, tokens_per_second
from harness.report.console import WIDTH, PlainConsole
from harness.report.profile_table import print_profile

# A wall clock is corrected by fractions of a second all the time.
CLOCK_TOLERANCE_SECONDS = 2.0


def print_summary(record: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print what a run did, from its record."""
    console = console or PlainConsole(WIDTH)
    table = Table(title=f"run {folder}", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(record):
        table.add_row(name, value)
    console.print(table)
    if record.get("profile") is not None:
        print_profile(record, console)


def key_figures(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what a log line says of a run that has ended. Of an emulated device it tells no speed."""
    timing, memory, telemetry = record["timing"], record["memory"] or {}, record.get("telemetry") or {}
    losses = record["losses"]["train"]
    figures = {
        "run": str(folder),
        "status": record["status"],
        "workload_id": record["workload_id"],
        "device": record["device"].get("name"),
        "steps": len(losses),
        "loss": losses[-1] if losses else None,
        "evaluation_loss": record["eval"]["final"],
        "peak_allocated_bytes": memory.get("peak_allocated_bytes"),
    }
    if not record["device"].get("emulated"):
        figures |= {
            "step_seconds": timing["mean_step_seconds"],
            "tokens_per_second": timing["tokens_per_second"],
            "joules_per_token": telemetry.get("joules_per_token"),
        }
    return figures


def _lines(record: dict[str, Any]) -> list[tuple[str, str]]:
    config, device, timing = record["config"], record["device"], record["timing"]
    lines = [
        ("status", record["status"] + (f": {record['error']}" if record["error"] else "")),
        ("work", _work(record)),
        ("device", _device(record)),
        ("identity", _identity(record)),
    ]
    if device["emulated"]:
        lines.append(("speed", "none: the device is emulated, its times say nothing of any device"))
    else:
        lines += [
            ("step time", _step_time(timing)),
            ("speed", _speed(timing, record["world_size"])),
            *_utilization(record),
            ("not in it", _outside(record)),
        ]
        lines += _exchange(record.get("parallel"))
    lines.append(("loss", _loss(record)))
    if record["eval"]["points"]:
        lines.append(("held out", _held_out(record)))
    if record["target"] is not None:
        lines.append(("target", _target(record["target"], timed=not device["emulated"])))
    lines.append(("memory", _memory(record["memory"])))
    if not device["emulated"]:
        lines += _energy(record.get("telemetry"))
    lines += _clocks(record.get("clocks"))
    if len(record.get("attempts") or []) > 1:
        lines.append(("attempts", _attempts(record)))
    if config["precision"] == "fp16" and record["losses"]["skipped_steps"]:
        lines.append(("fp16", f"{record['losses']['skipped_steps']} updates skipped by the loss scaler"))
    return lines


def _work(record: dict[str, Any]) -> str:
    config = record["config"]
    work = config["workload"]
    return (
        f"{config['model']['name']}, {record['model']['parameters']:,} parameters, {config['precision']}, "
        f"data {config['data']['name']}, {work['global_batch_size']} x {work['seq_len']} tokens a step, "
        f"track {config['track']['name']}"
    )


def _attempts(record: dict[str, Any]) -> str:
    attempts = record["attempts"]
    ends = [attempt["status"] or "killed" for attempt in attempts[:-1]]
    counted = ", ".join(f"{end} {ends.count(end)} times" if ends.count(end) > 1 else end for end in dict.fromkeys(ends))
    return (
        f"{len(attempts)}; before: {counted}; the last went on from step {attempts[-1]['from_step']}; "
        f"{record['timing']['resumed']['steps']} steps warmed up again, in no timing"
    )


def _device(record: dict[str, Any]) -> str:
    device, processes = record["device"], record["world_size"]
    name = f"{device['kind']}: {device['name']}, {_threads(record)}"
    if processes == 1:
        return name
    return f"{processes} processes ({record['config']['parallel']['name']}), the first on {name}"


def _exchange(parallel: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return what several processes stood still for each other, and which of them the others waited for."""
    if parallel is None or len(parallel["ranks"]) < 2:
        return []
    ranks = parallel["ranks"]
    lines = []
    payload, waits = ranks[0]["payload_bytes_per_step"], [rank["exposed_communication_seconds"] for rank in ranks]
    if payload is not None:
        said = f"{payload / 1e6:,.2f} MB a step from each process"
        if None not in waits:
            said += f"; they stood still for it {1000 * min(waits):.2f} to {1000 * max(waits):.2f} ms of the step"
        lines.append(("exchange", said))
    scaling = parallel.get("scaling")
    if scaling is not None:
        lines.append(("scaling", _scaling(scaling)))
    for straggler in parallel["stragglers"]:
        rank = ranks[straggler["rank"]]
        lines.append(
            (
                "straggler",
                f"rank {straggler['rank']} ({rank['host']}, device {rank['device_index']}) is busy "
                f"{straggler['slowdown']:.2f} times as long as the others, who wait for it",
            )
        )
    return lines


def _scaling(scaling: dict[str, Any]) -> str:
    batch = "the same global batch" if scaling["kind"] == "strong" else "the same share of the batch for each"
    return (
        f"efficiency {scaling['efficiency']:.3f}: tokens/s of a device over those with {scaling['world_size']} "
        f"({scaling['kind']} scaling, {batch}; reference {scaling['reference']}, runs: {scaling['runs']})"
    )


def _energy(told: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return what the device drew, and what held it down, if it tells any of it."""
    if told is None or told["source"] is None:
        return []
    said = []
    if told["measured_joules"] is not None:
        said.append(
            f"{1000 * told['joules_per_token']:,.3g} mJ a token, {told['mean_power_watts']:,.1f} W on average "
            f"({told['method']}, {told['source']}: {told['scope']})"
        )
    else:
        said.append(f"energy unknown: {told['reason']} ({told['source']})")
    if told["temperature_celsius"] is not None:
        said.append(f"up to {told['temperature_celsius']['max']:.0f} °C")
    said += [f"clock held down by {reason} in {100 * share:.0f} % of the readings"
             for reason, share in (told["throttled"] or {}).items()]  # fmt: skip
    return [("energy", "; ".join(said))]


def _clocks(clocks: dict[str, float | None] | None) -> list[tuple[str, str]]:
    """Return what happened to the host's clocks, if it is more than the usual correction of a wall clock."""
    if clocks is None:
        return []
    shift, suspended = clocks["wall_clock_shift_seconds"], clocks["suspended_seconds"]
    said = []
    if shift is not None and abs(shift) > CLOCK_TOLERANCE_SECONDS:
        said.append(f"the wall clock was set by {shift:+,.0f} s during the run")
    if suspended is not None and suspended > CLOCK_TOLERANCE_SECONDS:
        said.append(f"the host was suspended for {suspended:,.0f} s")
    if not said:
        return []
    return [("clocks", " and ".join(said) + "; step times are by the steady clock, which neither changes")]


def _threads(record: dict[str, Any]) -> str:
    return f"{record['effective_settings'].get('threads', '?')} host threads"


def _identity(record: dict[str, Any]) -> str:
    digests = record["digests"]
    shown = {name: (value or "none")[:12] for name, value in digests.items()}
    return f"workload {record['workload_id']}, init {shown['init']}, batches {shown['batches']}"


def _step_time(timing: dict[str, Any]) -> str:
    if timing["mean_step_seconds"] is None:
        return "nothing was measured: the run ended before its measured window"
    steps = timing["measured_steps"]
    intervals = [
        interval["seconds"] / (interval["last_step"] - interval["first_step"] + 1) for interval in timing["intervals"]
    ]
    spread = f", intervals {1000 * min(intervals):.2f} to {1000 * max(intervals):.2f} ms"
    if len(intervals) > 1:
        spread += f" (sd {1000 * statistics.stdev(intervals):.2f})"
    return f"{1000 * timing['mean_step_seconds']:.2f} ms, mean of {steps} steps in {len(intervals)} intervals{spread}"


def _speed(timing: dict[str, Any], processes: int) -> str:
    speed = timing["tokens_per_second"]
    if speed is None:
        return "unknown"
    each = f" in all, {tokens_per_second(speed / processes)} each" if processes > 1 else ""
    return f"{tokens_per_second(speed)}{each}, data wait {100 * timing['data_wait_fraction']:.2f} %"


def _utilization(record: dict[str, Any]) -> list[tuple[str, str]]:
    used = record.get("utilization")
    if used is None:
        return []
    said = f"{tflops(used['achieved_flops'])} of model arithmetic a device"
    precision = record["config"]["precision"]
    for share, peak in (("mfu", "catalogued"), ("mfu_of_measured_peak", "measured")):
        if used[share] is not None:
            said += f"; MFU {used[share]:.3f} of the {peak} {precision} peak"
        elif (known := used[f"{peak}_peak_flops"]) is not None:
            said += f"; above the {peak} {precision} peak of {tflops(known)}: no MFU, peak or speed is wrong"
    return [("compute", said)]


def _outside(record: dict[str, Any]) -> str:
    timing = record["timing"]
    parts = [
        ("set-up", timing["setup_seconds"]),
        ("first step", timing["first_step_seconds"]),
        (f"{timing['warmup']['steps']} warm-up steps", timing["warmup"]["seconds"]),
        ("evaluations", timing["evaluation_seconds"]),
        ("of all of these compilation", (record["effective_settings"].get("compilation") or {}).get("seconds")),
    ]
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts if seconds is not None)


def _loss(record: dict[str, Any]) -> str:
    losses, data = record["losses"]["train"], record["data"]
    if not losses:
        return "no step was finished"
    known = [
        (name, data.get(key))
        for name, key in (
            ("entropy floor", "entropy_floor_nats"),
            ("unigram entropy", "unigram_entropy_nats"),
        )
    ]
    said = "".join(f"; {name} of the data {value:.4f}" for name, value in known if value is not None)
    return f"{losses[0]:.4f} at step 1, {losses[-1]:.4f} at step {len(losses)} nats/token{said}"


def _held_out(record: dict[str, Any]) -> str:
    points = record["eval"]["points"]
    floor = record["data"].get("entropy_floor_nats")
    gap = f", {points[-1]['loss'] - floor:.4f} above the floor" if floor is not None else ""
    return (
        f"{points[-1]['loss']:.4f} nats/token at step {points[-1]['step']}{gap} "
        f"({record['eval']['sequences']} sequences, {len(points)} evaluations)"
    )


def _target(target: dict[str, Any], *, timed: bool) -> str:
    if not target["reached"]:
        return f"loss {target['loss']:g} was not reached"
    reached = f"loss {target['loss']:g} reached at step {target['step']}"
    if not timed:
        return reached
    return (
        f"{reached} after {target['training_seconds']:.1f} s of "
        f"training ({target['wall_seconds']:.1f} s with evaluations)"
    )


def _memory(memory: dict[str, int | None] | None) -> str:
    peak = memory.get("peak_allocated_bytes") if memory is not None else None
    if memory is None or peak is None:
        return "unknown"
    total = memory.get("total_bytes")
    return f"peak {gibibytes(peak)}" + (f" of {gibibytes(total, 1)}" if total else "")
