"""Stages of a pipeline: which blocks each has, and how long the longest rank computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from harness.analysis.flops import training_flops_per_token
from harness.config import blocks_by_stage


def blocks_of_stages(
    model: Mapping[str, Any], seq_len: int, size: int, virtual_stages: int = 1, pipeline_blocks: str | None = None
) -> list[range]:
    """Return the numbers of the blocks of each stage.

    Args:
        size: of the pipeline, in ranks.
        virtual_stages: of each rank, dealt out in turn.
        pipeline_blocks: number of blocks of each stage, with a dash between them; None: balanced by FLOPs.
    """
    if pipeline_blocks is not None:
        return _consecutive(blocks_by_stage(pipeline_blocks))
    return stage_blocks(model["num_hidden_layers"], size, _head_cost(model, seq_len), virtual_stages)


def longest_rank(
    model: Mapping[str, Any], seq_len: int, size: int, virtual_stages: int = 1, pipeline_blocks: str | None = None
) -> float:
    """Return the FLOPs of the longest rank of a pipeline over the mean: blocks are whole, and the last has the head.

    The arguments are those of `blocks_of_stages`.
    """
    if size * virtual_stages > model["num_hidden_layers"]:
        # Of no run. The plan of this layout says so.
        return 1.0
    stages = blocks_of_stages(model, seq_len, size, virtual_stages, pipeline_blocks)
    costs = [sum(len(blocks) for blocks in stages[rank::size]) for rank in range(size)]
    head = _head_cost(model, seq_len)
    return max(*costs[:-1], costs[-1] + head) * size / (sum(costs) + head) if size > 1 else 1.0


def _head_cost(model: Mapping[str, Any], seq_len: int) -> float:
    """Return the FLOPs of the output projection over those of a block."""
    layers = model["num_hidden_layers"]
    blocks = training_flops_per_token({**model, "vocab_size": 0}, seq_len)
    return training_flops_per_token({**model, "num_hidden_layers": 0}, seq_len) / (blocks / layers)


def stage_blocks(blocks: int, size: int, head_cost: float, virtual_stages: int = 1) -> list[range]:
    """Return the blocks of each stage, so that the longest rank of the pipeline is as short as possible.

    Args:
        size: of the pipeline, in ranks.
        head_cost: of the output projection on the last rank, in blocks.
        virtual_stages: of each rank, dealt out in turn; each has at least one block.
    """
    lengths = sorted({float(n) for n in range(1, blocks + 1)} | {n + head_cost for n in range(1, blocks + 1)})
    found = (_filled(blocks, size, head_cost, limit, virtual_stages) for limit in lengths)
    by_rank = next(counts for counts in found if counts is not None)
    stages = [divmod(count, virtual_stages) for count in by_rank]
    return _consecutive([each + (number < more) for number in range(virtual_stages) for each, more in stages])


def _consecutive(counts: Sequence[int]) -> list[range]:
    """Return ranges of these lengths, one after another."""
    return [range(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]


def _filled(blocks: int, ranks: int, head_cost: float, limit: float, least: int) -> list[int] | None:
    """Return numbers of blocks, none below `least`, of which no rank costs more than `limit`, as even as that allows;
    None: impossible.
    """
    if ranks == 1:
        return [blocks] if blocks + head_cost <= limit + 1e-9 else None
    last = min(int(limit - head_cost + 1e-9), blocks - least * (ranks - 1), -(-blocks // ranks))
    each, more = divmod(blocks - last, ranks - 1)
    if min(last, each) < least or each + bool(more) > limit + 1e-9:
        return None
    return [each + (number < more) for number in range(ranks - 1)] + [last]
