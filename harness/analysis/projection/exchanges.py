"""Collectives of a training step in a layout: which, between how many devices, of what size, and how often.

Each axis of parallelism has its own. Per block, micro-batch and pass:

- tensor, with sequences cut too: the inputs of attention and feed-forward are gathered, their outputs are reduced and
  scattered, and in the backward pass the other way round (Shoeybi et al. 2019, Korthikanti et al. 2022): together the
  traffic of four all-reduces. Embedding and output projection add one gather and one scatter each, a micro-batch.
- context: queries, keys, values and attention's output are traded for heads (Jacobs et al. 2023, DeepSpeed-Ulysses).

Per step:

- shard: weights are gathered before use, gradients are reduced and scattered (Rajbhandari et al. 2020); once, or for
  each micro-batch where whole weights do not fit.
- data: gradients, or shards of them, are all-reduced.
- pipeline: activations of each micro-batch go to the next stage, and gradients back. With tied embeddings, first and
  last stage add up their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.analysis.projection.plan import Plan

HIDDEN_AXES = ("shard", "data")
"""Their collectives can overlap with the compute of other layers."""


@dataclass(frozen=True)
class Exchange:
    """A collective that a device repeats in every step."""

    axis: str
    collective: str
    """One of records.peak.COLLECTIVES."""
    ranks: int
    message_bytes: float
    """As nccl-tests counts: what a device has before a reduce-scatter or after an all-gather."""
    count: float
    """In a step."""
    span: int
    """Devices from the first to the last of the group, in the order in which they are numbered."""
    sent_share: float = 1.0
    """Of the messages, what a device sends itself."""

    @property
    def payload_bytes(self) -> float:
        """Bytes that a device puts in, in a step."""
        own = self.message_bytes
        if self.collective == "all_gather":
            own /= self.ranks
        return own * self.count * self.sent_share


def exchanges_of(plan: Plan, regathers: bool) -> list[Exchange]:
    """Return the collectives of a step on the device that has the most.

    Args:
        regathers: whether sharded weights are gathered again for each micro-batch.
    """
    found = [*_tensor(plan), *_context(plan), *_weights(plan, regathers), *_pipeline(plan)]
    return [each for each in found if each.ranks > 1]


def _tensor(plan: Plan) -> Iterator[Exchange]:
    positions = plan.positions * (plan.width or 0)
    stream, products = positions * plan.stream_bytes, positions * plan.number_bytes
    each = 2 * plan.micro_batches * (plan.layers or 0) / plan.pipeline
    # Embedding and output projection are on two stages, if there are several.
    outside = plan.micro_batches * (1 if plan.pipeline > 1 else 2)
    forward = 1 + plan.recompute
    for collective, size, count in (
        ("all_gather", stream, forward * each + outside),
        ("reduce_scatter", products, forward * each),
        ("reduce_scatter", stream, each + outside),
        ("all_gather", products, each),
    ):
        yield Exchange("tensor", collective, plan.tensor, size, count, plan.tensor)


def _context(plan: Plan) -> Iterator[Exchange]:
    queries = plan.positions * (plan.width or 0) / plan.tensor * plan.number_bytes
    each = plan.micro_batches * (plan.layers or 0) / plan.pipeline * (2 + plan.recompute)
    for size in (queries, queries * plan.key_value_share):
        yield Exchange("context", "all_to_all", plan.context, size, 2 * each, plan.tensor * plan.context)


def _weights(plan: Plan, regathers: bool) -> Iterator[Exchange]:
    blocks, outside = plan.block_parameters, plan.outer_parameters
    gradient_bytes = plan.gradient_bytes * (blocks + outside)
    within, every = plan.tensor * plan.context, plan.devices // plan.pipeline
    if not plan.sharded:
        yield Exchange("data", "all_reduce", plan.data, gradient_bytes, 1, every)
        return
    shards, span = plan.shards, within * plan.data // plan.replicas
    micro_batches = plan.micro_batches if regathers else 1
    # The backward pass gathers again what it has not kept: of the outer weights there is nothing between the passes.
    for size, count in ((blocks * plan.gathered_bytes, (2 if regathers else 1) * micro_batches),
                        (outside * plan.outer_bytes, micro_batches)):  # fmt: skip
        yield Exchange("shard", "all_gather", shards, size, count if size else 0, span)
    scatters = micro_batches if plan.scatters_each_micro_batch else 1
    yield Exchange("shard", "reduce_scatter", shards, gradient_bytes, scatters, span)
    yield Exchange("data", "all_reduce", plan.replicas, gradient_bytes / shards, 1, every)


def _pipeline(plan: Plan) -> Iterator[Exchange]:
    if plan.pipeline == 1:
        return
    size = plan.positions * (plan.width or 0) / plan.tensor * plan.stream_bytes
    count = 2 * plan.micro_batches * plan.virtual_stages
    # Nothing goes forward from the last stage, nor back from the first: of two ranks, both have one of them.
    sent_share = 1 - 1 / (2 * plan.virtual_stages) if plan.pipeline == 2 else 1.0
    yield Exchange("pipeline", "send_receive", plan.pipeline, size, count, plan.devices, sent_share)
    if plan.tie_word_embeddings:
        size = plan.outer_parameters / plan.shards * plan.gradient_bytes
        yield Exchange("pipeline", "all_reduce", 2, size, 1, plan.devices)
