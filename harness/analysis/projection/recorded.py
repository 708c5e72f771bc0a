"""Check of the layout model against a recorded run: its step time predicted in its own layout, beside the measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.analysis.chips import Chip, find_chip
from harness.analysis.flops import training_flops_per_token
from harness.analysis.projection.assumptions import Assumptions, Draws, Range
from harness.analysis.projection.exchanges import HIDDEN_AXES, exchanges_of
from harness.analysis.projection.links import MeasuredCollectives, MeasuredLinks
from harness.analysis.projection.measured_speed import measured_speed, recomputed_share, unknown_chip
from harness.analysis.projection.model import AXES, BUBBLE, SEED, Estimate, Speed, device_rate, estimate, step_phases
from harness.analysis.projection.plan import NUMBER_BYTES, Engine, Plan
from harness.analysis.stages import longest_rank
from harness.config import product_format
from harness.errors import RecordError
from harness.records.load import LoadedRecord, get_path

COMPUTE = ("compute", "optimizer")
# Of float32, in which gradients and outer weights are in every precision, and the residual stream with autocast.
FULL_BYTES = NUMBER_BYTES["fp32"]


@dataclass(frozen=True)
class Part:
    """A part of the step, in seconds, predicted and measured."""

    name: str
    predicted: Estimate
    measured: float | None
    """Mean over the ranks; None where the record does not have it."""


@dataclass(frozen=True)
class Payload:
    """Bytes that a rank hands to the collectives of an axis, in a step."""

    axis: str
    predicted: float
    measured: float | None
    """Of the rank with the most."""


@dataclass(frozen=True)
class RunCheck:
    """A recorded run and the prediction of its step time."""

    layout: dict[str, int]
    """Axes with more than one part."""
    speed_source: str
    assumptions: Mapping[str, Range]
    """Those that the prediction rests on."""
    step: Part
    parts: tuple[Part, ...]
    payloads: tuple[Payload, ...]

    @property
    def ratio(self) -> Estimate:
        """Predicted over measured step time."""
        measured, found = self.step.measured, self.step.predicted
        assert measured is not None
        low, high = (None if end is None else end / measured for end in (found.low, found.high))
        return Estimate(low, found.median / measured, high)


def check_recorded(run: LoadedRecord) -> None:
    """Raise RecordError, with the remedy, unless a run's record has what the check needs, a peak record apart."""
    record = run.record
    status, layout = record["status"], get_path(record, "parallel", "layout")
    problem = None
    if status != "ok":
        problem = f"the run ended {status}, and has no step time to check; give a run that ended ok"
    elif get_path(record, "device", "emulated"):
        problem = "its device is emulated, and has no step time to check; give a run on a real one"
    elif record["world_size"] == 1:
        problem = (
            "it ran on one device, so that there is no layout to check; give a run of several, started by python -m "
            "harness torchrun (as --records, this one serves to predict such a run)"
        )
    elif layout is None:
        problem = "has no parallel.layout: it is of an earlier version of the harness; run it again"
    elif math.prod(layout.values()) != record["world_size"]:
        problem = f"has a parallel.layout of {math.prod(layout.values())} ranks, and {record['world_size']} ranks"
    if problem is not None:
        raise RecordError(f"{run.path}: {problem}")


def check_run(
    run: LoadedRecord,
    peak: Mapping[str, Any],
    alone: tuple[LoadedRecord, ...] = (),
    assumed: Assumptions | None = None,
) -> RunCheck:
    """Predict the step of a recorded run, and return it beside what was measured.

    Args:
        run: one that passed `check_recorded`.
        peak: the peak record of the same device and number of ranks.
        alone: runs on one of the devices, for its speed; none: matrix products of the peak and an assumed efficiency.

    Raises:
        RecordError: the peak lacks a collective or precision of the run, or `alone` are no such runs.
    """
    record, random = run.record, np.random.default_rng(SEED)
    assumed = assumed or Assumptions()
    plan = plan_of_run(record, asynchronous=peak["collectives"]["asynchronous"])
    chip, speed = _chip_and_speed(record, peak, alone)
    rate, source = device_rate(chip, plan.precision, speed, assumed, random)
    measured = MeasuredCollectives(peak["collectives"], peak["world_size"])
    links = MeasuredLinks(measured, plan.devices_per_node)
    _check_collectives(plan, chip, links)
    phases = step_phases(plan, chip, rate, links, assumed, random)
    known = speed is None or len(speed.flops) > 1
    if speed is None:
        source = "matrix products of the peak record, and an assumed efficiency"
    return RunCheck(
        layout={axis: size for axis, size in record["parallel"]["layout"].items() if size > 1},
        speed_source=source,
        assumptions={name: getattr(assumed, name) for name in _used(plan, phases, speed)},
        step=Part("step", estimate(_sum(phases), known), record["timing"]["mean_step_seconds"]),
        parts=_parts(phases, record, known),
        payloads=_payloads(plan, chip, record),
    )


def plan_of_run(record: Mapping[str, Any], *, asynchronous: bool) -> Plan:
    """Return a recorded run as a plan of one step, with the collectives of this harness's engine.

    Args:
        asynchronous: whether the device queues its work.
    """
    config, layout = record["config"], record["parallel"]["layout"]
    model, work, parallel = config["model"], config["workload"], config["parallel"]
    axes = {axis: layout.get(axis, 1) for axis in AXES}
    stages, heads = axes["pipeline"], model["num_attention_heads"]
    virtual_stages = parallel.get("pipeline_virtual_stages", 1)
    key_values = model["num_key_value_heads"] or heads
    # Heads that the parts of a sequence do not divide are repeated.
    share = key_values / heads if (key_values / axes["tensor"]) % axes["context"] == 0 else 1.0
    is_ddp = record["world_size"] == axes["data"] and parallel["name"] != "fsdp"
    return Plan(
        parameters=record["model"]["parameters"],
        tokens=work["global_batch_size"] * work["seq_len"],
        flops_per_token=training_flops_per_token(model, work["seq_len"]),
        devices=record["world_size"],
        seq_len=work["seq_len"],
        global_batch_size=work["global_batch_size"],
        precision=product_format(config["precision"]),
        layers=model["num_hidden_layers"],
        width=model["hidden_size"],
        micro_batch_size=work["micro_batch_size"],
        tensor=axes["tensor"],
        context=axes["context"],
        pipeline=stages,
        sharded=axes["shard"] * axes["context"] > 1,
        replicas=axes["data"],
        recompute=recomputed_share(record),
        devices_per_node=record["world_size"],
        engine=Engine(
            stream_bytes=None if config["precision"] == "bf16_weights" else FULL_BYTES,
            gradient_bytes=FULL_BYTES,
            gathered_bytes=None if parallel.get("low_precision_all_gather", True) else FULL_BYTES,
            outer_bytes=FULL_BYTES,
            regathers=stages == 1,
            scatters_each_micro_batch=False,
            # FSDP's collectives block a device that does not queue; DDP's have a thread of their own.
            overlaps=asynchronous or is_ddp,
        ),
        vocabulary_parameters=model["vocab_size"] * model["hidden_size"],
        tie_word_embeddings=model.get("tie_word_embeddings", True),
        key_value_share=share,
        virtual_stages=virtual_stages,
        longest_rank=longest_rank(model, work["seq_len"], stages, virtual_stages, parallel.get("pipeline_blocks")),
    )


def _used(plan: Plan, phases: Mapping[str, Draws], speed: Speed | None) -> list[str]:
    """Return the names of the assumptions that take part."""
    hides = plan.engine.overlaps and any(AXES[axis] in phases for axis in HIDDEN_AXES)
    return ["efficiency_of_products"] * (speed is None) + ["hiding_compute"] * hides


def _chip_and_speed(
    record: Mapping[str, Any], peak: Mapping[str, Any], alone: tuple[LoadedRecord, ...]
) -> tuple[Chip, Speed | None]:
    """Return the run's chip with what the peak record has measured, and the speed of runs on one device."""
    precision = product_format(record["config"]["precision"])
    memory = peak["memory"]["best_bytes_per_second"]
    name = record["device"]["name"] or record["device"]["kind"]
    if alone:
        chip, speed = measured_speed(alone, precision, memory)
        if alone[0].record["device"]["name"] != record["device"]["name"]:
            raise RecordError(
                f"{alone[0].path}: it ran on {alone[0].record['device']['name']}, the run to check on {name}; give "
                "runs on one of the same devices"
            )
        return replace(chip, memory_bytes_per_second=memory), speed
    products = peak["matrix_products"].get(precision)
    if products is None:
        raise RecordError(
            f"the peak record has no matrix products in {precision}, from which compute is predicted; give --records "
            "of a run on one device"
        )
    flops = {precision: products["best_flops"]}
    chip = find_chip(get_path(record, "backend", "peak_lookup_key")) or unknown_chip(name)
    return replace(chip, peak_flops=flops, measured_flops=flops, memory_bytes_per_second=memory), None


def _check_collectives(plan: Plan, chip: Chip, links: MeasuredLinks) -> None:
    for exchange in exchanges_of(plan, plan.regathers_weights(chip)):
        if (problem := links.problem(exchange)) is not None:
            name = exchange.collective.replace("_", "-")
            raise RecordError(
                f"the peak record has no {name} that parallel.{exchange.axis} needs: it {problem}; measure again with "
                "a higher peak_collective_seconds, or check a run of another layout"
            )


def _sum(phases: Mapping[str, Draws]) -> Draws:
    return np.sum(list(phases.values()), axis=0)


def _parts(phases: Mapping[str, Draws], record: Mapping[str, Any], known: bool) -> tuple[Part, ...]:
    """Return compute, and the exposed communication of each axis; a pipeline's includes the bubble."""
    step = record["timing"]["mean_step_seconds"]
    exposed = _mean(record, "exposed_communication_seconds")
    own = {name: phases[name] for name in COMPUTE if name in phases}
    rest = {name: seconds for name, seconds in phases.items() if name not in own}
    parts = [Part("compute and optimizer", estimate(_sum(own), known), None if exposed is None else step - exposed)]
    if rest:
        parts.append(Part("exposed communication", estimate(_sum(rest), known), exposed))
    only = sum(name in phases for name in AXES.values()) == 1
    for axis, name in AXES.items():
        if name in phases:
            seconds = _axis_seconds(record, axis, only=only)
            parts.append(Part(f"  {axis}", estimate(phases[name], known), seconds))
        if axis == "pipeline" and BUBBLE in phases:
            both = phases[name] + phases[BUBBLE]
            parts[-1] = Part("  pipeline, with its bubble", estimate(both, known), parts[-1].measured)
            parts.append(Part("    its bubble", estimate(phases[BUBBLE], known), None))
    return tuple(parts)


def _mean(record: Mapping[str, Any], *keys: str) -> float | None:
    """Return the mean over the ranks of a value that each has; None where one has not."""
    values = [get_path(rank, *keys) for rank in record["parallel"]["ranks"]]
    return statistics.fmean(values) if values and None not in values else None


def _axis_seconds(record: Mapping[str, Any], axis: str, *, only: bool) -> float | None:
    found = _mean(record, "axes", axis, "exposed_communication_seconds")
    if found is None and only and not _has_axes(record):
        return _mean(record, "exposed_communication_seconds")
    return found


def _has_axes(record: Mapping[str, Any]) -> bool:
    """Return whether the record tells the axes apart; else the totals of a run with one axis are that axis's."""
    return any(get_path(rank, "axes") for rank in record["parallel"]["ranks"])


def _payloads(plan: Plan, chip: Chip, record: Mapping[str, Any]) -> tuple[Payload, ...]:
    predicted: dict[str, float] = {}
    for exchange in exchanges_of(plan, plan.regathers_weights(chip)):
        predicted[exchange.axis] = predicted.get(exchange.axis, 0.0) + exchange.payload_bytes
    found = []
    for axis in (axis for axis in AXES if axis in predicted):
        values: list[Any] = [
            get_path(rank, "axes", axis, "payload_bytes_per_step") for rank in record["parallel"]["ranks"]
        ]
        if len(predicted) == 1 and not _has_axes(record):
            # Layouts whose collectives were not metered have a total of 0.
            values = [get_path(rank, "payload_bytes_per_step") or None for rank in record["parallel"]["ranks"]]
        found.append(Payload(axis, predicted[axis], max(values) if values and None not in values else None))
    return tuple(found)
