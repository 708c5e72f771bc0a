"""`python -m harness project`: a training that does not fit here, from the speed of one device to days and energy."""

from __future__ import annotations

import argparse
import difflib
import json
import statistics
from dataclasses import replace
from typing import Any

from harness.analysis.chips import PRECISIONS, Chip, Source, catalogue, find_chip, match_chips
from harness.analysis.format import tflops
from harness.analysis.named_models import model_names, model_preset
from harness.analysis.projection.model import FULL_RECOMPUTATION, Projection, Speed, project
from harness.analysis.projection.plan import Assumptions, Plan
from harness.analysis.projection.published import check_all, plan_of
from harness.analysis.utilization import achieved_flops, catalogued_peak
from harness.commands.arguments import Parser, expand_path
from harness.errors import ExitCode, RecordError, UserError
from harness.records.load import LoadedRecord, get_path, load_runs

FORMATS = ("table", "json")
MAX_NUMBER = 1e18
MAX_DIGITS = 12
# Between the measured model and the planned one, beyond which it is said.
MAX_SIZE_RATIO = 3
SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
HELP = """\
usage: python -m harness project (--model NAME | --parameters N) --tokens D --devices M (--records PATH | --chip NAME)
       python -m harness project --check

Reckons how long a training takes, from the measured speed of one device (--records: a run's folder, or a folder of
repeats, each on one device) or, labelled so, from the catalogue (--chip): days, device-hours, energy, each as a median
with a 90 % interval that comes from the spread of the records and from the stated assumptions. --check does it for
trainings that were published, and prints the errors.

options:
  --model NAME                a model of configs/model/
  --parameters N              or a size, such as 70B; --layers and --width add its attention and allow layouts
  --tokens D                  such as 2T
  --devices M
  --seq-len N                 tokens in a sequence (default 4096)
  --global-batch-size N       sequences a step (default 1024)
  --micro-batch-size N        sequences at once (default 1)
  --tensor N, --pipeline N    parallel parts of a layer, stages of layers (default 1)
  --virtual-stages N          parts of a stage, interleaved (default 1)
  --sharded                   weights, gradients and moments are split over the data-parallel copies
  --recompute                 activations are computed twice instead of kept
  --precision NAME            fp32, tf32, bf16, fp16 or fp8 (default bf16; with --records theirs)
  --devices-per-node N        (default 8)
  --network-gb-per-s X        10^9 bytes/s of a device to other nodes, one way (default 25)
  --link-gb-per-s X           the same within a node (default: the catalogue's)
  --assume NAME=RANGE         in the place of an assumption, such as device-hours-between-interruptions=30000 or
                              link-efficiency=0.5:0.6:0.8 (lowest:likeliest:highest); once for each
  --format FORMAT             table (default) or json

exit codes: 0 ok, 2 bad usage, records, or a layout that cannot be\
"""


def main(words: list[str]) -> int:
    """Project, print, and return the exit code."""
    if {"-h", "--help"} & set(words):
        print(HELP)
        return ExitCode.OK
    options = _parse(words)
    assumed = Assumptions().replaced(options.assume)
    # Here, since rich is for the screen alone.
    from harness.report.projection_table import check_to_dict, print_check, print_projection, projection_to_dict

    if options.check:
        checks = check_all(assumed)
        _refuse_unused(options.assume, [check.projection for check in checks])
        if options.format == "json":
            print(json.dumps(check_to_dict(checks), indent=1))
        else:
            print_check(checks)
        return ExitCode.OK
    runs = load_runs(expand_path(options.records)) if options.records is not None else ()
    precision = options.precision or (runs[0].record["config"]["precision"] if runs else "bf16")
    chip, speed = _measured(runs, precision) if runs else (_catalogued(options.chip), None)
    if options.link_gb_per_s is not None:
        chip = replace(chip, link_bytes_per_second=1e9 * options.link_gb_per_s, link_devices=None)
    plan = _plan(options, precision)
    found = project(plan, chip, speed, assumed)
    _refuse_unused(options.assume, [found])
    cautions = _cautions(runs, plan, chip)
    if options.format == "json":
        print(json.dumps(projection_to_dict(plan, chip, found, assumed, cautions), indent=1))
    else:
        print_projection(plan, chip, found, assumed, cautions)
    return ExitCode.OK


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser("project")
    parser.add_argument("--check", action="store_true")
    for name in ("model", "chip", "records"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--parameters", type=_size)
    parser.add_argument("--tokens", type=_size)
    for name, default in (("devices", None), ("layers", None), ("width", None), ("seq-len", 4096),
                          ("global-batch-size", 1024), ("micro-batch-size", 1), ("tensor", 1), ("pipeline", 1),
                          ("virtual-stages", 1), ("devices-per-node", 8)):  # fmt: skip
        parser.add_argument(f"--{name}", type=_count, default=default)
    for name in ("sharded", "recompute"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--network-gb-per-s", type=_size, default=25.0)
    parser.add_argument("--link-gb-per-s", type=_size)
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=RANGE")
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument("--format", choices=FORMATS, default="table")
    options = parser.parse_args(words)
    if options.check:
        _refuse_beside_check(options, parser)
    else:
        _refuse_contradictions(options)
        _refuse_odd_shape(options)
    return options


def _refuse_beside_check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    for name, value in vars(options).items():
        if name not in ("check", "format", "assume") and value != parser.get_default(name):
            raise UserError(
                f"project: --{name.replace('_', '-')}: found beside --check, which takes its trainings from "
                "configs/trainings.yaml; leave out one of them"
            )


def _refuse_contradictions(options: argparse.Namespace) -> None:
    for one, other in (("model", "parameters"), ("records", "chip")):
        if (getattr(options, one) is None) == (getattr(options, other) is None):
            raise UserError(f"project: expected either --{one} or --{other}; python -m harness project --help")
    for name in ("tokens", "devices"):
        if getattr(options, name) is None:
            raise UserError(f"project: --{name} is missing; python -m harness project --help")


def _refuse_odd_shape(options: argparse.Namespace) -> None:
    if options.model is not None and (options.layers is not None or options.width is not None):
        raise UserError("project: --layers, --width: belong to --parameters; a model of configs/model has its own")
    if options.model is not None and model_preset(options.model) is None:
        near = difflib.get_close_matches(options.model.casefold(), model_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"project: --model: found {options.model!r}, expected one of: {', '.join(model_names())}{hint}")
    if (options.layers is None) != (options.width is None):
        raise UserError("project: --layers, --width: found one of them, expected both or none")
    if options.virtual_stages > 1 and options.pipeline == 1:
        raise UserError("project: --virtual-stages: found without --pipeline, of whose stages it makes parts")


def _refuse_unused(words: list[str], projections: list[Projection]) -> None:
    """Refuse an assumption that changes nothing: its owner thinks that it does."""
    unused = frozenset.intersection(*(each.unused for each in projections))
    for name in (word.partition("=")[0] for word in words):
        if name.replace("-", "_") in unused:
            raise UserError(
                f"assume: {name}: takes no part, since records or the catalogue have a measurement in its place, or "
                "what it is a share of is unknown; leave it out"
            )


def _plan(options: argparse.Namespace, precision: str) -> Plan:
    keys = ("tokens", "parameters", "model", "layers", "width", "devices", "seq_len", "global_batch_size",
            "micro_batch_size", "tensor", "pipeline", "virtual_stages", "sharded", "recompute",
            "devices_per_node")  # fmt: skip
    values = {key: getattr(options, key) for key in keys}
    return plan_of(**values, precision=precision, network_bytes_per_second=1e9 * options.network_gb_per_s)


def _catalogued(written: str) -> Chip:
    found = match_chips(written)
    if len(found) != 1:
        names = [name for chip in catalogue().chips for name in (*chip.also_called, chip.name)]
        near = difflib.get_close_matches(written, names, n=1)
        which = f"configs/chips.yaml has none{f'; did you mean {near[0]!r}?' if near else ''}"
        if found:
            which = f"it may be {', '.join(chip.name for chip in found)}"
        raise UserError(f"project: --chip: found {written!r}, expected one chip of the catalogue; {which}")
    return found[0]


def _measured(runs: tuple[LoadedRecord, ...], precision: str) -> tuple[Chip, Speed]:
    """Return the chip of the records, and its speed."""
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
            problem = f"it ran on {record['world_size']} devices: give runs on one, collectives are reckoned"
        elif record["config"]["precision"] != precision:
            problem = f"it ran in {record['config']['precision']}, expected {precision}"
        elif record["device"]["name"] != first["device"]["name"]:
            problem = f"it ran on {record['device']['name']}, others on {first['device']['name']}"
        elif _work(record) != _work(first):
            problem = f"it is of other work than {runs[0].path}; give repeats of one run"
        speed, peak = achieved_flops(record), catalogued_peak(record)
        if speed is not None and _recomputes(record):
            # What is computed twice is work of the device, though not of the model.
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
    # By the name under which its peak is looked up: a slice of a chip has none.
    chip = find_chip(get_path(first, "backend", "peak_lookup_key"))
    return chip or _unknown(name), Speed(tuple(speeds), source, mean_watts)


def _unknown(name: str) -> Chip:
    nowhere = Source("not in the catalogue", "C")
    return Chip(name, "", (), (), {}, (), None, None, None, None, None, {}, None, {"dense_tflops": nowhere})


def _work(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return what repeats of one run have in common: the work, and how it is done."""
    config = record["config"]
    return record["workload_id"], config["track"], config["workload"].get("micro_batch_size")


def _recomputes(record: dict[str, Any]) -> bool:
    return bool(get_path(record, "config", "model", "activation_checkpointing"))


def _cautions(runs: tuple[LoadedRecord, ...], plan: Plan, chip: Chip) -> list[str]:
    """Say where the runs are a poor guide to the plan, and what was left out since nothing is known of the chip."""
    cautions = []
    if chip.memory_bytes is None:
        cautions.append(f"the memory of {chip.name} is unknown: whether the plan fits was not looked at")
    elif (activations := plan.activation_bytes) is not None and activations + plan.state_bytes > chip.memory_bytes:
        cautions.append(
            f"activations come to some {activations / 1e9:.3g} GB a device beside {plan.state_bytes / 1e9:.3g} GB of "
            f"state, and {chip.name} has {chip.memory_bytes / 1e9:.3g}: "
            + ("more --tensor" if plan.recompute else "--recompute, or more --tensor")
        )
    if chip.memory_bytes_per_second is None:
        cautions.append(f"the memory bandwidth of {chip.name} is unknown: the optimizer was taken for free")
    if len(runs) == 1:
        cautions.append("one run was measured: the interval has no spread between runs in it; repeat it")
    if any((get_path(run.record, "config", "track", "activation_memory_budget") or 1.0) < 1 for run in runs):
        cautions.append("the runs computed some activations twice (track.activation_memory_budget), counted as none")
    seq_lens = sorted({run.record["config"]["workload"]["seq_len"] for run in runs} - {plan.seq_len})
    if seq_lens:
        cautions.append(f"the runs had {seq_lens[0]} tokens in a sequence, the plan has {plan.seq_len}")
    size = get_path(runs[0].record, "model", "parameters") if runs else plan.parameters
    if not 1 / MAX_SIZE_RATIO <= size / plan.parameters <= MAX_SIZE_RATIO:
        cautions.append(
            f"the runs trained {size / 1e9:.3g} B parameters, the plan is of {plan.parameters / 1e9:.3g} B: a model of "
            "another size uses the device otherwise; measure one whose layers are as wide"
        )
    return cautions


def _size(text: str) -> float:
    scale = SUFFIXES.get(text[-1:].upper(), 1.0)
    try:
        value = float(text[:-1] if scale > 1 else text) * scale
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
        raise argparse.ArgumentTypeError(f"found {text[:20]!r}, expected a whole number from 1 on")
    return value
