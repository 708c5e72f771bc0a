"""Table of layouts: each trains the same steps as one process, and the largest differences are shown.

    python scripts/layout_table.py                       every model in every layout, as Markdown
    python scripts/layout_table.py --models gpt2 --layouts 'tensor=2' 'fsdp shard=2 data=2'
    python scripts/layout_table.py --precision bf16      within the gate of *same computation*?
    scripts/emulated_npu.sh python scripts/layout_table.py --backend npu
                                                         some layouts over HCCL on emulated devices, against one CPU
    python scripts/layout_table.py --resume 'fsdp shard=4'   each goes on in another layout from a checkpoint of step 6
    python scripts/layout_table.py --keep FOLDER         keeps the runs there, and uses those that are there

Processes are forks and exchange over Gloo, or over the backend's collective library. In float32 losses and gradient
norms of all steps have to agree within 1e-5. Exit code 1 if a layout differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from harness.text import layered_settings, shortened  # noqa: E402
from tests.layouts import (  # noqa: E402
    MODELS,
    WORK,
    difference,
    file_name,
    other_work,
    overrides_of,
    train,
    train_alone,
    train_in_two,
)
from tests.zygote import Zygote  # noqa: E402

LAYOUTS = (
    "fsdp shard=1",
    "ddp data=2",
    "fsdp shard=2",
    "tensor=2",
    "pipeline=2",
    "pipeline=2 pipeline_schedule=gpipe",
    "context=2",
    "ddp data=4",
    "fsdp shard=4",
    "fsdp shard=2 data=2",
    "tensor=4",
    "shard=2 tensor=2",
    "data=2 shard=1 tensor=2",
    "pipeline=4",
    "pipeline=4 pipeline_schedule=gpipe",
    "pipeline=2 pipeline_schedule=zero_bubble",
    "pipeline=4 pipeline_schedule=zero_bubble",
    "pipeline=2 pipeline_blocks=3-1",
    "pipeline=2 pipeline_virtual_stages=2",
    "pipeline=2 pipeline_virtual_stages=2 pipeline_schedule=gpipe",
    "pipeline=2 pipeline_virtual_stages=2 pipeline_schedule=zero_bubble",
    "pipeline=2 pipeline_virtual_stages=2 shard=2",
    "pipeline=2 pipeline_virtual_stages=2 tensor=2",
    "pipeline=2 shard=2",
    "pipeline=2 data=2 shard=1",
    "pipeline=2 tensor=2",
    "pipeline=2 context=2",
    "context=4",
    "context=2 tensor=2",
    "context=2 shard=2",
    "context=2 data=2 shard=1",
    "data=2 pipeline=2 tensor=2 shard=1",
    # As few micro-batches as stages, and one for each sequence.
    "pipeline=2 workload.micro_batch_size=4",
    "pipeline=4 workload.micro_batch_size=1",
    # What hardly divides: blocks over stages, vocabulary, positions, sequences.
    "pipeline=4 model.num_hidden_layers=5",
    "tensor=4 model.vocab_size=257",
    "context=4 workload.seq_len=20",
    "shard=4 workload.global_batch_size=4 workload.micro_batch_size=1",
)
# On emulated devices, of which each is a CPU thread.
NPU_LAYOUTS = ("tensor=2", "pipeline=2", "context=2", "shard=2 tensor=2", "pipeline=2 tensor=2", "data=2 shard=2")
MAX_CELL = 60


@dataclass
class Comparison:
    """Runs in a folder, and their differences."""

    folder: Path
    settings: Sequence[str]
    """Of the command line."""
    precision: str
    ranks: dict[str, Any] = field(default_factory=dict)
    """Options of tests.ranks.start_ranks for another backend than the CPU."""
    backend: Sequence[str] = ()
    resume: str | None = None
    """Another layout, in which each run goes on from a checkpoint."""

    def work(self, model: str) -> list[str]:
        # Losses and gradient norms of a float32 run are compared directly.
        gate = ["precision=fp32", "fingerprint=false"] if self.precision == "fp32" else [f"precision={self.precision}"]
        return layered_settings(WORK, MODELS[model], ["workload.micro_batch_size=2"], gate, self.settings)

    def alone(self, model: str, more: Sequence[str]) -> Path:
        return train_alone(
            self.folder, layered_settings(self.work(model), more), "-".join([model, *map(file_name, more)])
        )

    def cell(self, model: str, layout: str) -> str:
        """Return the largest differences of a layout from one process, or what is wrong."""
        name, settings = f"{model}-{file_name(layout)}", layered_settings(self.work(model), self.backend)
        if self.resume is None:
            found = train(self.folder, layout, settings, name, **self.ranks)
        else:
            name = f"{name}-then-{file_name(self.resume)}"
            found = train_in_two(self.folder, (layout, self.resume), settings, name, **self.ranks)
        if isinstance(found, str):
            return f"FAIL {shortened(found.splitlines()[-1], MAX_CELL)}"
        return difference(self.alone(model, other_work(layout)), found, self.precision)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layouts", nargs="+", metavar="'AXIS=N ...'")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--backend", choices=("cpu", "npu"), default="cpu")
    parser.add_argument("--resume", metavar="'AXIS=N ...'", help="or `one process`")
    parser.add_argument("--together", type=int, default=2, help="runs at a time")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("overrides", nargs="*", help="further settings")
    options = parser.parse_args()
    layouts = options.layouts or (LAYOUTS if options.backend == "cpu" else NPU_LAYOUTS)
    print(f"| layout | ranks | {' | '.join(options.models)} |\n|---|{'---|' * (len(options.models) + 1)}")
    good = True
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.together) as pool:
        table = Comparison(options.keep or Path(temporary), options.overrides, options.precision, resume=options.resume)
        table.folder.mkdir(parents=True, exist_ok=True)
        if options.backend == "npu":
            table.backend, table.ranks = ("backend=npu",), on_npu(max(overrides_of(layout)[0] for layout in layouts))
        alone = {(model, *other_work(layout)) for layout in layouts for model in options.models}
        list(pool.map(lambda key: table.alone(key[0], key[1:]), sorted(alone)))
        rows = [(layout, [pool.submit(table.cell, model, layout) for model in options.models]) for layout in layouts]
        for layout, futures in rows:
            cells = [future.result() for future in futures]
            good &= all(cell.startswith("ok") for cell in cells)
            shown = [cell.removeprefix("ok ") for cell in cells]
            print(f"| `{layout}` | {overrides_of(layout)[0]} | {' | '.join(shown)} |", flush=True)
    return 0 if good else 1


def on_npu(devices: int) -> dict[str, Any]:
    """Return options of `start_ranks` for a host with emulated NPUs."""
    from tests.cann_emulator.build import build, environment

    variables = environment(build())
    own = {**variables, "CANN_EMULATOR_DEVICES": str(devices)}
    return {
        "variables": {rank: own for rank in range(devices)},
        "zygote": Zygote(["torch_npu", "harness.backends.npu"], variables),
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(main())
