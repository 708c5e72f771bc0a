"""Overhead of the harness: its tokens/s over those of a bare PyTorch loop that trains the same model.

Both sides run in fresh processes, in turn, so that a noisy machine disturbs both alike; quote the median ratio.

    python scripts/bench_overhead.py                 five pairs on the CPU, about three minutes on two cores
    python scripts/bench_overhead.py --pairs 3 backend=cuda model=gpt2-124m workload=gpt2 workload.steps=60

`window` compares the timed windows, which a record reports. `process` compares whole processes, with start-up, digests,
files and summary, and so depends on the length of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

# As harness/__main__.py does: an installed plug-in of torch must not be loaded.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from harness_runs import in_turn, run_harness

from harness.text import layered_settings

DEFAULTS = ("workload.steps=60", "workload.timing_warmup_steps=10", "workload.lr_warmup_steps=10",
            "workload.eval_every=0")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="settings of the harness, as on its command line")
    options = parser.parse_args()
    overrides = layered_settings(DEFAULTS, options.overrides)
    if options.bare:
        print(json.dumps(bare_loop(overrides)))
        return 0
    windows, processes = [], []
    print(f"{'pair':>4} {'harness tokens/s':>17} {'bare tokens/s':>14} {'window':>7} {'process':>8}")
    sides = {"harness": run_with_harness, "bare": run_bare}
    for pair in range(1, options.pairs + 1):
        found = {name: sides[name](overrides) for name in in_turn(sides, pair)}
        (speed, seconds), (bare_speed, bare_seconds) = found["harness"], found["bare"]
        windows.append(speed / bare_speed)
        processes.append(bare_seconds / seconds)
        print(f"{pair:>4} {speed:>17,.0f} {bare_speed:>14,.0f} {windows[-1]:>7.4f} {processes[-1]:>8.4f}", flush=True)
    print(f"median ratio, harness over bare: window {statistics.median(windows):.4f}, "
          f"process {statistics.median(processes):.4f}")  # fmt: skip
    return 0


def run_with_harness(overrides: list[str]) -> tuple[float, float]:
    """Return (tokens/s of the measured window, seconds of the whole process)."""
    record, seconds = run_harness(overrides)
    return record["timing"]["tokens_per_second"], seconds


def run_bare(overrides: list[str]) -> tuple[float, float]:
    """Return the same of the bare loop."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--bare", *overrides]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)["tokens_per_second"], time.perf_counter() - began


def bare_loop(overrides: list[str]) -> dict[str, float]:
    """Train as a short script does, without digests, files and threads, and read the clock at both ends.

    Weights and tokens are the harness's own: the time of some operations depends on the values.
    """
    import torch

    from harness import backends
    from harness.composition import load
    from harness.schedule import learning_rate
    from harness.workload.data import open_dataset
    from harness.workload.initialization import build_model

    config = load(overrides)
    work = config.workload
    backend = backends.create(config.backend)
    backend.load()
    backend.apply(config.precision)  # the same threads and arithmetic modes
    device = backend.device()
    model = build_model(config.model, config.seed, device)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups,
        lr=work.learning_rate,
        betas=(work.beta1, work.beta2),
        eps=work.epsilon,
        weight_decay=work.weight_decay,
        foreach=True,
    )
    dtype = {"fp32": None, "bf16": torch.bfloat16}[config.precision]
    accumulation = work.global_batch_size // work.micro_batch_size
    tokens = torch.from_numpy(open_dataset(config).train(0, work.steps * work.global_batch_size))
    tokens = tokens.view(work.steps, accumulation, work.micro_batch_size, work.seq_len + 1)
    began = 0.0
    for step in range(work.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, work)
        if step == work.timing_warmup_steps:
            backend.synchronize()
            began = time.perf_counter()
        for micro_batch in tokens[step]:
            with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = model(micro_batch.to(device, non_blocking=True))
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), work.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    backend.synchronize()
    seconds = time.perf_counter() - began
    measured = (work.steps - work.timing_warmup_steps) * work.global_batch_size * work.seq_len
    return {"tokens_per_second": measured / seconds}


if __name__ == "__main__":
    sys.exit(main())
