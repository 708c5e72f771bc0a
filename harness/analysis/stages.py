"""Stages of a pipeline: which blocks each has, and how long the longest rank computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from harness.analysis.flops import training_flops_per_token
from harness.config import blocks_by_stage


def blocks_of_stages(
    model: Mapping[str, Any], seq_len: int, stages: int, pipeline_blocks: str | None = None
) -> list[range]:
    """Return the numbers of the blocks of each stage.

    Args:
        pipeline_blocks: number of blocks of each stage, with a dash between them; None: balanced by FLOPs.
    """
    if pipeline_blocks is not None:
        return _consecutive(blocks_by_stage(pipeline_blocks))
    return stage_blocks(model["num_hidden_layers"], stages, _head_cost(model, seq_len))


def longest_rank(
    model: Mapping[str, Any], seq_len: int, size: int, virtual_stages: int = 1, pipeline_blocks: str | None = None
) -> float:
    """Return the FLOPs of the longest rank of a pipeline over the mean: blocks are whole, and the last has the head.

    Args:
        size: of the pipeline, in ranks.
        virtual_stages: of each rank, dealt out in turn.
    """
    stages = blocks_of_stages(model, seq_len, size * virtual_stages, pipeline_blocks)
    costs = [sum(len(blocks) for blocks in stages[rank::size]) for rank in range(size)]
    head = _head_cost(model, seq_len)
    return max(*costs[:-1], costs[-1] + head) * size / (sum(costs) + head) if size > 1 else 1.0


def _head_cost(model: Mapping[str, Any], seq_len: int) -> float:
    """Return the FLOPs of the output projection over those of a block."""
    layers = model["num_hidden_layers"]
    blocks = training_flops_per_token({**model, "vocab_size": 0}, seq_len)
    return training_flops_per_token({**model, "num_hidden_layers": 0}, seq_len) / (blocks / layers)


def stage_blocks(blocks: int, stages: int, head_cost: float) -> list[range]:
    """Return the blocks of each stage, so that the longest stage is as short as possible.

    Args:
        head_cost: of the output projection on the last stage, in blocks.
    """

    def fits(limit: float) -> bool:
        return stages - 1 <= blocks - 1 and _filled(blocks, stages, head_cost, limit) is not None

    lengths = sorted({float(n) for n in range(1, blocks + 1)} | {n + head_cost for n in range(1, blocks + 1)})
    limit = next(length for length in lengths if fits(length))
    counts = _filled(blocks, stages, head_cost, limit)
    assert counts is not None
    return _consecutive(counts)


def _consecutive(counts: Sequence[int]) -> list[range]:
    """Return ranges of these lengths, one after another."""
    return [range(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]


def _filled(blocks: int, stages: int, head_cost: float, limit: float) -> list[int] | None:
    """Return numbers of blocks of which no stage costs more than `limit`, as even as that allows; None: impossible."""
    last = min(int(limit - head_cost + 1e-9), blocks - (stages - 1), -(-blocks // stages))
    if last < 1:
        return None
    each, more = divmod(blocks - last, max(1, stages - 1))
    if stages == 1:
        return [blocks] if blocks + head_cost <= limit + 1e-9 else None
    if each + bool(more) > limit + 1e-9 or not each:
        return None
    return [each + (number < more) for number in range(stages - 1)] + [last]
