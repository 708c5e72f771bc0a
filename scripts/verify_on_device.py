"""Check the harness on a real device and pack the evidence: see scripts/verify_on_device.sh.

    python scripts/verify_on_device.py BACKEND [--out DIR] [--quick] [SETTINGS...]

SETTINGS are those of the timing run (default: experiment=gpt2 in the best precision of the device). Every check prints
a line; DIR/summary.json holds them, DIR.tar.gz everything: doctor's report, the records, the output of each command.
parity_noise.yaml has the differences between CPU and device, as an entry for configs/parity_noise.yaml.
Exit code 0: every check passed, 1: one failed, 3: the device is not available.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench_parity import differences, write_entry

from harness.records.load import load_runs
from harness.text import layered_settings

PROJECT = Path(__file__).resolve().parent.parent
TIMING_SETTINGS = ("experiment=gpt2", "workload.eval_every=0")
PARITY_SETTINGS = ("experiment=smoke",)
# With --quick, a tiny workload for both, to try the script rather than the device.
QUICK_SETTINGS = (
    "workload=smoke",
    "model.num_hidden_layers=1",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "workload.steps=6",
    "workload.timing_warmup_steps=2",
    "workload.interval_steps=2",
    "workload.seq_len=32",
    "workload.global_batch_size=4",
    "workload.micro_batch_size=2",
    "workload.eval_every=3",
    "workload.eval_sequences=4",
    "workload.lr_warmup_steps=2",
)
# Events and the host clock measure the same work: between two synchronizations they may differ by a launch.
EVENT_TOLERANCE = 0.01
# Repeats on a device that nobody else uses; the work is short.
REPEAT_TOLERANCE = 0.25
REPEATS = 3
UNAVAILABLE = 3


@dataclass
class Check:
    """Result of a check. `passed` is None if it was skipped, for the reason in `detail`."""

    name: str
    passed: bool | None
    detail: str


class Bundle:
    """The folder of all results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checks: list[Check] = []
        self.pairs: list[tuple[Path, Path]] = []
        """Folders of a run on the CPU and of the same on the device."""
        folder.mkdir(parents=True)

    def command(self, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run `python ARGV...`, and keep its output in NAME.log."""
        done = subprocess.run([sys.executable, *argv], cwd=PROJECT, capture_output=True, text=True, check=False)
        text = f"$ python {' '.join(argv)}\n{done.stdout}{done.stderr}exit code {done.returncode}\n"
        (self.folder / f"{name}.log").write_text(text, encoding="utf-8")
        return done

    def check(self, name: str, passed: bool | None, detail: str) -> bool | None:
        """Record and print a result."""
        self.checks.append(Check(name, passed, detail))
        status = {True: "ok", False: "FAILED", None: "skipped"}[passed]
        print(f"{name:<24} {status:<10} {detail}", flush=True)
        return passed

    def pack(self) -> Path:
        """Write the summary and return the archive's path."""
        loaded = [[*load_runs(cpu), *load_runs(device)] for cpu, device in self.pairs]
        if loaded:
            rows = [row for cpu, device in loaded for row in differences("device", cpu, device)]
            write_entry(self.folder / "parity_noise.yaml", "scripts/verify_on_device.py", loaded[0][1].record, rows)
        summary = json.dumps([asdict(check) for check in self.checks], indent=1)
        (self.folder / "summary.json").write_text(summary, encoding="utf-8")
        archive = self.folder.with_name(f"{self.folder.name}.tar.gz")
        with tarfile.open(archive, "w:gz") as file:
            file.add(self.folder, arcname=self.folder.name)
        return archive


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    if options.backend == "cpu":
        print("error: BACKEND: found cpu, the reference of every check; name the device's backend", file=sys.stderr)
        return 2
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
    folder = options.out or PROJECT / "runs" / f"{now}-verify-{options.backend}"
    if folder.exists():
        print(f"error: --out: {folder} exists; name another folder", file=sys.stderr)
        return 2
    bundle = Bundle(folder.resolve())
    if not doctor(bundle, options.backend):
        print(f"bundle: {bundle.pack()}")
        return UNAVAILABLE
    contract(bundle, options.backend)
    shared = QUICK_SETTINGS if options.quick else PARITY_SETTINGS
    precisions = [
        precision for precision in ("fp32", "bf16", "fp16") if parity(bundle, options.backend, precision, shared)
    ]
    best = next((precision for precision in ("bf16", "fp16", "fp32") if precision in precisions), None)
    if best is not None:
        settings = options.settings or list(QUICK_SETTINGS if options.quick else TIMING_SETTINGS)
        timing(bundle, options.backend, layered_settings([f"precision={best}"], settings))
    print(f"bundle: {bundle.pack()}")
    return 1 if any(check.passed is False for check in bundle.checks) else 0


def doctor(bundle: Bundle, backend: str) -> bool:
    """Check that doctor finds the device."""
    done = bundle.command("doctor", "-m", "harness", "doctor", backend, "--json")
    try:
        [report] = json.loads(done.stdout)["backends"]
    except ValueError:
        return bool(bundle.check("doctor", False, (done.stderr.strip().splitlines() or ["no answer"])[-1]))
    if report["ready"]:
        return bool(bundle.check("doctor", True, f"{report['device']['count']} x {report['device']['name']}"))
    problem = report["problems"][0]
    return bool(bundle.check("doctor", False, f"{problem['what']}; {problem['remedy']}"))


def contract(bundle: Bundle, backend: str) -> None:
    """Check the backend against its contract."""
    if find_spec("pytest") is None:
        bundle.check("contract", None, "pytest is not installed (pip install pytest)")
        return
    tests = "tests/test_backend_contract.py"
    # Warnings of the vendor's plug-in are no failures here.
    options = ("-q", "-rs", "-W", "default", "-p", "no:cacheprovider")
    done = bundle.command("contract", "-m", "pytest", *options, tests, "-k", backend)
    lines = done.stdout.splitlines()
    skipped = [line for line in lines if line.startswith("SKIPPED") and f"backend {backend}:" in line]
    last = (skipped or lines or ["no answer"])[-1]
    bundle.check("contract", done.returncode == 0 and not skipped, last)


def parity(bundle: Bundle, backend: str, precision: str, settings: tuple[str, ...]) -> bool:
    """Check that device and CPU compute the same on the same data. Return whether the device has the precision."""
    name = f"parity {precision}"
    folders = {}
    for side in ("cpu", backend):
        label = f"{'device' if side == backend else side}-{precision}"
        folders[side] = bundle.folder / label
        done = bundle.command(
            f"run-{label}", "-m", "harness", f"backend={side}", *settings, f"precision={precision}",
            f"out={folders[side]}",
        )  # fmt: skip
        if done.returncode != 0:
            detail = next((line for line in done.stderr.splitlines() if line.startswith("error: ")), done.stderr[-300:])
            refused = done.returncode == UNAVAILABLE and "precision=" in detail
            bundle.check(name, None if refused else False, detail)
            return False
    bundle.pairs.append((folders["cpu"], folders[backend]))
    report = ["--format", "json", "--out", str(bundle.folder / f"comparison-{precision}")]
    sides = [str(folders["cpu"]), str(folders[backend])]
    done = bundle.command(f"compare-{precision}", "-m", "harness", "compare", *sides, *report)
    gates = [gate for pair in json.loads(done.stdout)["pairs"] for gate in pair["gates"]] if done.stdout else []
    failed = [gate for gate in gates if gate["passed"] is False]
    computed = [gate["summary"] for gate in gates if gate["name"] == "same computation"]
    if failed or not computed:
        detail = failed[0]["summary"] if failed else (done.stderr.strip().splitlines() or ["no answer"])[-1]
        bundle.check(name, False, detail)
    else:
        bundle.check(name, True, computed[0])
    return True


def timing(bundle: Bundle, backend: str, settings: list[str]) -> None:
    """Check that the device's clock and the host's agree, and that repeats do."""
    folder = bundle.folder / "timing"
    done = bundle.command(
        "timing", "-m", "harness", f"backend={backend}", *settings, f"repeats={REPEATS}", f"out={folder}"
    )
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*/record.json"))]
    if done.returncode != 0 or len(records) != REPEATS:
        detail = next((line for line in done.stderr.splitlines() if line.startswith("error: ")), "a run failed")
        bundle.check("timing", False, detail)
        return
    intervals = [interval for record in records for interval in record["timing"]["intervals"]]
    if records[0]["device"]["emulated"]:
        bundle.check("events", None, "the device is emulated: its times are the host's")
    elif any(interval["device_seconds"] is None for interval in intervals):
        bundle.check("events", None, "the device has no events")
    else:
        worst = max(abs(interval["device_seconds"] / interval["seconds"] - 1) for interval in intervals)
        detail = f"sum of event times and host window differ by at most {worst:.2%} in {len(intervals)} intervals"
        bundle.check("events", worst <= EVENT_TOLERANCE, detail)
    bundle.check("repeats", *_repeats(records))


def _repeats(records: list[dict[str, Any]]) -> tuple[bool, str]:
    losses = [record["losses"]["train"] for record in records]
    if any(curve != losses[0] for curve in losses):
        # Not an error: many devices add in an order of their own. The parity gate decides.
        agreement = "losses differ in the last digits from run to run"
    else:
        agreement = "losses equal to the bit"
    if records[0]["device"]["emulated"]:
        return True, f"{agreement}; emulated, so no speed"
    steps = [record["timing"]["mean_step_seconds"] for record in records]
    apart = max(steps) / min(steps) - 1
    return apart <= REPEAT_TOLERANCE, f"{agreement}; step times within {apart:.2%} of each other"


if __name__ == "__main__":
    sys.exit(main())
