"""Sabotages that the gates catch: the red team's, which knew nothing of the gates, each in a run of its own.

    python scripts/bench_sabotage.py                        computation in bf16, a quarter of an hour on two cores
    python scripts/bench_sabotage.py --precision fp32
    python scripts/bench_sabotage.py --parallel ddp         two processes a run, half an hour
    python scripts/bench_sabotage.py --timing               clocks; needs a quiet machine

Each run is compared with an honest one. The table names the tests that fail, with the difference as a multiple of the
limit, and what remains of a sabotage that passes: its largest share of a limit, and its cautions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.analysis.run_group import load_run_groups
from harness.analysis.verdict import compare
from harness.errors import RecordError
from tests.red_team.sabotages import COMPUTATION, TIMING

PROJECT = Path(__file__).resolve().parent.parent
WORK = (
    "model=tiny", "model.num_hidden_layers=2", "model.hidden_size=64", "model.num_attention_heads=4", "model.bias=true",
    "workload=smoke", "workload.steps=60", "workload.timing_warmup_steps=10", "workload.seq_len=64",
    "workload.global_batch_size=8", "workload.eval_every=30", "workload.max_grad_norm=0.5", "backend.threads=1",
)  # fmt: skip
DRIVER = PROJECT / "tests" / "red_team" / "drive.py"
HONEST = "honest"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--parallel", choices=("single", "ddp", "fsdp"), default="single")
    parser.add_argument("--timing", action="store_true", help="sabotages of the clock instead of the computation")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, and use those that are there")
    parser.add_argument("names", nargs="*", help="only these sabotages")
    options = parser.parse_args()
    known = TIMING if options.timing else COMPUTATION
    names = [
        name
        for name, sabotage in known.items()
        if options.precision in sabotage.precisions
        and options.parallel in sabotage.parallel
        and (not options.names or name in options.names)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        # Clocks need the machine for themselves, and a distributed run has two processes.
        with ThreadPoolExecutor(2 if options.parallel == "single" and not options.timing else 1) as pool:
            list(pool.map(lambda name: run(folder / name, name, options), [HONEST, *names]))
        caught = sum(judge(folder, name) for name in names)
    print(f"{caught} of {len(names)} caught")
    return 0


def run(out: Path, name: str, options: argparse.Namespace) -> None:
    """Run a sabotage, or the honest run, unless its record is there. A run that fails leaves no record that is ok."""
    if (out / "record.json").exists():
        return
    distributed = options.parallel != "single"
    launcher = ["torchrun", "--standalone", "--nproc-per-node=2"] if distributed else [sys.executable]
    program = ["-m", "harness"] if name == HONEST else [str(DRIVER), name]
    overrides = [*WORK, f"workload.micro_batch_size={2 if distributed else 4}", f"parallel={options.parallel}",
                 f"precision={options.precision}", f"out='{out}'"]  # fmt: skip
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    subprocess.run([*launcher, *program, *overrides], env={**environment, "PYTHONPATH": str(PROJECT)},
                   capture_output=True, check=False)  # fmt: skip


def judge(folder: Path, name: str) -> bool:
    """Print what caught a sabotage, and return whether anything did."""
    try:
        [pair] = compare(load_run_groups([folder / HONEST, folder / name])).pairs
    except RecordError as error:
        print(f"{name:<36}refused: {error}")
        return True
    failed = sorted((f for f in pair.findings if f.passed is False), key=lambda f: -f.share)
    gates = [gate for gate in pair.gates if gate.passed is False]
    if failed:
        print(f"{name:<36}" + ", ".join(f"{finding.key} {finding.share:.3g}" for finding in failed[:4]))
    elif gates:
        print(f"{name:<36}{gates[0].name}: {gates[0].details[0] if gates[0].details else gates[0].summary}")
    else:
        nearest = max(pair.findings, key=lambda finding: finding.share)
        cautions = ", ".join(sorted({caution.name for caution in pair.cautions}))
        print(f"{name:<36}passes ({nearest.key} {nearest.share:.2f} of its limit; cautions: {cautions or 'none'})")
    return bool(gates)


if __name__ == "__main__":
    sys.exit(main())
