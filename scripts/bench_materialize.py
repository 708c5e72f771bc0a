"""Host memory during the creation of a sharded model: peak of each rank, against its shard and one parameter.

    python scripts/bench_materialize.py                       # llama2-7b in bf16 on two processes: 13 GB in all
    python scripts/bench_materialize.py --ranks 4 model=llama-1b
    python scripts/bench_materialize.py --write DIR model=llama3.2-1b          # 2.5 GB of safetensors in five files
    python scripts/bench_materialize.py model=hf model.path=DIR init=DIR      # a model's weights from its safetensors

As a training with parallel=fsdp does, each rank builds the model on the meta device, shards it with FSDP2 and fills its
shards from the per-parameter seeds or from the files.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

MIB = 2**20
FILE_BYTES = 500_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write the random initial weights there instead")
    parser.add_argument("overrides", nargs="*", help="settings of the harness; model=llama2-7b if none is given")
    options = parser.parse_args()
    if "RANK" in os.environ:
        build(options.dtype, options.overrides or ["model=llama2-7b"])
        return 0
    if options.write:
        return write(options.write, options.dtype, options.overrides)
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}", *sys.argv]
    os.execv(sys.executable, [sys.executable, *command])


def write(out: Path, dtype: str, overrides: list[str]) -> int:
    import torch

    from harness.composition import load
    from harness.training.export import write_model
    from harness.workload.initialization import build_model

    config = load(overrides)
    model = build_model(config.model, config.seed, torch.device("cpu"), dtype=getattr(torch, dtype))
    out.mkdir()
    print(*write_model(dict(model.named_parameters()), config.model, out, dtype, max_file_bytes=FILE_BYTES), sep="\n")
    return 0


def resident_bytes() -> int:
    """Return this process's memory without mapped files, which the kernel drops when it needs the memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * sum(int(status.split(f"{key}:")[1].split()[0]) for key in ("RssAnon", "RssShmem"))


class Peak(threading.Thread):
    """Samples the peak of this process's resident memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident_bytes())
            time.sleep(0.002)


def build(dtype_name: str, overrides: list[str]) -> None:
    import torch
    import torch.distributed as dist

    from harness.composition import load
    from harness.layout import layout_of
    from harness.text import layered_settings
    from harness.training.distributed.collectives import Ranks
    from harness.training.distributed.parallel import build_sharded
    from harness.world import from_environment

    config = load(layered_settings(["parallel=fsdp"], overrides))
    world = from_environment(config.parallel.name)
    ranks = Ranks(world, layout_of(config.parallel, world.size))
    dist.init_process_group("gloo")
    dtype = getattr(torch, dtype_name)
    torch.set_num_threads(1)
    before = resident_bytes()
    peak = Peak()
    peak.start()
    began = time.monotonic()
    model = build_sharded(config, torch.device("cpu"), ranks, dtype)
    seconds = time.monotonic() - began
    parameters = list(model.parameters())
    shard = sum(parameter.to_local().nbytes for parameter in parameters)  # type: ignore[operator]
    # At most one parameter in float32 is in memory while the shards are filled.
    largest = max(parameter.numel() for parameter in parameters) * 4
    measured = (shard, largest, peak.bytes - before, before, seconds)
    for rank, (own, one, used, start, took) in enumerate(ranks.gather(measured)):
        if ranks.is_main:
            print(
                f"rank {rank}: shard {own / MIB:,.0f} MiB, largest parameter (float32) {one / MIB:,.0f} MiB, peak "
                f"beyond the {start / MIB:,.0f} MiB of an empty process {used / MIB:,.0f} MiB = shard + "
                f"{(used - own) / MIB:,.0f} MiB, in {took:,.0f} s"
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
