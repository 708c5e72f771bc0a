"""Projection of a large training run from the speed of one device: days, device-hours and energy, with intervals.

A model of a plan under assumptions. Every assumption is a range; the intervals come from Monte Carlo draws of all
assumptions at once. A measurement from records replaces the assumptions about it.

A step takes

    compute + collectives of tensor and context parallelism + transfers of the pipeline + its bubble
    + exposed collectives of weights and gradients + optimizer

- compute: model FLOPs (`flops`), a third more with full recomputation, over devices x efficiency x peak;
- collectives: `exchanges.py` says which a layout has. Those of weights and gradients are hidden by a share of the
  compute, the others are not. Sharded weights are gathered and gradients scattered once a step if whole ones leave
  room for activations; else weights twice and gradients once for each micro-batch;
- their seconds: measured (`links.py`), else the faster of a ring (Thakur et al. 2005) and of two pipelined trees
  (Sanders et al. 2009), by bandwidth and latency;
- bubble: (stages - 1) / (micro-batches x virtual stages) of all before it (Narayanan et al. 2021);
- optimizer: 28 bytes a parameter through memory. A measured speed is without that of its own model, where the memory's
  bandwidth is known.

Checkpoints and interruptions come on top. An interruption costs a restart and half the time between two checkpoints,
for which the optimum of Young (1974) is taken: sqrt(2 x time of a checkpoint x time between interruptions).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.analysis.chips import Chip
from harness.analysis.projection.assumptions import DRAWS, Assumptions, Draws, Range
from harness.analysis.projection.exchanges import HIDDEN_AXES, exchanges_of
from harness.analysis.projection.links import EstimatedLinks, Links, MeasuredCollectives, MeasuredLinks
from harness.analysis.projection.plan import Plan
from harness.errors import UserError

MAX_TIME_LOST = 0.95
SEED = 1
INTERVAL = (5.0, 50.0, 95.0)
# The optimizer reads gradient, weight and two moments, and writes the last three: 7 x 4 bytes in fp32. With 16-bit
# gradients and weights beside fp32 master weights it is the same: 2 + 12 + 12 + 2.
OPTIMIZER_BYTES_PER_PARAMETER = 28
# Limit of a drawn logarithm: far outside every interval, and below an overflow of exp.
MAX_DEVIATION = 50.0
FULL_RECOMPUTATION = 4 / 3
AXES = {"tensor": "tensor-parallel collectives", "context": "context-parallel collectives",
        "pipeline": "pipeline transfers", "shard": "collectives of sharded weights",
        "data": "data-parallel collectives"}  # fmt: skip
"""Name of the phase of each axis's collectives."""
BUBBLE = "pipeline bubble"
# Below every time, to divide by.
MIN_SECONDS = 1e-12


@dataclass(frozen=True)
class Speed:
    """Measured FLOP/s of one device by itself."""

    flops: tuple[float, ...]
    """One value for each process, which counts recomputed activations as work."""
    source: str
    watts: float | None = None
    """Mean power of the device in those runs; None where it was not measured."""


@dataclass(frozen=True)
class Estimate:
    """Median and 90 % interval of a quantity; the ends are None where run-to-run variance is unknown."""

    low: float | None
    median: float
    high: float | None


@dataclass(frozen=True)
class Projection:
    """Estimated time, energy and MFU of a plan."""

    days: Estimate
    uninterrupted_days: Estimate
    """Of the steps alone, without checkpoints and interruptions."""
    device_hours: Estimate
    megawatt_hours: Estimate | None
    """Of the devices without hosts, network and cooling; None where their power is unknown."""
    mfu: Estimate | None
    """Of the whole training with interruptions; None where the peak is unknown."""
    step_seconds: Estimate
    shares: Mapping[str, float] = field(default_factory=dict)
    """Median share of the whole time, by phase."""
    source: str = ""
    unused: frozenset[str] = frozenset()
    """Assumptions without an effect: their quantity was measured or is unknown."""


def project(
    plan: Plan,
    chip: Chip,
    speed: Speed | None = None,
    assumed: Assumptions | None = None,
    measured: MeasuredCollectives | None = None,
) -> Projection:
    """Return the estimates for a plan.

    Args:
        plan: the training.
        chip: of every device: its links, memory and power, and its peak where no speed was measured.
        speed: measured speed of one device; None to estimate it from the catalogue.
        assumed: ranges of all other quantities.
        measured: collectives of a peak record; None to estimate all from the bandwidth of links.

    Raises:
        UserError: the chip lacks the precision or has no known peak or link, or the plan does not fit into its memory.
    """
    assumed = assumed or Assumptions()
    random = np.random.default_rng(SEED)
    _check_fits(plan, chip, links_needed=measured is None)
    rate, source = device_rate(chip, plan.precision, speed, assumed, random)
    links = _links(plan, chip, assumed, random, measured)
    phases = step_phases(plan, chip, rate, links, assumed, random)
    step = np.sum(list(phases.values()), axis=0)
    hours = step * plan.steps / 3600
    whole, saving = _with_interruptions(plan, hours, assumed, random)
    times = {**{name: seconds * plan.steps / 3600 for name, seconds in phases.items()}, "checkpoints": saving,
             "interruptions": whole - hours - saving}  # fmt: skip
    peak = chip.peak_flops.get(plan.precision)
    useful = plan.flops_per_token * plan.tokens
    energy = None
    if speed is not None and speed.watts is not None:
        energy = whole * plan.devices * speed.watts / 1e6
    elif chip.power_watts is not None:
        energy = whole * plan.devices * chip.power_watts * assumed.power_share.draw(random) / 1e6
    # The assumptions alone would give an interval from one run, without the variance between runs.
    known = speed is None or len(speed.flops) > 1
    return Projection(
        days=estimate(whole / 24, known),
        uninterrupted_days=estimate(hours / 24, known),
        device_hours=estimate(whole * plan.devices, known),
        megawatt_hours=None if energy is None else estimate(energy, known),
        mfu=None if peak is None else estimate(useful / (whole * 3600 * plan.devices * peak), known),
        step_seconds=estimate(step, known),
        shares={name: float(np.median(each / whole)) for name, each in times.items()},
        source=source,
        unused=_unused(plan, chip, speed, links),
    )


def _with_interruptions(
    plan: Plan, hours: Draws, assumed: Assumptions, random: np.random.Generator
) -> tuple[Draws, Draws]:
    """Return the hours of the whole training, and of them those of checkpoints."""
    checkpoint = assumed.checkpoint_seconds.draw(random) / 3600
    per_hour = plan.devices / assumed.device_hours_between_interruptions.draw(random)
    between = np.sqrt(2 * checkpoint / per_hour)
    saving = hours * checkpoint / between
    each = assumed.restart_hours.draw(random) + between / 2
    # Lost time is trained again, and can be lost again.
    lost_share = np.minimum(per_hour * each, MAX_TIME_LOST)
    if np.median(lost_share) >= MAX_TIME_LOST:
        raise UserError(
            f"devices: {plan.devices:,} make no progress between interruptions, one in "
            f"{assumed.device_hours_between_interruptions.likely:,.0f} device-hours; use fewer, or --assume others"
        )
    return (hours + saving) / (1 - lost_share), saving


def _unused(plan: Plan, chip: Chip, speed: Speed | None, links: Links) -> frozenset[str]:
    found, precision = set(), plan.precision
    exchanges = exchanges_of(plan, plan.regathers_weights(chip))
    if exchanges and all(links.covers(exchange) for exchange in exchanges):
        found |= {"link_efficiency", "latency_seconds"}
    if speed is not None:
        found |= {"efficiency_of_products", "product_share_of_peak"}
    elif precision in chip.measured_flops:
        found.add("product_share_of_peak")
    if chip.power_watts is None or (speed is not None and speed.watts is not None):
        found.add("power_share")
    return frozenset(found)


def _check_fits(plan: Plan, chip: Chip, *, links_needed: bool) -> None:
    if plan.precision in chip.lacks:
        raise UserError(f"precision: {chip.name} has no {plan.precision} arithmetic; use another --precision")
    if chip.memory_bytes is not None and plan.state_bytes > chip.memory_bytes:
        remedy = "more --tensor or --pipeline" if plan.sharded else "--sharded, or more --tensor or --pipeline"
        raise UserError(
            f"memory: weights, gradients and moments take {plan.state_bytes / 1e9:.3g} GB a device, {chip.name} "
            f"has {chip.memory_bytes / 1e9:.3g} GB; use {remedy}"
        )
    within_node = min(plan.devices, plan.devices_per_node)
    if within_node == 1 or not links_needed:
        return
    if chip.link_bytes_per_second is None:
        raise UserError(f"chip: no link bandwidth of {chip.name} is known; give --link-gb-per-s")
    if chip.link_devices is not None and within_node > chip.link_devices:
        raise UserError(
            f"chip: the link of {chip.name} joins {chip.link_devices} devices, but the plan has {within_node} in a "
            "node; give --link-gb-per-s of the link between all of them, or --devices-per-node"
        )


def device_rate(
    chip: Chip, precision: str, speed: Speed | None, assumed: Assumptions, random: np.random.Generator
) -> tuple[Draws, str]:
    """Return the FLOP/s of one device by itself, and their source.

    From n measured runs: the prediction interval of a normal sample on the log scale, which is the mean plus
    Student's t with n - 1 degrees of freedom times s sqrt(1 + 1/n).
    """
    peak = chip.peak_flops.get(precision)
    if speed is not None:
        logarithms = np.log(speed.flops)
        mean, count = float(np.mean(logarithms)), len(logarithms)
        if count == 1:
            return np.full(DRAWS, math.exp(mean)), speed.source
        spread = float(np.std(logarithms, ddof=1)) * math.sqrt(1 + 1 / count)
        deviation = spread * random.standard_t(count - 1, DRAWS)
        drawn = np.exp(mean + np.clip(deviation, -MAX_DEVIATION, MAX_DEVIATION))
        # No run is faster than the chip, however much the measured ones vary.
        return drawn if peak is None else np.minimum(drawn, peak), speed.source
    if peak is None:
        raise UserError(f"chip: no {precision} peak of {chip.name} is known; give --records of runs on that chip")
    product = chip.measured_flops.get(precision)
    best = np.full(DRAWS, product) if product is not None else peak * assumed.product_share_of_peak.draw(random)
    basis = "a measured matrix product" if product is not None else "an assumed share of its peak"
    source = f"catalogue (grade {chip.confidence}), not measured: {basis} and an assumed efficiency"
    return best * assumed.efficiency_of_products.draw(random), source


def _links(
    plan: Plan, chip: Chip, assumed: Assumptions, random: np.random.Generator, measured: MeasuredCollectives | None
) -> Links:
    efficiency, latency = assumed.link_efficiency.draw(random), assumed.latency_seconds.draw(random)
    link, network = chip.link_bytes_per_second or math.inf, plan.network_bytes_per_second
    estimated = EstimatedLinks(efficiency * link, efficiency * network, latency, plan.devices_per_node)
    if measured is None:
        return estimated
    return MeasuredLinks(measured, plan.devices_per_node, estimated)


def step_phases(
    plan: Plan, chip: Chip, rate: Draws, links: Links, assumed: Assumptions, random: np.random.Generator
) -> dict[str, Draws]:
    """Return the seconds of each phase of a step.

    Args:
        rate: FLOP/s of one device by itself.
    """
    flops = plan.flops_per_token * plan.global_batch_size * plan.seq_len
    recomputed = 1 + (FULL_RECOMPUTATION - 1) * plan.recompute
    compute = flops * recomputed / (plan.devices * rate) * plan.longest_rank
    by_axis: dict[str, Draws] = {}
    for exchange in exchanges_of(plan, plan.regathers_weights(chip)):
        seconds = exchange.count * links.seconds(exchange)
        by_axis[exchange.axis] = by_axis.get(exchange.axis, np.zeros(DRAWS)) + seconds
    found = {"compute": compute, **{AXES[axis]: each for axis, each in by_axis.items() if axis not in HIDDEN_AXES}}
    if plan.pipeline > 1:
        share = (plan.pipeline - 1) / (plan.micro_batches * plan.virtual_stages)
        found[BUBBLE] = share * np.sum(list(found.values()), axis=0)
    hiding = assumed.hiding_compute.draw(random) * compute if plan.engine.overlaps else np.zeros(DRAWS)
    weights = {axis: by_axis[axis] for axis in HIDDEN_AXES if axis in by_axis}
    whole = np.sum(list(weights.values()), axis=0)
    for axis, seconds in weights.items():
        # What is hidden is shared by the axes as their collectives are.
        found[AXES[axis]] = seconds * np.maximum(1 - hiding / np.maximum(whole, MIN_SECONDS), 0.0)
    owned = plan.parameters_per_copy / plan.shards
    memory = chip.memory_bytes_per_second or math.inf
    return {**found, "optimizer": np.full(DRAWS, OPTIMIZER_BYTES_PER_PARAMETER * owned / memory)}


def estimate(values: Draws, with_interval: bool) -> Estimate:
    low, median, high = (float(value) for value in np.percentile(values, INTERVAL))
    return Estimate(low, median, high) if with_interval else Estimate(None, median, None)


def assumptions_of(projection: Projection, assumed: Assumptions) -> dict[str, Range]:
    """Return every assumption with an effect, by its name."""
    return {name: found for name, found in vars(assumed).items() if name not in projection.unused}


def to_dict(projection: Projection) -> dict[str, Any]:
    """Return the projection as JSON values."""
    values: dict[str, Any] = {"source": projection.source, "shares": dict(projection.shares)}
    for name in ("days", "uninterrupted_days", "device_hours", "megawatt_hours", "mfu", "step_seconds"):
        found: Estimate | None = getattr(projection, name)
        values[name] = None if found is None else {"low": found.low, "median": found.median, "high": found.high}
    return values
