"""`python -m harness plan`: shows without any device what each rank of a run would hold, and whether that fits."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace

from harness import backends
from harness.analysis.stage_memory import GIB, RunPlan
from harness.commands.arguments import Parser
from harness.composition import load
from harness.config import RANDOM, BackendConfig, Config, turns_unit
from harness.errors import ExitCode, UserError, config_error
from harness.layout import Layout, layout_of
from harness.validation import check_layout

FORMATS = ("table", "json")
MAX_DEVICES = 1 << 20
MAX_MEMORY_GIB = 1 << 20


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "plan",
        "Builds the model as one rank of each pipeline stage would and takes a training step, on a process group and "
        "tensors that are fake: shapes alone, so that a rank of thousands takes seconds and no device. Prints "
        "parameters, gradients, optimizer state, activations and peak of each stage's largest rank, for track=portable "
        "with fused attention.",
        "0 the run fits, 1 it does not, 2 bad usage or settings, or an impossible layout, 5 a process of the planning "
        "was killed",
        usage="%(prog)s --devices M --memory-gib G [options] [key=value ...]",
    )
    add = parser.add_argument
    add("--devices", metavar="M", type=_count, help="number of devices, one process each")
    add("--memory-gib", metavar="G", type=_gibibytes, help="memory of a device in 2^30 bytes, such as 80")
    add("--format", choices=FORMATS, default="table", help="output format (default: table)")
    add("overrides", nargs="*", metavar="key=value", help="settings, as on the command line of a run")
    return parser


def main(argv: list[str]) -> int:
    """Plan, print, and return the exit code."""
    options = build_parser().parse(argv)
    for name in ("devices", "memory_gib"):
        if getattr(options, name) is None:
            raise UserError(f"plan: --{name.replace('_', '-')} is missing; python -m harness plan --help")
    config = load(options.overrides)
    _check(config)
    plan = _plan(config, options.devices, int(options.memory_gib * GIB))
    # Imported here: only the screen needs rich.
    from harness.report.plan_table import plan_to_dict, print_plan

    if options.format == "json":
        print(json.dumps(plan_to_dict(plan), indent=1))
    else:
        print_plan(plan)
    return ExitCode.OK if plan.fits else ExitCode.NOT_AS_EXPECTED


def _plan(config: Config, devices: int, device_bytes: int) -> RunPlan:
    """Return the plan of a run.

    Raises:
        ConfigError: the layout is impossible.
    """
    began = time.perf_counter()
    layout = layout_of(config.parallel, devices)
    check_layout(config, layout)
    config = _with_equal_loads(config, layout)
    # Imported here, because it imports torch: only once the settings are right.
    from harness.training.distributed.plan import micro_batches_of, plan_stages
    from harness.workload.model import recomputes

    # The host's CPU has no memory of its own to fit: its fake tensors stand for those of any device.
    stages, host_bytes = plan_stages(replace(config, init=RANDOM), backends.create(BackendConfig(name="cpu")), layout)
    return RunPlan(
        model=config.model.name,
        layout=str(layout),
        devices=devices,
        precision=config.precision,
        micro_batches=micro_batches_of(config, layout),
        micro_batch_size=config.workload.micro_batch_size,
        seq_len=config.workload.seq_len,
        recomputed_blocks=sum(recomputes(config.model, number) for number in range(config.model.num_hidden_layers)),
        device_bytes=device_bytes,
        stages=tuple(stages),
        seconds=time.perf_counter() - began,
        host_bytes=host_bytes,
    )


def _with_equal_loads(config: Config, layout: Layout) -> Config:
    """Return the config with experts that take turns: what a router learns, and so its memory, is not known before.

    A sequence that does not have equally many turns for all is planned a little longer.
    """
    model, work = config.model, config.workload
    if model.num_experts is None:
        return config
    unit = math.lcm(turns_unit(model) * layout.context, layout.context * layout.tensor)
    length = -(-work.seq_len // unit) * unit
    return replace(
        config,
        model=replace(model, routing="round_robin", max_position_embeddings=max(length, model.max_position_embeddings)),
        workload=replace(work, seq_len=length),
    )


def _check(config: Config) -> None:
    """Check for settings whose memory depends on the device.

    Raises:
        ConfigError: naming them.
    """
    problems = []
    if config.track.name != "portable":
        problems.append(f"track: found {config.track.name}, whose memory depends on the device; plan track=portable")
    if config.parallel.cpu_offload:
        problems.append("parallel.cpu_offload: found true, but plan counts device memory alone; leave it false")
    for key in ("autotune", "autotuned"):
        if getattr(config, key):
            problems.append(f"{key}: found true, but plan needs one micro-batch size; leave it false")
    if problems:
        raise config_error(problems)


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) <= len(str(MAX_DEVICES)) else 0
    if not 1 <= value <= MAX_DEVICES:
        raise argparse.ArgumentTypeError(f"found {text[:20]!r}, expected a whole number from 1 to {MAX_DEVICES:,}")
    return value


def _gibibytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MAX_MEMORY_GIB:
        raise argparse.ArgumentTypeError(f"found {text[:20]!r}, expected a number of GiB above 0, such as 80")
    return value
