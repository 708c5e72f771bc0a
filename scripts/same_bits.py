"""Proves that a change left the work alone: runs the same trainings before and after it, and compares them to the bit.

    python scripts/same_bits.py HEAD~1                # another commit against this working tree
    python scripts/same_bits.py HEAD~1 --only llama --renamed workload.timing_warmup_steps=workload.warmup_steps

Compared are the losses and gradient norms of every step, the evaluations, the digests of initial weights and batches,
and the norms of the final weights. `--renamed NEW=OLD` is for a change that renames a setting: OLD is its name in the
commit before. The emulated NPU needs torch-npu and g++; without them its case is skipped, and the output says so. Exit
code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
SHORT = [
    "workload.steps=6",
    "workload.timing_warmup_steps=2",
    "workload.lr_warmup_steps=2",
    "workload.eval_every=3",
    "workload.eval_sequences=4",
]
SMALL_BATCH = [
    "workload.seq_len=64",
    "workload.global_batch_size=4",
    "workload.micro_batch_size=2",
]
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node=2"]
# Case: words of the command line, without out=.
CASES: dict[str, list[str]] = {
    "smoke-fp32": ["experiment=smoke"],
    "tiny-standard": ["model=tiny", "workload=standard", *SHORT],
    "gpt2": ["model=gpt2-124m", "workload=smoke", *SHORT, *SMALL_BATCH],
    "llama": ["model=llama-30m", "workload=smoke", *SHORT, *SMALL_BATCH],
    "bf16": ["experiment=smoke", "precision=bf16"],
    "tuned-bf16": ["experiment=smoke", "precision=bf16", "track=tuned", "track.compile=no"],
    "ddp": [*TORCHRUN, "experiment=smoke", "parallel=ddp", "workload.micro_batch_size=4"],
    "fsdp": [*TORCHRUN, "experiment=smoke", "parallel=fsdp", "precision=bf16", "workload.micro_batch_size=2"],
    "emulated-npu": ["backend=npu", "experiment=smoke"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares trainings before and after a change, to the bit.")
    parser.add_argument("before", help="the commit to compare this working tree with")
    parser.add_argument("--only", action="append", choices=CASES, help="run only this case; may be repeated")
    parser.add_argument("--renamed", action="append", default=[], metavar="NEW=OLD", help="a setting's earlier name")
    options = parser.parse_args()
    renamed = dict(pair.split("=", 1) for pair in options.renamed)
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        old_tree = Path(scratch) / "before"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(old_tree), options.before], check=True)
        try:
            for case in options.only or CASES:
                if case == "emulated-npu" and not _has_emulator():
                    print(f"{case}: skipped, torch-npu is not installed or g++ is missing")
                    continue
                old_words = [_old_name(word, renamed) for word in CASES[case]]
                before = _run(old_tree, case, old_words, Path(scratch) / f"{case}-before")
                after = _run(PROJECT, case, CASES[case], Path(scratch) / f"{case}-after")
                differing = [name for name in before if before[name] != after[name]]
                failed = failed or bool(differing)
                verdict = f"DIFFERS in {', '.join(differing)}" if differing else "the same bits"
                print(
                    f"{case}: {verdict} ({len(before['losses'])} steps, last loss {after['losses'][-1]!r})", flush=True
                )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old_tree)], check=True)
    return 1 if failed else 0


def _old_name(word: str, renamed: dict[str, str]) -> str:
    key, equals, value = word.partition("=")
    return f"{renamed.get(key, key)}{equals}{value}"


def _has_emulator() -> bool:
    return find_spec("torch_npu") is not None and shutil.which("g++") is not None


def _run(tree: Path, case: str, words: list[str], out: Path) -> dict[str, Any]:
    """Run one case with the code of `tree` and return what it computed."""
    command = [sys.executable, "-m", "harness", *words, "backend.threads=1", "log_level=error", f"out={out}"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    if case == "emulated-npu":
        folder = subprocess.run(
            [sys.executable, "-m", "tests.cann_emulator"], cwd=tree, check=True, capture_output=True, text=True
        ).stdout.strip()
        command = ["bash", "-c", '. "$0/set_env.sh"; exec "$@"', folder, *command]
    # The tree is the working folder, so that its package is found before an installed one.
    done = subprocess.run(command, cwd=tree, env=environment, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{case} in {tree} ended with exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    record = json.loads((out / "record.json").read_text())
    rows = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    return {
        "losses": [row["loss"] for row in rows],
        "gradient norms": [row["gradient_norm"] for row in rows],
        "evaluations": [(point["step"], point["loss"], point["batches"]) for point in record["eval"]["points"]],
        "digests": record["digests"],
        "final norms": record["weights"]["final_norms"],
    }


if __name__ == "__main__":
    sys.exit(main())
