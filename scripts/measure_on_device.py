"""Measures a device: its peaks, the harness with each track setting, and other trainers. Run measure_on_device.sh.

    python scripts/measure_on_device.py BACKEND [--out DIR] [--quick] [--no-peers] [SETTINGS...]

First `harness peak`; then GPT-2 124M and a Llama shape of 1.1 B parameters in bf16: the micro-batch size by
`experiment=autotune`, both tracks and the settings of track=tuned at that size, and the peers of bench_peers.py on the
same work. DIR/summary.md holds the table, with the MFU of the data sheet's and of the measured peak. Exit code 0; 1
if the larger model reaches 0.55 of the measured peak with no setting; 3 if the device is not available.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from harness.text import layered_settings

PROJECT = Path(__file__).resolve().parent.parent
MODELS = {
    "gpt2-124m": ("model=gpt2-124m", "workload=gpt2", "workload.seq_len=1024", "workload.global_batch_size=64"),
    "llama-1b": ("model=llama-1b", "workload=llama2", "workload.seq_len=2048", "workload.global_batch_size=16"),
}
LARGER, MIN_MFU = "llama-1b", 0.55
STEPS = ("workload.steps=30", "workload.timing_warmup_steps=10", "workload.eval_every=0",
         "workload.lr_warmup_steps=1", "precision=bf16")  # fmt: skip
# With --quick: very small runs, to test the script.
QUICK = (
    "model.num_hidden_layers=1",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "model.intermediate_size=64",
    "model.vocab_size=256",
    "workload.steps=4",
    "workload.timing_warmup_steps=2",
    "workload.seq_len=32",
    "workload.global_batch_size=4",
)
VARIANTS = {
    "portable": ("track=portable",),
    "tuned": ("track=tuned",),
    "tuned, compile=no": ("track=tuned", "track.compile=no"),
    "tuned, compile=model": ("track=tuned", "track.compile=model"),
    "tuned, adamw=foreach": ("track=tuned", "track.adamw=foreach"),
    "tuned, cross_entropy=chunked": ("track=tuned", "track.cross_entropy=chunked"),
    "tuned, gradient_accumulation=fused": ("track=tuned", "track.gradient_accumulation=fused"),
}
# If the search fails: fits every device and divides every batch.
SAFE_SIZE = ["workload.micro_batch_size=1"]
UNAVAILABLE = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    out = (options.out or Path("runs") / f"{stamp}-measured-{options.backend}").absolute()
    if out.exists() and any(out.iterdir()):
        parser.error(f"--out: {out} is not empty; choose another folder, so that no old record is taken for a new one")
    common = [f"backend={options.backend}", f"peak_dir={out / 'peaks'}"]
    if harness(common, "peak") == UNAVAILABLE:
        return UNAVAILABLE
    lines = [
        "| model | run | tokens/s | MFU of the data sheet | MFU of the measured peak | peak GiB | first step s |",
        "|---|---|---|---|---|---|---|",
    ]
    best: dict[str, float] = {}
    for model, work in MODELS.items():
        overrides = layered_settings(common, work, STEPS, QUICK if options.quick else (), options.settings)
        size = fastest_size(overrides, out / model / "autotune") or SAFE_SIZE
        for number, (name, variant) in enumerate(VARIANTS.items(), 1):
            record = run(layered_settings(overrides, variant, size), out / model / str(number))
            lines.append(row(model, name, record))
            if record["status"] == "ok":
                share = (record["utilization"] or {}).get("mfu_of_measured_peak") or 0.0
                best[model] = max(best.get(model, 0.0), share)
        if not options.no_peers:
            fixed = f"--micro-batch={size[0].partition('=')[2]}"
            bench = [sys.executable, "scripts/bench_peers.py", fixed, *overrides]
            done = subprocess.run(bench, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=False)
            failed = f"\nbench_peers.py failed: exit code {done.returncode}\n" if done.returncode else ""
            (out / f"peers-{model}.md").write_text(done.stdout + failed, encoding="utf-8")
            print(done.stdout + failed)
    text = "\n".join(lines) + "\n"
    (out / "summary.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{out}")
    print(f"best of {LARGER}: {best.get(LARGER, 0.0):.3f} of the measured peak, expected at least {MIN_MFU}")
    return 0 if best.get(LARGER, 0.0) >= MIN_MFU else 1


def harness(overrides: Sequence[str], *command: str) -> int:
    return subprocess.run([sys.executable, "-m", "harness", *command, *overrides], cwd=PROJECT, check=False).returncode


def fastest_size(overrides: Sequence[str], out: Path) -> list[str]:
    """Return the fastest micro-batch size of the portable track as a setting, or nothing if the search failed."""
    code = harness(layered_settings(overrides, ["experiment=autotune", "track=portable", f"out={out}"]))
    if code != 0:
        print(f"the search for the fastest micro-batch size failed: exit code {code}; using {SAFE_SIZE[0]}")
        return []
    key = "workload.micro_batch_size"
    return [f"{key}={json.loads((out / 'autotune.json').read_text())['settings'][key]}"]


def run(overrides: Sequence[str], out: Path) -> dict[str, Any]:
    """Return the record of one run, or only a status if it did not start."""
    code = harness([*overrides, f"out={out}"])
    path = out / "record.json"
    return json.loads(path.read_text()) if path.exists() else {"status": f"exit code {code}"}


def row(model: str, name: str, record: dict[str, Any]) -> str:
    if record["status"] != "ok":
        return f"| {model} | {name} | {record['status']} | | | | |"
    used, timing = record["utilization"] or {}, record["timing"]
    mfu = ["unknown" if used.get(key) is None else f"{used[key]:.3f}" for key in ("mfu", "mfu_of_measured_peak")]
    peak = (record["memory"] or {}).get("peak_allocated_bytes")
    memory = "unknown" if peak is None else f"{peak / 2**30:.2f}"
    return (
        f"| {model} | {name} | {timing['tokens_per_second']:,.0f} | {mfu[0]} | {mfu[1]} | {memory} | "
        f"{timing['first_step_seconds']:.1f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
