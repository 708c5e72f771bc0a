"""Table of planned layouts: what the largest rank of published runs and of our own would hold, without devices.

`python scripts/plan_table.py [NAME ...]` prints Markdown; NAME is a part of a row's name.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, NamedTuple

GIB = 2**30


class Case(NamedTuple):
    name: str
    devices: int
    memory_gib: int
    settings: str


# Llama 3 405B: tensor 8, pipeline 16, the rest data, on H100 (Grattafiori et al. 2024, Table 4). Llama 3 70B: NVIDIA's
# tensor 4 x pipeline 8 on H100 (Megatron-Bridge 26.04, there interleaved), and FSDP 32 x tensor 8 with full
# recomputation and a local batch of 16 on H100 of 96 GB (torchtitan, June 2025). The others are ours.
LLAMA_405B = (
    "model=llama3.1-405b workload.seq_len=8192 workload.global_batch_size=2048 parallel.tensor=8 parallel.pipeline=16"
)
LLAMA_70B = "model=llama3.1-70b workload.seq_len=8192"
LLAMA2_70B = "model=llama2-70b parallel.tensor=8 parallel.pipeline=4"
RECOMPUTE = "model.activation_checkpointing=true"
BF16 = "parallel=mesh workload=llama2 precision=bf16"
BATCH_16 = "workload.global_batch_size=512 workload.micro_batch_size=16"
CASES = (
    Case("Llama 3 405B, H100, published", 16384, 80, f"{BF16} {LLAMA_405B}"),
    Case("Llama 3 405B, H100, recomputing", 16384, 80, f"{BF16} {LLAMA_405B} {RECOMPUTE}"),
    Case("Llama 3 70B, H100, published by NVIDIA", 64, 80,
         f"{BF16} {LLAMA_70B} parallel.tensor=4 parallel.pipeline=8 workload.global_batch_size=256"),
    Case("Llama 3 70B, H100 96 GB, published by torchtitan", 256, 96,
         f"{BF16} {LLAMA_70B} parallel.tensor=8 {BATCH_16} {RECOMPUTE}"),
    Case("Llama 2 70B, A100", 512, 80, f"{BF16} {LLAMA2_70B}"),
    Case("Llama 2 70B, Ascend 910B, recomputing", 512, 64, f"{BF16} {LLAMA2_70B} {RECOMPUTE}"),
    Case("Llama 2 13B, iflytek/cluster, Ascend 910", 64, 32, "experiment=iflytek/cluster"),
    Case("Llama 2 13B, sharded alone, recomputing, Ascend 910", 64, 32,
         f"experiment=iflytek/cluster parallel.tensor=1 {RECOMPUTE}"),
    Case("GPT-3 175B, iflytek/cluster-175b, Ascend 910B", 512, 64, "experiment=iflytek/cluster-175b"),
)  # fmt: skip
HEADINGS = ("run", "layout", "parameters", "weights + gradients + moments", "activations", "other", "peak", "device",
            "fits")  # fmt: skip


def main(names: list[str]) -> int:
    """Plan the cases, and print a row for each."""
    print(f"| {' | '.join(HEADINGS)} |")
    print("|---|---|" + "---:|" * (len(HEADINGS) - 3) + "---|")
    for case in CASES:
        if not names or any(name in case.name for name in names):
            print(row(case, plan(case)), flush=True)
    return 0


def plan(case: Case) -> dict[str, Any]:
    command = [sys.executable, "-m", "harness", "plan", f"--devices={case.devices}", f"--memory-gib={case.memory_gib}",
               "--format=json", *case.settings.split()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        raise SystemExit(f"{case.name}: {done.stderr.strip()}")
    print(f"{case.name}: {json.loads(done.stdout)['seconds']:.0f} s", file=sys.stderr)
    return json.loads(done.stdout)


def row(case: Case, found: dict[str, Any]) -> str:
    largest = found["stages"][found["largest_stage"]]
    state = largest["weight_bytes"] + largest["gradient_bytes"] + largest["moment_bytes"]
    sizes = [f"{size / GIB:.1f}" for size in (state, largest["activation_bytes"], largest["other_bytes"],
                                              largest["peak_bytes"], found["device_bytes"])]  # fmt: skip
    cells = [case.name, found["layout"], f"{largest['parameters'] / 1e6:,.0f} M", *sizes,
             "yes" if found["fits"] else "no"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
