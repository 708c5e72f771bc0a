"""Summary of a run: the table that ends it, and the fields of its log line."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.analysis.cautions import MAX_OTHER_CPU_FRACTION
from harness.analysis.format import UNKNOWN, gibibytes, tflops, tokens_per_second
from harness.config import product_format
from harness.layout import AXES, Layout
from harness.report.console import WIDTH, PlainConsole, key_value_table
from harness.report.profile_table import print_profile
from harness.text import counted, printable

# Wall clocks are corrected by fractions of a second all the time.
CLOCK_TOLERANCE_SECONDS = 2.0


def print_summary(record: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print the summary of a run from its record."""
    console = console or PlainConsole(WIDTH)
    console.print(key_value_table(_lines(record), title=f"run {folder}"))
    if record.get("profile") is not None:
        print_profile(record, console)


def key_figures(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of the log line that ends a run, without speed on an emulated device."""
    timing, memory, telemetry = record["timing"], record["memory"] or {}, record.get("telemetry") or {}
    losses = record["losses"]["train"]
    figures = {
        "run": str(folder),
        "status": record["status"],
        "workload_id": record["workload_id"],
        "device": record["device"].get("name"),
        "data": record["data"],
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
        *_data(record),
        ("device", _device(record)),
        ("digests", _digests(record)),
    ]
    if device["emulated"]:
        lines.append(("speed", "not stated, since the device is emulated"))
    else:
        lines += [
            ("step time", _step_time(timing)),
            ("speed", _speed(timing, record["world_size"])),
            *_utilization(record),
            *other_load(record),
            ("excluded", _excluded(record)),
        ]
        lines += _communication(record.get("parallel"))
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
        lines.append(("fp16", f"{counted(record['losses']['skipped_steps'], 'update')} skipped by the loss scaler"))
    return lines


def _work(record: dict[str, Any]) -> str:
    config = record["config"]
    work = config["workload"]
    return (
        f"{config['model']['name']}, {record['model']['parameters']:,} parameters, {config['precision']}, "
        f"data {config['data']['name']}, {work['global_batch_size']} x {work['seq_len']} tokens a step, "
        f"track {config['track']['name']}"
    )


def _data(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of what was read of files, and of what was left out."""
    data = record["data"]
    if "train_sequences" not in data:
        return []
    sequences, seq_len = data["train_sequences"], record["config"]["workload"]["seq_len"]
    unused = data["train_tokens"] - sequences * seq_len - 1
    files = data.get("files_read")
    kinds = [] if files is None else [counted(files, "file")]
    kinds += [f"{data['format']} {data['dtype']}"] if "format" in data else []
    kind = " of ".join(kinds)
    read = f"{kind}, {data['size_bytes']:,} bytes: {data['train_tokens']:,} tokens in {counted(sequences, 'sequence')}"
    read += f" and {unused:,} left over" if unused else ""
    lines = [("data", f"{read}; {data['held_out_tokens']:,} tokens held out")]
    for name, part in (("left out", data), ("held-out files", data.get("held_out"))):
        if part is not None and (left_out := _left_out(part)):
            lines.append((name, left_out))
    return lines


def _left_out(data: dict[str, Any]) -> str:
    dropped, characters = data.get("characters_dropped", 0), data.get("characters", 0)
    share = f" of {characters:,} ({100 * dropped / max(1, characters):.1f} %)"
    counts = [
        ("files of other names", data.get("files_not_matched"), ""),
        ("empty files", data.get("files_empty"), ""),
        ("empty documents", data.get("documents_empty"), ""),
        *((f"skipped as {kind}", count, "") for kind, count in data.get("files_skipped", {}).items()),
        ("links to what is read already", data.get("links_repeated"), ""),
        ("characters dropped by the tokenizer", dropped, share),
        ("unknown tokens", data.get("tokens_unknown"), ""),
    ]
    return "; ".join(f"{words}: {count:,}{of_all}" for words, count, of_all in counts if count)


def _attempts(record: dict[str, Any]) -> str:
    attempts = record["attempts"]
    ends = [attempt["status"] or "killed" for attempt in attempts[:-1]]
    before = ", ".join(f"{end} {ends.count(end)} times" if ends.count(end) > 1 else end for end in dict.fromkeys(ends))
    *earlier, last = (str(Layout(**attempt.get("layout", {"data": attempt["world_size"]}))) for attempt in attempts)
    layouts = list(dict.fromkeys(earlier))
    elsewhere = f" in {', '.join(layouts)}" if layouts != [last] else ""
    return (
        f"{len(attempts)}; before: {before}{elsewhere}; the last resumed at step {attempts[-1]['from_step']}; "
        f"{counted(record['timing']['resumed']['steps'], 'untimed warm-up step')} after resuming"
    )


def _device(record: dict[str, Any]) -> str:
    device, processes = record["device"], record["world_size"]
    name = f"{device['kind']}: {device['name'] or UNKNOWN}, {_threads(record)}"
    if processes == 1:
        return name
    return f"{processes} processes ({_layout(record)}), the first on {name}"


def _layout(record: dict[str, Any]) -> str:
    sizes = (record.get("parallel") or {}).get("layout")
    preset = record["config"]["parallel"]["name"]
    return str(Layout(**sizes)) if preset == "mesh" and sizes else preset


def _communication(parallel: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the rows of several processes: payload and exposed communication, scaling efficiency, stragglers."""
    if parallel is None or len(parallel["ranks"]) < 2:
        return []
    ranks = parallel["ranks"]
    lines = []
    payload, exposed = ranks[0]["payload_bytes_per_step"], [rank["exposed_communication_seconds"] for rank in ranks]
    if payload is not None:
        text = f"{payload / 1e6:,.2f} MB a step from each process"
        if None not in exposed:
            text += f"; exposed communication {1000 * min(exposed):.2f} to {1000 * max(exposed):.2f} ms a step"
        lines.append(("communication", text + _by_axis(ranks)))
    if (bubble := parallel.get("bubble")) is not None and bubble["measured_share"] is not None:
        measured, ideal = (100 * bubble[key] for key in ("measured_share", "ideal_share"))
        lines.append(("bubble", f"{measured:.0f} % of a step; {ideal:.0f} % with equal stages and free transfers"))
    scaling = parallel.get("scaling")
    if scaling is not None:
        lines.append(("scaling", _scaling(scaling)))
    for straggler in parallel["stragglers"]:
        rank = ranks[straggler["rank"]]
        place = Layout(**parallel["layout"]).place(straggler["rank"]) if "layout" in parallel else ""
        parts = (rank["host"], f"device {rank['device_index']}", place)
        where = f"rank {straggler['rank']} ({', '.join(part for part in parts if part)})"
        lines.append(("straggler", f"{where}: {straggler['slowdown']:.2f} times the step time of the others"))
    return lines


def _by_axis(ranks: list[dict[str, Any]]) -> str:
    """Return the mean exposed communication of each axis, if there are several."""
    axes = [axis for axis in ranks[0].get("axes") or {} if axis in AXES]
    waits = {axis: [rank["axes"].get(axis, {}).get("exposed_communication_seconds") for rank in ranks] for axis in axes}
    known = {axis: values for axis, values in waits.items() if None not in values}
    if len(axes) < 2 or not known:
        return ""
    return f" ({', '.join(f'{axis} {1000 * statistics.fmean(values):.2f}' for axis, values in known.items())})"


def _scaling(scaling: dict[str, Any]) -> str:
    batch = "the same global batch" if scaling["kind"] == "strong" else "the same batch for each device"
    return (
        f"efficiency {scaling['efficiency']:.3f}: tokens/s a device over those with {scaling['world_size']} "
        f"({scaling['kind']} scaling, {batch}; reference {scaling['reference']}, runs: {scaling['runs']})"
    )


def _energy(telemetry: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the row of energy, temperature and throttling, if the device has sensors."""
    if telemetry is None or telemetry["source"] is None:
        return []
    parts = []
    if telemetry["measured_joules"] is not None:
        method = f"{telemetry['method']}, {telemetry['source']}: {telemetry['scope']}"
        watts = f"{telemetry['mean_power_watts']:,.1f} W on average"
        parts.append(f"{1000 * telemetry['joules_per_token']:,.3g} mJ a token, {watts} ({method})")
    else:
        parts.append(f"energy unknown: {telemetry['reason']} ({telemetry['source']})")
    if telemetry["temperature_celsius"] is not None:
        parts.append(f"up to {telemetry['temperature_celsius']['max']:.0f} °C")
    parts += [f"clock throttled by {reason} in {100 * share:.0f} % of the readings"
             for reason, share in (telemetry["throttled"] or {}).items()]  # fmt: skip
    return [("energy", "; ".join(parts))]


def _clocks(clocks: dict[str, float | None] | None) -> list[tuple[str, str]]:
    """Return the row of clock changes, if they are larger than the usual corrections."""
    if clocks is None:
        return []
    shift, suspended = clocks["wall_clock_shift_seconds"], clocks["suspended_seconds"]
    parts = []
    if shift is not None and abs(shift) > CLOCK_TOLERANCE_SECONDS:
        parts.append(f"the wall clock was set by {shift:+,.0f} s during the run")
    if suspended is not None and suspended > CLOCK_TOLERANCE_SECONDS:
        parts.append(f"the host was suspended for {suspended:,.0f} s")
    if not parts:
        return []
    return [("clocks", " and ".join(parts) + "; step times use the monotonic clock, which neither affects")]


def _threads(record: dict[str, Any]) -> str:
    threads = record["effective_settings"].get("threads")
    return "? host threads" if threads is None else counted(threads, "host thread")


def _digests(record: dict[str, Any]) -> str:
    digests = record["digests"]
    shown = {name: (value or "none")[:12] for name, value in digests.items()}
    return f"workload {record['workload_id']}, init {shown['init']}, batches {shown['batches']}"


def _step_time(timing: dict[str, Any]) -> str:
    if timing["mean_step_seconds"] is None:
        if (timing.get("saving") or {}).get("steps"):
            return "not measured: a checkpoint was being written in all steps after the warm-up"
        return "not measured: the run ended before its first timed interval"
    steps = timing["measured_steps"]
    intervals = [
        interval["seconds"] / (interval["last_step"] - interval["first_step"] + 1) for interval in timing["intervals"]
    ]
    spread = f", intervals {1000 * min(intervals):.2f} to {1000 * max(intervals):.2f} ms"
    if len(intervals) > 1:
        spread += f" (sd {1000 * statistics.stdev(intervals):.2f})"
    mean = f"mean of {counted(steps, 'step')} in {counted(len(intervals), 'interval')}"
    return f"{1000 * timing['mean_step_seconds']:.2f} ms, {mean}{spread}"


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
    text = f"{tflops(used['achieved_flops'])} a device (model FLOPs)"
    precision = product_format(record["config"]["precision"])
    busy = (record.get("measured_peak") or {}).get("other_processes_cpu_fraction") or 0.0
    for share, peak in (("mfu", "catalogued"), ("mfu_of_measured_peak", "measured")):
        if used[share] is not None:
            text += f"; MFU {used[share]:.3f} of the {peak} {precision} peak"
        elif (known := used[f"{peak}_peak_flops"]) is not None:
            text += f"; no MFU: above the {peak} {precision} peak of {tflops(known)}, so peak or speed is wrong"
        if peak == "measured" and used["measured_peak_flops"] is not None and busy > MAX_OTHER_CPU_FRACTION:
            text += f" (a peak measured while other processes used {busy:.0%} of the CPU cores is too low)"
    return [("compute", text)]


def other_load(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a row where a record knows of other work on the host or the device while it was measured."""
    contention = record.get("contention") or {}
    used, found = contention.get("other_processes_cpu_fraction") or 0.0, []
    if used > MAX_OTHER_CPU_FRACTION:
        found.append(f"other processes used {used:.0%} of the CPU cores")
    if others := contention.get("device_processes"):
        found.append(f"other processes used the device: {', '.join(map(printable, others[:3]))}")
    return [("caution", f"{'; '.join(found)}: the speed is that of a busy machine")] if found else []


def _excluded(record: dict[str, Any]) -> str:
    timing = record["timing"]
    parts = [
        ("set-up", timing["setup_seconds"]),
        ("first step", timing["first_step_seconds"]),
        (counted(timing["warmup"]["steps"], "warm-up step"), timing["warmup"]["seconds"]),
        ("evaluations", timing["evaluation_seconds"]),
        *_during_checkpoints(timing.get("saving") or {"steps": 0}),
        ("compilation within these", (record["effective_settings"].get("compilation") or {}).get("seconds")),
    ]
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts if seconds is not None)


def _during_checkpoints(saving: dict[str, Any]) -> list[tuple[str, float]]:
    steps = saving["steps"]
    return [(f"{counted(steps, 'step')} while checkpoints were written", saving["seconds"])] if steps else []


def _loss(record: dict[str, Any]) -> str:
    losses, data = record["losses"]["train"], record["data"]
    if not losses:
        return "no step finished"
    known = [
        (name, data.get(key))
        for name, key in (
            ("entropy floor", "entropy_floor_nats"),
            ("unigram entropy", "unigram_entropy_nats"),
        )
    ]
    entropies = "".join(f"; {name} of the data {value:.4f}" for name, value in known if value is not None)
    return f"{losses[0]:.4f} at step 1, {losses[-1]:.4f} at step {len(losses)} nats/token{entropies}"


def _held_out(record: dict[str, Any]) -> str:
    points = record["eval"]["points"]
    floor = record["data"].get("entropy_floor_nats")
    gap = f", {points[-1]['loss'] - floor:.4f} above the floor" if floor is not None else ""
    return (
        f"{points[-1]['loss']:.4f} nats/token at step {points[-1]['step']}{gap} "
        f"({counted(record['eval']['sequences'], 'sequence')}, {counted(len(points), 'evaluation')})"
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
