"""Differences between honest runs of the same work: the evidence behind the limits of *same computation*.

The same work is computed with other rounding, in every way that a machine offers: threads, micro-batches, recomputed
activations, attention written out and in float64, products summed in float64, AdamW as a loop, oneDNN off, other
instruction sets, the tuned kernels, two processes, and the emulated NPU where torch-npu is installed. Two shapes,
several lengths.

    python scripts/bench_parity.py                               an hour and a half on two cores
    python scripts/bench_parity.py --steps 60 --precisions bf16  four minutes
    python scripts/bench_parity.py seed=7 model.num_hidden_layers=3 model.hidden_size=96 model.num_attention_heads=6
                                                                 other work than that of the limits
    python scripts/bench_parity.py --entry entry.yaml            also writes an entry for configs/parity_noise.yaml
    python scripts/bench_parity.py --entry entry.yaml backend=cuda

The table shows the largest difference of each test, and the variation that has it. `compare --calibration entry.yaml`
uses an entry at once. Exit code 1 if an honest pair would fail a gate.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# As harness/__main__.py does: an installed plug-in of torch must not be loaded.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import yaml

from harness.analysis.calibration import load_calibration, segment_end
from harness.analysis.parity import TESTS, compare_computation
from harness.analysis.timing_evidence import timing_problems
from harness.config import PRECISIONS
from harness.records.load import LoadedRecord, load_runs
from harness.text import layered_settings

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

WORK = (
    "model=tiny",
    "model.num_hidden_layers=2",
    "model.hidden_size=64",
    "model.num_attention_heads=4",
    "workload=smoke",
    "workload.seq_len=64",
    "workload.global_batch_size=8",
    "workload.micro_batch_size=8",
    "workload.max_grad_norm=0.5",
)
SHAPES = {
    "GPT-2": ("model.bias=true",),
    "Llama": (
        "model.num_key_value_heads=2",
        "model.norm=rmsnorm",
        "model.activation=swiglu",
        "model.tie_word_embeddings=false",
    ),
}


@dataclass(frozen=True)
class Variation:
    """One way to compute the same work with other rounding."""

    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    patch: str | None = None
    """Name of a function in PATCHES."""
    launcher: tuple[str, ...] = ()
    """Empty: a fork of a process that has imported torch, or on another device than the CPU a fresh interpreter."""
    emulated: bool = False
    cpu_only: bool = False


TIMEOUT_SECONDS = 3600
PYTHON = (sys.executable,)
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node=2")
VARIATIONS = {
    "micro-batches of 2": Variation(("workload.micro_batch_size=2",)),
    "micro-batches of 1": Variation(("workload.micro_batch_size=1",)),
    "recomputed activations": Variation(("model.activation_checkpointing=true",)),
    "attention written out": Variation(patch="attention"),
    "AdamW as a loop": Variation(patch="loop"),
    "tuned kernels": Variation(("track=tuned", "track.compile=no")),
    "attention in float64": Variation(patch="attention64", cpu_only=True),
    "products in float64": Variation(patch="linear64", cpu_only=True),
    "all threads": Variation(("backend.threads=null",), cpu_only=True),
    "oneDNN off": Variation(patch="onednn", cpu_only=True),
    "AVX2": Variation(
        environment={"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, launcher=PYTHON, cpu_only=True
    ),
    "no SIMD": Variation(
        environment={"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}, launcher=PYTHON, cpu_only=True
    ),
    "ddp": Variation(("parallel=ddp", "workload.micro_batch_size=2"), launcher=TORCHRUN, cpu_only=True),
    "fsdp": Variation(("parallel=fsdp", "workload.micro_batch_size=2"), launcher=TORCHRUN, cpu_only=True),
}
if find_spec("torch_npu"):
    VARIATIONS["emulated NPU"] = Variation(("backend=npu",), emulated=True, cpu_only=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 240, 600])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--entry", type=Path, help="write the largest differences to this file")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, and use those that are there")
    parser.add_argument("--patch", choices=PATCHES, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="settings of the harness, such as backend=cuda")
    options = parser.parse_args(argv)
    if options.patch is not None:
        return run_patched(options.patch, options.overrides)
    with tempfile.TemporaryDirectory() as temporary:
        pairs = list(honest_pairs(options.keep or Path(temporary), options))
        failed = [alarm for pair in pairs for alarm in alarms(pair)]
    found = [row for pair in pairs for row in differences(pair.variation, pair.reference, pair.other)]
    for precision in options.precisions:
        print_table(precision, [row for row in found if row.precision == precision])
    print(*failed, sep="\n")
    # Imported where used: each fork imports this file.
    from scipy import stats

    accused = len({alarm.partition(": ")[0] for alarm in failed})
    bound = stats.binomtest(accused, len(pairs)).proportion_ci(0.95).high
    print(f"{accused} false alarms in {len(pairs)} honest pairs: at most {bound:.1%} (95 % interval)")
    if options.entry:
        source = f"scripts/bench_parity.py, {len({row.variation for row in found})} variations"
        write_entry(options.entry, source, pairs[0].reference.record, found)
        print(f"wrote {options.entry}")
    return 1 if failed else 0


@dataclass(frozen=True)
class HonestPair:
    """A run and another of the same work, with other rounding."""

    variation: str
    reference: LoadedRecord
    other: LoadedRecord


def alarms(pair: HonestPair) -> Iterator[str]:
    """Yield what the gates of a verdict would hold against the pair: tests that fail, and contradictions in the times.

    Its processes are left aside: one is compared with two.
    """
    name, precision = pair.other.path.parent, pair.reference.record["config"]["precision"]
    for result in compare_computation(pair.reference, [pair.other], precision, load_calibration()):
        if result.passed is False:
            yield f"{name}: {result.text}"
    for problem in timing_problems(pair.other.record):
        yield f"{name}: {problem}"


def honest_pairs(folder: Path, options: argparse.Namespace) -> Iterator[HonestPair]:
    """Run everything that is not in the folder yet, two at a time on a CPU, and yield all pairs."""
    on_cpu = is_on_cpu(options.overrides)
    variations = {name: how for name, how in VARIATIONS.items() if on_cpu or not how.cpu_only}
    works = list(itertools.product(options.steps, options.precisions, SHAPES))
    jobs = []
    for steps, precision, shape in works:
        lengths = [f"workload.steps={steps}", f"workload.eval_every={steps // 2}"]
        threads = ["backend.threads=1"] if on_cpu else []
        base = layered_settings(WORK, SHAPES[shape], lengths, threads, [f"precision={precision}"], options.overrides)
        home = folder / f"{shape}-{precision}-{steps}"
        jobs += [(home / name, base, how) for name, how in {"reference": Variation(), **variations}.items()]
    if on_cpu:
        # Here, since the tests' modules set signals, which only the main thread can. They hide torch-npu, which a run
        # on an NPU needs.
        importlib.import_module("tests.ranks")
    with ThreadPoolExecutor(2 if on_cpu else 1) as pool:
        list(pool.map(run, *zip(*jobs, strict=True)))
    for steps, precision, shape in works:
        home = folder / f"{shape}-{precision}-{steps}"
        [reference] = load_runs(home / "reference")
        for name in variations:
            [other] = load_runs(home / name)
            yield HonestPair(name, reference, other)


def run(out: Path, base: list[str], how: Variation) -> None:
    """Run one variation in a process of its own, unless its record is there."""
    if (out / "record.json").exists():
        return
    program = ["bench_parity", "--patch", how.patch, "--"] if how.patch else ["harness"]
    path = os.pathsep.join((str(PROJECT), str(PROJECT / "scripts")))
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": path, **how.environment}
    settings = layered_settings(base, how.overrides)
    argv = [*program, *settings, f"out='{out}'"]
    launcher = emulated_python() if how.emulated else how.launcher
    if not launcher and not is_on_cpu(settings):
        launcher = PYTHON
    if launcher:
        done = subprocess.run([*launcher, "-m", *argv], env=environment, cwd=PROJECT, capture_output=True, text=True,
                              check=False)  # fmt: skip
        code, err = done.returncode, done.stderr
    else:
        from tests.ranks import end_ranks, shared_zygote

        [ended] = end_ranks([shared_zygote().start(argv, PROJECT, environment)], TIMEOUT_SECONDS)
        code, err = ended.code, ended.err
    if code:
        sys.exit(f"{out}: {[*err.strip().splitlines(), 'no message'][-1]}")


def is_on_cpu(settings: Sequence[str]) -> bool:
    return all(setting == "backend=cpu" for setting in settings if setting.startswith("backend="))


@cache
def emulated_python() -> tuple[str, ...]:
    """Build the emulated CANN, and return a command that runs Python on it."""
    command = [sys.executable, "-m", "tests.cann_emulator"]
    cann = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.strip()
    return ("bash", "-c", f". '{cann}/set_env.sh' && exec \"$@\"", "bash", sys.executable)


@dataclass(frozen=True)
class Row:
    """One difference of an honest pair, in the unit of its test."""

    precision: str
    steps: int
    variation: str
    test: str
    segment: int
    value: float


def differences(variation: str, reference: LoadedRecord, other: LoadedRecord) -> Iterator[Row]:
    """Yield the largest difference of each test, in each segment."""
    precision, steps = reference.record["config"]["precision"], reference.record["config"]["workload"]["steps"]
    for test in TESTS:
        largest: dict[int, float] = {}
        unit = test.unit(reference.record, other.record)
        for found in test.differences(reference.record, other.record):
            largest[found.segment] = max(largest.get(found.segment, 0.0), abs(found.value or 0.0) / unit)
        for segment, value in largest.items():
            yield Row(precision, steps, variation, test.key, segment, value)


def print_table(precision: str, rows: list[Row]) -> None:
    """Print the largest difference of each test and segment, and its limit."""
    calibration = load_calibration()
    print(f"\n{precision:<22}{'segment':>12}{'largest':>10}{'limit':>10}{'share':>7}  variation")
    for test in TESTS:
        for segment in sorted({row.segment for row in rows if row.test == test.key}):
            worst = max(
                (row for row in rows if (row.test, row.segment) == (test.key, segment)), key=lambda row: row.value
            )
            limit = test.multiple * calibration.honest(test.key, precision, segment)
            share = worst.value / limit if limit else 0.0
            where = f"to {segment_end(segment)}" if test.by_segment else ""
            print(f"{test.key:<22}{where:>12}{worst.value:>10.1e}{limit:>10.1e}{share:>7.2f}  "
                  f"{worst.variation}, {worst.steps} steps")  # fmt: skip


def write_entry(file: Path, source: str, record: Mapping[str, Any], rows: list[Row]) -> None:
    """Write the largest differences as an entry of configs/parity_noise.yaml, for the device of `record`."""
    noise: dict[str, dict[str, list[float] | float]] = {}
    for test in TESTS:
        for precision in dict.fromkeys(row.precision for row in rows):
            own = [row for row in rows if (row.test, row.precision) == (test.key, precision)]
            if own:
                last = max(row.segment for row in own)
                values = [max((row.value for row in own if row.segment == segment), default=0.0)
                          for segment in range(last + 1)]  # fmt: skip
                rounded = [float(f"{value:.2g}") for value in values]
                noise.setdefault(test.key, {})[precision] = rounded if test.by_segment else rounded[0]
    entry = {
        "source": source,
        "device": record["device"]["name"],
        "software": f"torch {record['backend']['versions']['torch']}",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "noise": noise,
    }
    file.write_text(yaml.safe_dump([entry], sort_keys=False, width=120, default_flow_style=None), encoding="utf-8")


def run_patched(name: str, overrides: list[str]) -> int:
    """Run the harness in this process after a patch."""
    PATCHES[name]()
    from harness.__main__ import main as harness

    return harness(overrides)


def attention(*, in_float64: bool) -> None:
    """Write causal attention out from its definition, with the softmax in float32 or all in float64."""
    import torch

    from harness.workload import model

    def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups, dtype = q.shape[1] // k.shape[1], v.dtype
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        if in_float64:
            q, k, v = q.double(), k.double(), v.double()
        with torch.autocast(q.device.type, enabled=not in_float64 and torch.is_autocast_enabled(q.device.type)):
            scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(v.dtype, torch.float32)) / q.shape[-1] ** 0.5
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            return (scores.masked_fill(future, float("-inf")).softmax(-1).to(v.dtype) @ v).to(dtype)

    model.causal_attention = written_out


def linear_in_float64() -> None:
    """Sum the products of linear layers in float64, from operands of the run's precision."""
    import torch

    def forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        with torch.autocast("cpu", enabled=False):
            y = x.to(dtype).double() @ self.weight.to(dtype).double().T
            return (y if self.bias is None else y + self.bias.to(dtype).double()).to(dtype)

    torch.nn.Linear.forward = forward  # pyright: ignore[reportAttributeAccessIssue]


def loop_over_parameters() -> None:
    """Make AdamW update one parameter at a time."""
    from harness.training import prepare

    build = prepare.build_optimizer
    prepare.build_optimizer = lambda model, work, track: build(model, work, replace(track, adamw="for_loop"))


def onednn_off() -> None:
    import torch

    torch.backends.mkldnn.enabled = False  # pyright: ignore[reportAttributeAccessIssue]


PATCHES: dict[str, Callable[[], None]] = {
    "attention": partial(attention, in_float64=False),
    "attention64": partial(attention, in_float64=True),
    "linear64": linear_in_float64,
    "loop": loop_over_parameters,
    "onednn": onednn_off,
}


if __name__ == "__main__":
    sys.exit(main())
