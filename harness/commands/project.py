"""`python -m harness project`: estimates a large training run from the speed of one device: days, energy."""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from typing import Any

from harness.analysis.cautions import MOVES_TIMES, cautions_about
from harness.analysis.chips import PRECISIONS, Chip, Source, catalogue, find_chip, match_chips
from harness.analysis.format import tflops
from harness.analysis.named_models import model_names, model_preset
from harness.analysis.projection.model import FULL_RECOMPUTATION, Projection, Speed, project
from harness.analysis.projection.plan import Assumptions, Plan
from harness.analysis.projection.published import check_all, plan_of
from harness.analysis.run_group import RunGroup, load_run_groups
from harness.analysis.utilization import achieved_flops
from harness.commands.arguments import Parser, expand_path
from harness.errors import ExitCode, RecordError, UserError
from harness.records.load import LoadedRecord, get_path
from harness.text import did_you_mean, nearest, scaled_number

FORMATS = ("table", "json")
MAX_NUMBER = 1e18
MAX_DIGITS = 12
# Between the sizes of the measured and the planned model; beyond it a caution is printed.
MAX_SIZE_RATIO = 3


def main(argv: list[str]) -> int:
    """Project, print, and return the exit code."""
    options = _parse(argv)
    assumed = Assumptions().replaced(options.assume)
    # Imported here: only the screen needs rich.
    from harness.report.projection_table import check_to_dict, print_check, print_projection, projection_to_dict

    if options.check:
        checks = check_all(assumed)
        _check_assumptions_used(options.assume, [check.projection for check in checks])
        if options.format == "json":
            print(json.dumps(check_to_dict(checks), indent=1))
        else:
            print_check(checks)
        return ExitCode.OK
    sides = load_run_groups([options.records]) if options.records is not None else []
    runs = sides[0].runs if sides else ()
    precision = options.precision or (runs[0].record["config"]["precision"] if runs else "bf16")
    chip, speed = _measured(runs, precision) if runs else (_catalogued(options.chip), None)
    if options.link_gb_per_s is not None:
        chip = replace(chip, link_bytes_per_second=1e9 * options.link_gb_per_s, link_devices=None)
    plan = _plan(options, precision)
    found = project(plan, chip, speed, assumed)
    _check_assumptions_used(options.assume, [found])
    cautions = [*_cautions(runs, plan, chip), *_cautions_about_times(sides)]
    if options.format == "json":
        print(json.dumps(projection_to_dict(plan, chip, found, assumed, cautions), indent=1))
    else:
        print_projection(plan, chip, found, assumed, cautions)
    return ExitCode.OK


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "project",
        "Estimates how long a training run takes, from the measured speed of one device (--records) or, labelled so, "
        "from the catalogue (--chip): days, device-hours and energy, each as a median with a 90% interval from the "
        "spread of the records and the stated assumptions. --check estimates published training runs and prints the "
        "errors.",
        "0 ok, 2 bad usage, bad records, or an impossible layout",
        usage="%(prog)s (--model NAME | --parameters N) --tokens D --devices M\n"
        "           (--records PATH | --chip NAME) [options]\n       %(prog)s --check",
    )
    add = parser.add_argument
    add("--check", action="store_true", help="estimate published training runs (configs/trainings.yaml)")
    add("--records", metavar="PATH", type=expand_path, help="a run's folder or a folder of repeats, each on one device")
    add("--chip", metavar="NAME", help="a chip of configs/chips.yaml, in place of records")
    add("--model", metavar="NAME", help="a model of configs/model/")
    add("--parameters", metavar="N", type=_size, help="a model size such as 70B, in place of --model")
    add("--layers", metavar="N", type=_count, help="layers; with --width adds attention, and allows layouts")
    add("--width", metavar="N", type=_count, help="hidden size, with --layers")
    add("--tokens", metavar="D", type=_size, help="training tokens, such as 2T")
    add("--devices", metavar="M", type=_count, help="number of devices")
    for name, default, text in (
        ("seq-len", 4096, "tokens in a sequence"),
        ("global-batch-size", 1024, "sequences per optimizer step"),
        ("micro-batch-size", 1, "sequences per forward pass"),
        ("tensor", 1, "tensor-parallel degree"),
        ("pipeline", 1, "pipeline stages"),
        ("virtual-stages", 1, "model chunks per pipeline stage, interleaved"),
        ("devices-per-node", 8, "devices in a node"),
    ):
        add(f"--{name}", metavar="N", type=_count, default=default, help=f"{text} (default: {default})")
    add("--sharded", action="store_true", help="shard weights, gradients and moments over the data-parallel replicas")
    add("--recompute", action="store_true", help="recompute activations in the backward pass")
    add("--precision", choices=PRECISIONS, help="precision of the products (default: the records', else bf16)")
    add("--network-gb-per-s", metavar="X", type=_size, default=25.0,
        help="10^9 bytes/s from a device to other nodes, one direction (default: 25)")  # fmt: skip
    add("--link-gb-per-s", metavar="X", type=_size, help="the same within a node (default: the catalogue's)")
    add("--assume", metavar="NAME=RANGE", action="append", default=[],
        help="replace an assumption, such as device-hours-between-interruptions=30000 or link-efficiency=0.5:0.6:0.8 "
        "(lowest:likeliest:highest); may be repeated")  # fmt: skip
    add("--format", choices=FORMATS, default="table", help="output format (default: table)")
    return parser


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse(argv)
    if options.check:
        _check_no_other_options(options, parser)
    else:
        _check_required(options)
        _check_shape(options)
    return options


def _check_no_other_options(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    for name, value in vars(options).items():
        if name not in ("check", "format", "assume") and value != parser.get_default(name):
            raise UserError(
                f"project: --{name.replace('_', '-')}: found beside --check, which takes its training runs "
                "from configs/trainings.yaml; leave out one of them"
            )


def _check_required(options: argparse.Namespace) -> None:
    for one, other in (("model", "parameters"), ("records", "chip")):
        if (getattr(options, one) is None) == (getattr(options, other) is None):
            raise UserError(f"project: expected either --{one} or --{other}; python -m harness project --help")
    for name in ("tokens", "devices"):
        if getattr(options, name) is None:
            raise UserError(f"project: --{name} is missing; python -m harness project --help")


def _check_shape(options: argparse.Namespace) -> None:
    if options.model is not None and (options.layers is not None or options.width is not None):
        raise UserError(
            "project: --layers, --width: belong to --parameters; a model of configs/model has its own; leave them out"
        )
    if options.model is not None and model_preset(options.model) is None:
        hint = did_you_mean(options.model.casefold(), model_names())
        raise UserError(f"project: --model: found {options.model!r}, expected one of: {', '.join(model_names())}{hint}")
    if (options.layers is None) != (options.width is None):
        raise UserError("project: --layers, --width: found only one of them, expected both or none")
    if options.virtual_stages > 1 and options.pipeline == 1:
        raise UserError("project: --virtual-stages: found no --pipeline, whose stages it divides; add --pipeline N")


def _check_assumptions_used(assumptions: list[str], projections: list[Projection]) -> None:
    """Raise UserError if an assumption of the command line changes nothing."""
    unused = frozenset.intersection(*(each.unused for each in projections))
    for name in (text.partition("=")[0] for text in assumptions):
        if name.replace("-", "_") in unused:
            raise UserError(
                f"assume: {name}: not used, because records or the catalogue hold a measured value, or because the "
                "quantity that it scales is unknown; leave it out"
            )


def _plan(options: argparse.Namespace, precision: str) -> Plan:
    keys = ("tokens", "parameters", "model", "layers", "width", "devices", "seq_len", "global_batch_size",
            "micro_batch_size", "tensor", "pipeline", "virtual_stages", "sharded", "recompute",
            "devices_per_node")  # fmt: skip
    values = {key: getattr(options, key) for key in keys}
    return plan_of(**values, precision=precision, network_bytes_per_second=1e9 * options.network_gb_per_s)


def _catalogued(name: str) -> Chip:
    found = match_chips(name)
    if len(found) != 1:
        names = [name for chip in catalogue().chips for name in (*chip.also_called, chip.name)]
        near = nearest(name, names)
        which = f"configs/chips.yaml has no such chip{f'; did you mean {near!r}?' if near else ''}"
        if found:
            which = f"the name matches {', '.join(chip.name for chip in found)}"
        raise UserError(f"project: --chip: found {name!r}, expected one chip of the catalogue; {which}")
    return found[0]


def _measured(runs: tuple[LoadedRecord, ...], precision: str) -> tuple[Chip, Speed]:
    """Return the chip of the records and its measured speed.

    Raises:
        RecordError: a record has no usable speed, or the records are not repeats of one run on one device.
    """
    speeds, watts = [], []
    first = runs[0].record
    for run in runs:
        record = run.record
        problem = None
        if record["status"] != "ok":
            problem = f"the run ended {record['status']}"
        elif get_path(record, "device", "emulated"):
            problem = "its device is emulated and has no speed"
        elif record["world_size"] != 1:
            problem = f"it ran on {record['world_size']} devices: give runs on one; collectives are estimated"
        elif record["config"]["precision"] != precision:
            problem = f"it ran in {record['config']['precision']}, expected {precision}"
        elif record["device"]["name"] != first["device"]["name"]:
            problem = f"it ran on {record['device']['name']}, others on {first['device']['name']}"
        elif _work(record) != _work(first):
            problem = f"its work differs from that of {runs[0].path}; give repeats of one run"
        speed, peak = achieved_flops(record), _ceiling(record)
        if speed is not None and _recomputes(record):
            # Recomputation is work of the device, though not of the model.
            speed *= FULL_RECOMPUTATION
        if problem is None and (speed is None or not 0 < speed < float("inf")):
            problem = "it has no speed"
        if problem is None and speed is not None and peak is not None and speed > peak:
            problem = f"{tflops(speed)} are above the chip's peak of {tflops(peak)}: one is wrong"
        if problem is not None or speed is None:
            raise RecordError(f"{run.path}: {problem}")
        speeds.append(speed)
        watts.append(get_path(record, "telemetry", "mean_power_watts"))
    name = first["device"]["name"] or first["device"]["kind"]
    source = f"{len(runs)} measured run{'' if len(runs) == 1 else 's'} on {name}"
    mean_watts = statistics.fmean(watts) if None not in watts else None
    # By the name of the peak lookup: a slice of a chip has none.
    chip = find_chip(get_path(first, "backend", "peak_lookup_key"))
    return chip or _unknown(name), Speed(tuple(speeds), source, mean_watts)


def _ceiling(record: dict[str, Any]) -> float | None:
    chip = find_chip(get_path(record, "backend", "peak_lookup_key"))
    return None if chip is None else chip.ceiling_flops(record["config"]["precision"])


def _unknown(name: str) -> Chip:
    nowhere = Source("not in the catalogue", "C")
    return Chip(name, "", (), (), {}, {}, (), None, None, None, None, None, {}, None, {"dense_tflops": nowhere})


def _work(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return what repeats of one run share: the work and its implementation."""
    config = record["config"]
    return record["workload_id"], config["track"], config["workload"].get("micro_batch_size")


def _recomputes(record: dict[str, Any]) -> bool:
    return bool(get_path(record, "config", "model", "activation_checkpointing"))


def _cautions(runs: tuple[LoadedRecord, ...], plan: Plan, chip: Chip) -> list[str]:
    """Return warnings: where the runs differ from the plan, and which properties of the chip are unknown."""
    cautions = []
    if chip.memory_bytes is None:
        cautions.append(f"the memory of {chip.name} is unknown: whether the plan fits was not checked")
    elif (activations := plan.activation_bytes) is not None and activations + plan.state_bytes > chip.memory_bytes:
        cautions.append(
            f"activations need about {activations / 1e9:.3g} GB a device beside {plan.state_bytes / 1e9:.3g} GB of "
            f"state, and {chip.name} has {chip.memory_bytes / 1e9:.3g}: "
            + ("more --tensor" if plan.recompute else "--recompute, or more --tensor")
        )
    if chip.memory_bytes_per_second is None:
        cautions.append(f"the memory bandwidth of {chip.name} is unknown: the optimizer step was counted as 0 s")
    if len(runs) == 1:
        cautions.append("one run was measured: no interval, since run-to-run variance is unknown; add repeats")
    if any((get_path(run.record, "config", "track", "activation_memory_budget") or 1.0) < 1 for run in runs):
        cautions.append("the runs recomputed some activations (track.activation_memory_budget), which is not counted")
    seq_lens = sorted({run.record["config"]["workload"]["seq_len"] for run in runs} - {plan.seq_len})
    if seq_lens:
        cautions.append(f"the runs had sequences of {seq_lens[0]} tokens, the plan has {plan.seq_len}")
    size = get_path(runs[0].record, "model", "parameters") if runs else plan.parameters
    if not 1 / MAX_SIZE_RATIO <= size / plan.parameters <= MAX_SIZE_RATIO:
        cautions.append(
            f"the runs trained {size / 1e9:.3g} B parameters, the plan has {plan.parameters / 1e9:.3g} B: efficiency "
            "depends on the model's size; measure a model with layers of the same width"
        )
    return cautions


def _cautions_about_times(sides: list[RunGroup]) -> list[str]:
    """Return what made the measured runs slower or faster than their device is."""
    found = [caution for side in sides for caution in cautions_about(side)]
    return [f"the runs: {caution.text}" for caution in found if caution.name in MOVES_TIMES]


def _size(text: str) -> float:
    try:
        value = scaled_number(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_NUMBER:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a number above 0 and up to {MAX_NUMBER:g}, such as 70B"
        )
    return value


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text[:20]!r}, expected a whole number of at least 1")
    return value
