"""`python -m harness project`: estimates a large training run from the speed of one device: days, energy."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from harness.analysis.cautions import MOVES_TIMES, cautions_about
from harness.analysis.chips import PRECISIONS, Chip, catalogue, find_chip, match_chips
from harness.analysis.named_models import model_names, model_preset
from harness.analysis.projection.assumptions import Assumptions
from harness.analysis.projection.links import MeasuredCollectives
from harness.analysis.projection.measured_speed import measured_speed
from harness.analysis.projection.model import Projection, project
from harness.analysis.projection.plan import Plan
from harness.analysis.projection.published import check_all, plan_of
from harness.analysis.run_group import RunGroup, load_run_groups
from harness.commands.arguments import Parser, expand_path
from harness.commands.check_run import check_record
from harness.config import product_format
from harness.errors import ExitCode, RecordError, UserError
from harness.records.load import LoadedRecord, get_path
from harness.records.peak import find_collectives
from harness.text import did_you_mean, nearest, scaled_number

FORMATS = ("table", "json")
# --check without a record.
PUBLISHED = ""
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

    if options.check == PUBLISHED:
        checks = check_all(assumed)
        _check_assumptions_used(options.assume, [check.projection for check in checks])
        if options.format == "json":
            print(json.dumps(check_to_dict(checks), indent=1))
        else:
            print_check(checks)
        return ExitCode.OK
    if options.check is not None:
        return check_record(options, assumed)
    sides = load_run_groups([options.records]) if options.records is not None else []
    runs = sides[0].runs if sides else ()
    precision = options.precision or (product_format(runs[0].record["config"]["precision"]) if runs else "bf16")
    chip, speed = measured_speed(runs, precision) if runs else (_catalogued(options.chip), None)
    if options.link_gb_per_s is not None:
        chip = replace(chip, link_bytes_per_second=1e9 * options.link_gb_per_s, link_devices=None)
    plan = _plan(options, precision)
    measured = None if options.peak is None else _measured_collectives(options.peak, runs, chip)
    found = project(plan, chip, speed, assumed, measured)
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
        "errors; with the record of a run on several devices, it predicts that run's step time in its own layout.",
        "0 ok, 2 bad usage, bad records, or an impossible layout",
        usage="%(prog)s (--model NAME | --parameters N) --tokens D --devices M\n"
        "           (--records PATH | --chip NAME) [--peak PATH] [options]\n       %(prog)s --check\n"
        "       %(prog)s --check RECORD [--peak PATH] [--records PATH]",
    )
    add = parser.add_argument
    add("--check", metavar="RECORD", nargs="?", const=PUBLISHED,
        help="predict the step time of a recorded run; without RECORD, published training runs "
        "(configs/trainings.yaml)")  # fmt: skip
    add("--peak", metavar="PATH", type=expand_path,
        help="a peak record of several ranks, or a folder of such: its collectives in place of assumed links (with "
        "--check RECORD: by default the run's peak_dir)")  # fmt: skip
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
    if options.check is not None:
        _check_no_other_options(options, parser)
    else:
        _check_required(options)
        _check_shape(options)
    return options


def _check_no_other_options(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    allowed, source = {"check", "format", "assume"}, "takes its training runs from configs/trainings.yaml"
    if options.check != PUBLISHED:
        allowed, source = allowed | {"peak", "records"}, "takes everything from the run's record"
    for name, value in vars(options).items():
        if name not in allowed and value != parser.get_default(name):
            raise UserError(
                f"project: --{name.replace('_', '-')}: found beside --check, which {source}; leave out one of them"
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


def _measured_collectives(path: Path, runs: tuple[LoadedRecord, ...], chip: Chip) -> MeasuredCollectives:
    """Return the collectives of the newest peak record of a path.

    Raises:
        RecordError: there is none of the same device.
    """
    peak = find_collectives(path, runs[0].record if runs else None)
    if not runs and find_chip(peak["backend"]["peak_lookup_key"]) != chip:
        raise RecordError(f"{path}: was measured on {peak['device']['name']}, expected {chip.name} (--chip)")
    return MeasuredCollectives(peak["collectives"], peak["world_size"])


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
