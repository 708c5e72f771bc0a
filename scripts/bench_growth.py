"""Speed against sequence length and model size: runs, and plots of their records.

    python scripts/bench_growth.py --out growth              makes the runs that growth/ lacks, then draws
    python scripts/bench_growth.py --out growth --draw-only  draws again from existing records

Sequences of 128 to 4,096 tokens with llama-30m, and models of 0.8 M to 355 M parameters at 512 tokens, in bf16, with
both tracks; every step has the same number of tokens. The ceiling in the plots is the matrix-product peak measured by
`python -m harness peak`: run that first, on the same device and threads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from draw_growth import draw_growth

from harness.report.svg import standalone
from harness.text import layered_settings

COMMON = ("workload=gpt2", "workload.steps=5", "workload.timing_warmup_steps=2", "workload.eval_every=0",
          "workload.lr_warmup_steps=1", "precision=bf16")  # fmt: skip
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
MODELS = ("tiny", "small", "llama-30m", "gpt2-124m", "gpt2-355m")
LENGTH = 512
TRACKS = ("tuned", "portable")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the records and plots")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a step")
    parser.add_argument("--draw-only", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings of the harness, as on its command line")
    options = parser.parse_args()
    if not options.draw_only:
        for name, overrides in runs(options.tokens):
            run(options.out / name, layered_settings(COMMON, overrides, options.overrides))
    records = [json.loads(path.read_text()) for path in sorted(options.out.glob("*/record.json"))]
    finished = [record for record in records if record["status"] == "ok"]
    without = [record for record in finished if not (record["utilization"] or {}).get("measured_peak_flops")]
    if without:
        print(f"{len(without)} of {len(finished)} records have no measured peak, and no ceiling in the plots: run "
              "python -m harness peak, delete their folders and start again", file=sys.stderr)  # fmt: skip
    for name, picture in draw_growth(finished).items():
        path = options.out / f"{name}.svg"
        path.write_text(standalone(picture), encoding="utf-8")
        print(path)
    return 0


def runs(tokens: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the overrides of each run."""
    shapes = [*(("llama-30m", length) for length in LENGTHS), *((model, LENGTH) for model in MODELS)]
    for model, length in dict.fromkeys(shapes):
        sequences = max(1, tokens // length)
        for track in TRACKS:
            overrides = [
                f"model={model}", f"track={track}", f"workload.seq_len={length}",
                f"workload.global_batch_size={sequences}", f"workload.micro_batch_size={sequences}",
            ]  # fmt: skip
            if model == "llama-30m":
                overrides.append(f"model.max_position_embeddings={max(LENGTHS)}")
            yield f"{model}-{length}-{track}", overrides


def run(folder: Path, overrides: list[str]) -> None:
    """Make one run, unless its folder holds a finished one."""
    if (folder / "record.json").exists():
        status = json.loads((folder / "record.json").read_text())["status"]
        if status != "ok":
            sys.exit(f"{folder}: holds a run that ended with status {status}; delete the folder to run it again")
        return
    command = [sys.executable, "-m", "harness", *overrides, f"out={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{folder.name}: {done.stderr[-2000:]}")
    speed = json.loads((folder / "record.json").read_text())["timing"]["tokens_per_second"]
    print(f"{folder.name}: {speed:,.0f} tokens/s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
