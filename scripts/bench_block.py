"""Both passes of one compiled block of track=tuned, with other settings of PyTorch's compiler: time, and what is kept.

    python scripts/bench_block.py --shape stranger --micro-batch 1 --variant activation_memory_budget=0.95
    python scripts/bench_block.py --micro-batch 8 --variant precision=bf16_weights

Shapes are those of bench_peers.py. A variant is settings of torch._functorch.config over the backend's own, or a
precision. Each is a process that stays, and single passes take turns, so that a noisy machine disturbs all alike:
steadier than whole runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from bench_peers import SHAPES, WORK, interval
from harness_runs import in_turn

from harness.text import layered_settings

OWN = "the backend's own"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="stranger")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--variant", action="append", default=[], metavar="'SETTING=VALUE ...'", help="may be repeated")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        serve(options.shape, options.micro_batch, options.worker)
        return 0
    own = [sys.executable, __file__, "--shape", options.shape, "--micro-batch", str(options.micro_batch), "--worker"]
    names = [OWN, *options.variant]
    # Threads of a worker that waits stop spinning before the next one's pass is over.
    environment = {**os.environ, "GOMP_SPINCOUNT": "100000"}
    workers = [
        subprocess.Popen([*own, "" if name == OWN else name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         env=environment)
        for name in names
    ]  # fmt: skip

    def ask(worker: subprocess.Popen[str]) -> float:
        assert worker.stdin is not None
        assert worker.stdout is not None
        print(file=worker.stdin, flush=True)
        answer = worker.stdout.readline()
        if not answer:
            sys.exit("a variant failed: its message is above")
        return float(answer)

    # One after another: each compiles first.
    kept = [ask(worker) for worker in workers]
    seconds: list[list[float]] = [[] for _ in workers]
    for number in range(options.rounds):
        for index in in_turn(range(len(workers)), number):
            seconds[index].append(ask(workers[index]))
    for worker in workers:
        worker.terminate()
    print(f"| {options.shape}, micro-batch {options.micro_batch} | ms | speed, 95 % | kept for backward, MB |")
    print("|---|---|---|---|")
    for name, each, size in zip(names, seconds, kept, strict=True):
        ratios = [first / mine for first, mine in zip(seconds[0], each, strict=True)]
        print(f"| {name} | {1000 * statistics.median(each):.1f} | {interval(ratios)} | {size / 1e6:.1f} |")
    return 0


def serve(shape: str, micro_batch: int, settings: str) -> None:
    """Answer each line of standard input: the first with the bytes that are kept, the others with a pass's seconds."""
    run, kept_bytes = block_passes(shape, micro_batch, settings)
    run()
    run()
    for number, _ in enumerate(sys.stdin):
        if number == 0:
            print(kept_bytes(), flush=True)
            continue
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began, flush=True)


def block_passes(shape: str, micro_batch: int, settings: str) -> tuple[Callable[[], None], Callable[[], int]]:
    """Return a function that runs both passes of a block, and one that counts the bytes that the first keeps."""
    import torch
    import torch._functorch.config as compiler
    from torch.autograd.graph import saved_tensors_hooks

    from harness import backends
    from harness.backends.step import residual_dtype
    from harness.composition import load
    from harness.config import head_dim
    from harness.workload.model import Block, set_norm_dtype
    from harness.workload.rotary import rotary_tables

    words = settings.split()
    own = [word for word in words if word.startswith("precision=")]
    config = load(layered_settings(WORK, SHAPES[shape], [f"workload.micro_batch_size={micro_batch}"], own))
    backend, model = backends.create(config.backend), config.model
    backend.apply(config.precision)
    for name, value in backend.compiler_settings.items():
        setattr(compiler, name, value)
    for name, _, value in (item.partition("=") for item in words if item not in own):
        setattr(
            compiler, name, {"true": True, "false": False}.get(value) if value in ("true", "false") else float(value)
        )
    dtype = residual_dtype(config.precision)
    block = Block(model)
    set_norm_dtype(block, dtype)
    block.attention.attention = backend.kernels()["attention"][backend.tuned_defaults(config)["attention"]]
    forward = torch.compile(block.forward, dynamic=False, fullgraph=True)
    rotary = None
    if model.position_embedding == "rotary":
        rotary = rotary_tables(config.workload.seq_len, head_dim(model), model.rope_theta, model.rope_scaling)
    x = torch.randn(micro_batch, config.workload.seq_len, model.hidden_size, requires_grad=True, dtype=dtype)
    gradient = torch.randn(x.shape, dtype=dtype)

    def first_pass() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(x, rotary)

    def kept_bytes() -> int:
        sizes: list[int] = []
        with saved_tensors_hooks(lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor):
            first_pass()
        return sum(sizes)

    return lambda: first_pass().backward(gradient), kept_bytes


if __name__ == "__main__":
    sys.exit(main())
