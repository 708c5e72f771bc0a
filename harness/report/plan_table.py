"""Terminal table of `plan`: what each stage's largest rank would hold, and whether it fits; 100 columns wide."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from harness.analysis.stage_memory import GIB, RunPlan, StageMemory
from harness.report.console import WIDTH, PlainConsole, key_value_table
from harness.text import counted

# Heading, and the field of a StageMemory in bytes.
COLUMNS = {
    "weights": "weight_bytes",
    "gradients": "gradient_bytes",
    "moments": "moment_bytes",
    "activations": "activation_bytes",
    "other": "other_bytes",
    "peak": "peak_bytes",
}
NOTE = (
    "Of each stage's largest rank. activations: kept for the backward passes of all micro-batches in flight. other: "
    "gathered weights, gradients before they are summed, buffers, temporary tensors. Not counted: the driver's "
    "context, the collectives' own buffers, fragmentation."
)


def print_plan(plan: RunPlan) -> None:
    """Print the run, a row for each stage, and the verdict."""
    console = PlainConsole(WIDTH)
    batches = counted(plan.micro_batches, "micro-batch", "micro-batches")
    rows = [
        ("model", f"{plan.model}, {plan.precision}, {_recomputation(plan)}"),
        ("layout", f"{plan.layout}, on {counted(plan.devices, 'device')} of {plan.device_bytes / GIB:g} GiB"),
        ("step", f"{batches} of {plan.micro_batch_size} x {plan.seq_len:,} tokens on each device"),
    ]
    console.print(key_value_table(rows))
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "blocks", "parameters", "in flight"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in plan.stages:
        sizes = [f"{getattr(stage, field) / GIB:,.2f}" for field in COLUMNS.values()]
        table.add_row(str(stage.stage), str(stage.blocks), f"{stage.parameters:,}", str(stage.in_flight), *sizes)
    console.print(table)
    console.print(Text(f"\nGiB. {NOTE}\n"))
    console.print(Text(verdict(plan)))
    console.print(Text(f"Planned in {plan.seconds:.0f} s, with {plan.host_bytes / GIB:.1f} GiB of host memory."))


def _recomputation(plan: RunPlan) -> str:
    blocks = sum(stage.blocks for stage in plan.stages)
    if plan.recomputed_blocks in (0, blocks):
        return f"{'recomputing' if plan.recomputed_blocks else 'keeping all'} activations"
    return f"recomputing activations of {plan.recomputed_blocks} of {blocks} blocks"


def verdict(plan: RunPlan) -> str:
    """Return in a sentence whether the plan fits."""
    stage, free = plan.largest_stage, plan.free_bytes / GIB
    needs = f"stage {stage.stage} needs {stage.peak_bytes / GIB:,.1f} of {plan.device_bytes / GIB:,.1f} GiB"
    return (
        f"Fits: {needs}, {free:,.1f} GiB are left."
        if plan.fits
        else f"Does not fit: {needs}, {-free:,.1f} GiB too much."
    )


def plan_to_dict(plan: RunPlan) -> dict[str, Any]:
    """Return a plan as JSON values."""
    return {
        **asdict(plan),
        "stages": [_stage_to_dict(stage) for stage in plan.stages],
        "largest_stage": plan.largest_stage.stage,
        "free_bytes": plan.free_bytes,
        "fits": plan.fits,
    }


def _stage_to_dict(stage: StageMemory) -> dict[str, Any]:
    return {**asdict(stage), **{field: getattr(stage, field) for field in COLUMNS.values()}}
