"""Projection of a large training run from the speed of one device: days, device-hours and energy, with intervals.

A model of a plan under assumptions. Every assumption is a range; the intervals come from Monte Carlo draws of all
assumptions at once. A measurement from records replaces the assumptions about it.

A step takes

    compute + tensor-parallel collectives + pipeline bubble + exposed data-parallel collectives + optimizer

- compute: model FLOPs (`flops`), a third more with full recomputation, over devices x efficiency x peak;
- tensor parallelism: four all-reduces of the activations a layer and micro-batch (Shoeybi et al. 2019), six with
  recomputation, none of them hidden;
- bubble: (stages - 1) / (micro-batches x virtual stages) of the two above (Narayanan et al. 2021);
- data parallelism: an all-reduce of the gradients, or with sharding all-gathers of the weights and a reduce-scatter
  (Rajbhandari et al. 2020), minus what overlaps with compute. Sharded weights are gathered and gradients scattered once
  a step if whole ones leave room for activations; else weights are gathered twice a micro-batch, and gradients
  scattered once;
- collectives: the faster of a ring (Thakur et al. 2005) and of two pipelined trees (Sanders et al. 2009), by bandwidth
  and latency. Traffic between pipeline stages is small and left out;
- optimizer: 28 bytes a parameter through memory. A measured speed already includes the optimizer of its own model,
  which is counted twice.

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
from harness.analysis.projection.plan import DRAWS, Assumptions, Draws, Plan, Range
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


def project(plan: Plan, chip: Chip, speed: Speed | None = None, assumed: Assumptions | None = None) -> Projection:
    """Return the estimates for a plan.

    Args:
        plan: the training.
        chip: of every device: its links, memory and power, and its peak where no speed was measured.
        speed: measured speed of one device; None to estimate it from the catalogue.
        assumed: ranges of all other quantities.

    Raises:
        UserError: the chip lacks the precision or has no known peak or link, or the plan does not fit into its memory.
    """
    assumed = assumed or Assumptions()
    random = np.random.default_rng(SEED)
    _check_fits(plan, chip)
    rate, source = _rate(chip, plan.precision, speed, assumed, random)
    phases = _step_phases(plan, chip, rate, assumed, random)
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
        days=_estimate(whole / 24, known),
        uninterrupted_days=_estimate(hours / 24, known),
        device_hours=_estimate(whole * plan.devices, known),
        megawatt_hours=None if energy is None else _estimate(energy, known),
        mfu=None if peak is None else _estimate(useful / (whole * 3600 * plan.devices * peak), known),
        step_seconds=_estimate(step, known),
        shares={name: float(np.median(each / whole)) for name, each in times.items()},
        source=source,
        unused=_unused(chip, plan.precision, speed),
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


def _unused(chip: Chip, precision: str, speed: Speed | None) -> frozenset[str]:
    found = set()
    if speed is not None:
        found |= {"efficiency_of_products", "product_share_of_peak"}
    elif precision in chip.measured_flops:
        found.add("product_share_of_peak")
    if chip.power_watts is None or (speed is not None and speed.watts is not None):
        found.add("power_share")
    return frozenset(found)


def all_reduce_seconds(count: int, size_bytes: float, bytes_per_second: Draws, latency_seconds: Draws) -> Draws:
    """Return the time of an all-reduce over `count` devices: the faster of a ring and of two trees."""
    if count < 2:
        return np.zeros(np.broadcast(bytes_per_second, latency_seconds).shape)
    ring = 2 * (count - 1) / count * size_bytes / bytes_per_second + 2 * (count - 1) * latency_seconds
    hops = math.ceil(math.log2(count))
    tree = 2 * size_bytes / bytes_per_second + 2 * hops * latency_seconds
    return np.minimum(ring, tree)


def all_gather_seconds(count: int, size_bytes: float, bytes_per_second: Draws, latency_seconds: Draws) -> Draws:
    """Return the time of an all-gather to `size_bytes`, or of a reduce-scatter from them, over `count` devices."""
    if count < 2:
        return np.zeros(np.broadcast(bytes_per_second, latency_seconds).shape)
    return (count - 1) / count * size_bytes / bytes_per_second + math.ceil(math.log2(count)) * latency_seconds


def _check_fits(plan: Plan, chip: Chip) -> None:
    if plan.precision in chip.lacks:
        raise UserError(f"precision: {chip.name} has no {plan.precision} arithmetic; use another --precision")
    if chip.memory_bytes is not None and plan.state_bytes > chip.memory_bytes:
        remedy = "more --tensor or --pipeline" if plan.sharded else "--sharded, or more --tensor or --pipeline"
        raise UserError(
            f"memory: weights, gradients and moments take {plan.state_bytes / 1e9:.3g} GB a device, {chip.name} "
            f"has {chip.memory_bytes / 1e9:.3g} GB; use {remedy}"
        )
    within_node = min(plan.devices, plan.devices_per_node)
    if within_node == 1:
        return
    if chip.link_bytes_per_second is None:
        raise UserError(f"chip: no link bandwidth of {chip.name} is known; give --link-gb-per-s")
    if chip.link_devices is not None and within_node > chip.link_devices:
        raise UserError(
            f"chip: the link of {chip.name} joins {chip.link_devices} devices, but the plan has {within_node} in a "
            "node; give --link-gb-per-s of the link between all of them, or --devices-per-node"
        )


def _rate(
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


def _step_phases(
    plan: Plan, chip: Chip, rate: Draws, assumed: Assumptions, random: np.random.Generator
) -> dict[str, Draws]:
    """Return the seconds of each phase of a step."""
    efficiency, latency = assumed.link_efficiency.draw(random), assumed.latency_seconds.draw(random)
    link = efficiency * (chip.link_bytes_per_second or math.inf)
    network = efficiency * plan.network_bytes_per_second
    across = network if plan.devices > plan.devices_per_node else link
    flops = plan.flops_per_token * plan.global_batch_size * plan.seq_len
    compute = flops * (FULL_RECOMPUTATION if plan.recompute else 1.0) / (plan.devices * rate)
    tensor = np.zeros(DRAWS)
    if plan.tensor > 1:
        assert plan.layers is not None
        assert plan.width is not None
        size = plan.micro_batch_size * plan.seq_len * plan.width * plan.number_bytes
        bandwidth = link if plan.tensor <= plan.devices_per_node else network
        count = plan.micro_batches * plan.layers / plan.pipeline * (6 if plan.recompute else 4)
        tensor = count * all_reduce_seconds(plan.tensor, size, bandwidth, latency)
    bubble = (plan.pipeline - 1) / (plan.micro_batches * plan.virtual_stages) * (compute + tensor)
    copy_bytes = plan.number_bytes * plan.parameters_per_copy
    if plan.sharded:
        gather_or_scatter = all_gather_seconds(plan.data, copy_bytes, across, latency)
        data = (2 if plan.keeps_weights_gathered(chip) else 3 * plan.micro_batches) * gather_or_scatter
    else:
        data = all_reduce_seconds(plan.data, copy_bytes, across, latency)
    owned = plan.parameters_per_copy / (plan.data if plan.sharded else 1)
    memory = chip.memory_bytes_per_second or math.inf
    return {
        "compute": compute,
        "tensor-parallel collectives": tensor,
        "pipeline bubble": bubble,
        "data-parallel collectives": np.maximum(data - assumed.hiding_compute.draw(random) * compute, 0.0),
        "optimizer": np.full(DRAWS, OPTIMIZER_BYTES_PER_PARAMETER * owned / memory),
    }


def _estimate(values: Draws, with_interval: bool) -> Estimate:
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
