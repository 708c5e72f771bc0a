"""Kernels of attention and cross-entropy, forward and backward: each alternative of track=tuned.

    python scripts/bench_kernels.py [--tokens 2048]

On this host's CPU, in bf16, at llama-30m's shape. The rows of a table are measured in turn; shown is the best of seven
times. FLOP/s count the causal half of the score matrix, for every kernel.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch
import torch.nn.functional as F

from harness.backends.cpu import keep_freed_memory
from harness.backends.kernels import ChunkedCrossEntropy, blocked_attention
from harness.environment import allowed_cores
from harness.workload.model import causal_attention, mean_cross_entropy

LENGTH, HEADS, HEAD_SIZE, HIDDEN_SIZE, VOCAB_SIZE = 512, 6, 64, 384, 32000
ROUNDS = 7


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(allowed_cores())
    keep_freed_memory()
    torch.manual_seed(1)
    attention(options.tokens // LENGTH)
    cross_entropy(options.tokens)
    return 0


def attention(sequences: int) -> None:
    shape = (sequences, LENGTH, HEADS, HEAD_SIZE)
    q, k, v = (torch.randn(shape).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3))
    gradient = torch.randn(sequences, HEADS, LENGTH, HEAD_SIZE).bfloat16()
    kernels = {
        "scaled_dot_product_attention": causal_attention,
        "matrix products": products,
        "matrix products, compiled": torch.compile(products, dynamic=False),
        "blocks of queries": blocked_attention,
        "blocks of queries, compiled": torch.compile(blocked_attention, dynamic=False),
    }

    def run(kernel: Callable[..., torch.Tensor]) -> None:
        kernel(q, k, v).backward(gradient)
        q.grad = k.grad = v.grad = None

    flops = 3 * 2 * sequences * HEADS * LENGTH * LENGTH * HEAD_SIZE
    show("attention", kernels, run, flops, sequences * LENGTH)


def products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention with the whole score matrix, as transformers' `eager` attention."""
    scores = (q @ k.transpose(-1, -2)).float() * HEAD_SIZE**-0.5
    future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1).to(v.dtype) @ v


def cross_entropy(tokens: int) -> None:
    head = torch.nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, bias=False)
    hidden = torch.randn(1, tokens, HIDDEN_SIZE, requires_grad=True)
    targets = torch.randint(0, VOCAB_SIZE, (1, tokens))
    compiled = ChunkedCrossEntropy()
    compiled.compile()
    kernels = {
        "stock": mean_cross_entropy,
        "stock, compiled": torch.compile(mean_cross_entropy, dynamic=False),
        "chunked": ChunkedCrossEntropy(),
        "chunked, compiled": compiled,
        "F.linear_cross_entropy": linear,
        "F.linear_cross_entropy, chunked": partial(linear, options=torch.nn.LinearCrossEntropyOptions()),
    }

    def run(kernel: Callable[..., torch.Tensor]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = kernel(head, hidden, targets)
        loss.backward()
        hidden.grad = head.weight.grad = None

    show("cross-entropy", kernels, run, 3 * 2 * tokens * HIDDEN_SIZE * VOCAB_SIZE, tokens)


def linear(head: torch.nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, options: Any = None) -> torch.Tensor:
    rows, weight = hidden.flatten(0, 1).bfloat16(), head.weight.bfloat16()
    return F.linear_cross_entropy(rows, weight, targets.flatten(), options=options)


def show(title: str, kernels: dict[str, Callable], run: Callable, flops: float, tokens: int) -> None:
    best = dict.fromkeys(kernels, float("inf"))
    for kernel in kernels.values():
        run(kernel)
    for _ in range(ROUNDS):
        for name, kernel in kernels.items():
            began = time.perf_counter()
            run(kernel)
            best[name] = min(best[name], time.perf_counter() - began)
    print(f"\n| {title}, forward and backward | ms | us a token | GFLOP/s |\n|---|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {1e3 * seconds:.2f} | {1e6 * seconds / tokens:.1f} | {flops / seconds / 1e9:,.0f} |")


if __name__ == "__main__":
    sys.exit(main())
