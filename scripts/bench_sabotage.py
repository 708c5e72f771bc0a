"""Write harness/docs/sabotages.md: sabotages of runs, and what catches them.

    python scripts/bench_sabotage.py                 bf16, one process: a quarter of an hour on two cores
    python scripts/bench_sabotage.py --on fp32 fp16 bf16-ddp bf16-fsdp
    python scripts/bench_sabotage.py --team second   those that no limit was chosen by
    python scripts/bench_sabotage.py --team clocks   half an hour; needs a quiet machine
    python scripts/bench_sabotage.py --team layouts  faults of parallel layouts: five minutes
    python scripts/bench_sabotage.py --on bf16 fp32 fp16 bf16-ddp bf16-fsdp fp32-ddp fp32-fsdp \\
        --team authors first second clocks layouts > harness/docs/sabotages.md
                                                     an hour and a half
    python scripts/bench_sabotage.py --on bf16-fsdp --all
                                                     with two processes also those that one can have
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import bench_parity

from harness.analysis.run_group import load_run_groups
from harness.analysis.verdict import Pair, compare
from harness.config import PRODUCT_FORMATS
from harness.errors import RecordError
from harness.text import layered_settings
from tests import layouts
from tests.ranks import end_ranks, shared_zygote, start_ranks
from tests.red_team.drive import teams
from tests.red_team.effects import SMALLEST, exceeded, results
from tests.red_team.layouts import LayoutFault
from tests.red_team.sabotages import Sabotage

WORK = (*bench_parity.WORK, *bench_parity.SHAPES["GPT-2"], "workload.steps=60", "workload.timing_warmup_steps=10",
        "workload.eval_every=30", "workload.micro_batch_size=4", "backend.threads=1")  # fmt: skip
SETTINGS = [f"{precision}{suffix}" for precision in PRODUCT_FORMATS for suffix in ("", "-ddp", "-fsdp")]
# Variations that are not of the machine, quick, and not the work's own.
ROUNDING = ("micro-batches of 2", "micro-batches of 1", "attention written out", "AdamW as a loop",
            "attention in float64", "products in float64", "oneDNN off")  # fmt: skip
MAX_CELL = 100
# An effect that has to be caught, as a multiple of the rounding.
CLEAR = 10.0
TIMEOUT_SECONDS = 600
# The error of a run that the sabotage itself has broken, on this rank or another.
BROKEN = re.compile(r"(rank \d+: )?\w*(Error|Exception)\b")
# Processes a side of a sabotage of the clock.
REPEATS = 5
# Sabotages that share their honest runs, so that the machine changes little between the two.
BESIDE = 3
INTRODUCTION = """# Sabotages, and what catches them

Written by `python scripts/bench_sabotage.py`. Each sabotage changes the code of a running run and leaves its settings
as they are. *authors*: by those who wrote the gates. *first* and *second*: by two red teams, neither of which had read
the gates; no limit was chosen by the second's. The table counts what is caught: of all, and of those with an effect of
more than ten times the rounding.
"""
COMPUTATION = """
## Computation

A cell has the test that a sabotage exceeds the most, the difference as a multiple of the largest that honest runs have
in that test (configs/parity_noise.yaml), and the *effect*: what changes in losses, gradient norms, evaluations and
weights, as a multiple of the rounding of this very work. Empty: it does not apply."""
CLOCKS = """
## Clocks

{repeats} honest against {repeats} sabotaged runs, in turn. A cell has the gate that fails, or the verdict."""
LAYOUTS = """
## Layouts

Faults of parallel layouts in float32, each against an honest run of one process; the first eight re-create public
reports. *found*: as above, with the parameter or steps; the effect is a multiple of what an honest run in the same
layout differs by. *curves*: the largest differences of losses and of gradient norms, which may be 1e-5
(`tests/integration/test_mesh.py`)."""
TEAMS = teams()


@dataclass(frozen=True)
class Judged:
    """Outcome of one sabotage in one setting."""

    caught: bool
    by: str
    effect: float | None
    """As a multiple of the rounding of the work; None of a run that cannot be compared."""

    def __str__(self) -> str:
        effect = "" if self.effect is None else f"; effect {self.effect:.2g}"
        return ("" if self.caught else "**passes**: ") + shorten(self.by, MAX_CELL, placeholder=" ...") + effect


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", choices=SETTINGS, default=["bf16"], metavar="SETTING",
                        help="precision, and -ddp or -fsdp for two processes")  # fmt: skip
    parser.add_argument("--team", nargs="+", choices=TEAMS, default=["authors", "first", "second"])
    parser.add_argument("--all", action="store_true", help="with -ddp or -fsdp: also those that one process can have")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, and use those that are there")
    parser.add_argument("names", nargs="*", help="only these sabotages")
    options = parser.parse_args()
    unknown = set(options.names).difference(*(TEAMS[team] for team in options.team))
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no sabotage of --team {' '.join(options.team)}")
    chosen = {team: {name: sabotage for name, sabotage in TEAMS[team].items()
                     if not options.names or name in options.names} for team in options.team}  # fmt: skip
    clocks, of_layouts = chosen.pop("clocks", {}), chosen.pop("layouts", {})
    sabotages = {name: sabotage for team in chosen.values() for name, sabotage in team.items()}
    print(INTRODUCTION)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if sabotages:
            names = {setting: applicable(sabotages, setting, everywhere=options.all) for setting in options.on}
            columns = {setting: judge_computation(folder / setting, setting, own) for setting, own in names.items()}
            print_summary(chosen, columns)
            print(COMPUTATION)
            print_table(sabotages, columns)
        if clocks:
            print(CLOCKS.format(repeats=REPEATS))
            print_table(clocks, {"found": judge_clocks(folder / "clocks", clocks)})
        if of_layouts:
            print(LAYOUTS)
            print_table(of_layouts, judge_layouts(folder / "layouts", of_layouts))
    return 0


def print_summary(chosen: Mapping[str, Mapping[str, Sabotage]], columns: Mapping[str, Mapping[str, Judged]]) -> None:
    """Print how many of each team are caught: of all, and of those with a clear effect."""
    print(f"| team | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for team, sabotages in chosen.items():
        cells = []
        for column in columns.values():
            found = [judged for name, judged in column.items() if name in sabotages]
            clear = [judged for judged in found if judged.effect is None or judged.effect > CLEAR]
            cells.append(f"{sum(j.caught for j in found)} of {len(found)}, "
                         f"{sum(j.caught for j in clear)} of {len(clear)}" if found else "")  # fmt: skip
        print(f"| {team} | {' | '.join(cells)} |")


def print_table(sabotages: Mapping[str, Sabotage], columns: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"\n| sabotage | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, sabotage in sabotages.items():
        cells = [str(column.get(name, "")) for column in columns.values()]
        if any(cells):
            # The first team's own figures follow in brackets.
            about = sabotage.about.partition(" [measured")[0]
            about = f"{name.replace('_', ' ')}: {about}" if about != name else name
            print(f"| {about} | {' | '.join(cells)} |")


def applicable(sabotages: Mapping[str, Sabotage], setting: str, *, everywhere: bool = False) -> list[str]:
    """Return the names of those that the setting's precision and processes can have.

    Args:
        everywhere: of several processes, also those that one process can have.
    """
    precision, _, parallel = setting.partition("-")
    several = bool(parallel) and not everywhere
    # The first team was not asked for fp16: what narrows bf16 narrows fp16.
    known = {precision, {"fp16": "bf16"}.get(precision, precision)}
    return [name for name, sabotage in sabotages.items()
            if known & set(sabotage.precisions) and (parallel or "single") in sabotage.parallel
            and not (several and "single" in sabotage.parallel)]  # fmt: skip


def judge_computation(folder: Path, setting: str, names: Sequence[str]) -> dict[str, Judged]:
    """Run and judge sabotages of the computation, two at a time."""
    with ThreadPoolExecutor(1 if "-" in setting else 2) as pool:
        list(pool.map(lambda name: run(folder / name, name, setting), ["none", *names]))
    noise = rounding(folder, setting)
    return {name: judge(folder / "none", folder / name, noise) for name in names}


def judge_clocks(folder: Path, sabotages: Mapping[str, Sabotage]) -> dict[str, Judged]:
    """Run and judge sabotages of clocks, one run at a time: an honest one, then one of each of a few sabotages."""
    found = {}
    names = applicable(sabotages, "bf16")
    for first in range(0, len(names), BESIDE):
        together = names[first : first + BESIDE]
        honest = folder / f"honest beside {' '.join(together)}"
        for number in range(1, REPEATS + 1):
            run(honest / str(number), "none", "bf16")
            for name in together:
                run(folder / name / str(number), name, "bf16")
        found.update({name: judge(honest, folder / name, None) for name in together})
    return found


def judge_layouts(folder: Path, faults: Mapping[str, Sabotage]) -> dict[str, dict[str, str]]:
    """Run and judge faults of layouts, two at a time; return the columns of their table."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {name: fault for name, fault in faults.items() if isinstance(fault, LayoutFault)}
    works = {(fault.model, layout) for fault in kinds.values() for layout in ("", fault.layout)}
    with ThreadPoolExecutor(2) as pool:
        honest = dict(zip(works, pool.map(lambda work: layouts.honest(folder, *work), works), strict=True))
        judged = pool.map(lambda name: judge_layout(folder, name, kinds[name], honest), kinds)
        cells = dict(zip(kinds, judged, strict=True))
    return {
        "layout": {name: f"`{fault.layout}`, {fault.model}" for name, fault in kinds.items()},
        "found": {name: found for name, (found, _) in cells.items()},
        "curves": {name: curves for name, (_, curves) in cells.items()},
    }


def judge_layout(
    folder: Path, name: str, fault: LayoutFault, honest: Mapping[tuple[str, str], Path]
) -> tuple[str, str]:
    """Run a fault of a layout; return by what it is found, and the largest differences of its curves."""
    found = layouts.train(folder, fault.layout, layouts.short_work(fault.model), name, fault=name)
    alone = honest[fault.model, ""]
    if isinstance(found, str):
        return str(judge(alone, folder / name, None)), ""
    noise, apart = results(alone, honest[fault.model, fault.layout]), results(alone, found)
    effect = max(value / max(noise.get(key, 0.0), SMALLEST) for key, value in apart.items())
    worst = max(layouts.compare(alone, found, "fp32"), key=lambda finding: finding.share)
    by = f"{exceeded(worst)}{re.sub(r',? ?/[^)]*', '', worst.where)}"
    return str(Judged(worst.passed is False, by, effect)), layouts.difference(alone, found, "fp32")


def run(out: Path, name: str, setting: str) -> None:
    """Run a sabotage, or none, unless its record is there. A run that fails leaves no record that is ok."""
    if (out / "record.json").exists():
        return
    precision, _, parallel = setting.partition("-")
    overrides = layered_settings(WORK, [f"parallel={parallel or 'single'}", f"precision={precision}", f"out='{out}'"])
    os.environ.update(OMP_WAIT_POLICY="passive", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    module = "tests.ranks" if name == "none" else "tests.red_team.drive"
    if name in TEAMS["clocks"]:
        # A process of its own: modules that a fork has imported already keep their clocks.
        subprocess.run([sys.executable, "-m", module, name, *overrides], cwd=bench_parity.PROJECT, check=False,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    elif parallel:
        end_ranks(start_ranks(2, overrides, bench_parity.PROJECT, fault=name, module=module), TIMEOUT_SECONDS)
    else:
        process = shared_zygote().start([module, name, *overrides], bench_parity.PROJECT, os.environ)
        end_ranks([process], TIMEOUT_SECONDS)


def rounding(folder: Path, setting: str) -> dict[tuple[str, int], float]:
    """Return the largest honest difference of each result of this work, by test and segment."""
    precision = setting.partition("-")[0]
    home = folder.parent / f"rounding-{precision}"
    for name in ROUNDING:
        bench_parity.run(home / name, layered_settings(WORK, [f"precision={precision}"]), bench_parity.VARIATIONS[name])
    largest: dict[tuple[str, int], float] = {}
    for name in ROUNDING:
        for key, value in results(folder / "none", home / name).items():
            largest[key] = max(largest.get(key, SMALLEST), value)
    return largest


def judge(honest: Path, sabotaged: Path, noise: Mapping[tuple[str, int], float] | None) -> Judged:
    """Compare the runs in two folders. A sabotage that breaks its own run is not caught."""
    load_run_groups([honest])
    records = [json.loads(path.read_text()) for path in sabotaged.rglob("record.json")]
    broken = [record["error"] for record in records if BROKEN.match(record["error"] or "")]
    if broken or not records:
        return Judged(False, f"no run: {broken[0] if broken else 'no record'}", None)
    try:
        [pair] = compare(load_run_groups([honest, sabotaged])).pairs
    except RecordError as error:
        return Judged(True, f"refused: {str(error).partition(': ')[2]}", None)
    effect = None
    if noise is not None and pair.findings:
        apart = results(honest, sabotaged)
        effect = max((value / noise.get(key, SMALLEST) for key, value in apart.items()), default=0.0)
    return Judged(any(gate.passed is False for gate in pair.gates), reason(pair), effect)


def reason(pair: Pair) -> str:
    """Return what a pair fails by, or its verdict and what comes nearest to a limit."""
    gates = [gate for gate in pair.gates if gate.passed is False]
    worst = max(pair.findings, key=lambda finding: finding.share, default=None)
    if worst is not None and (worst.passed is False or not gates):
        if gates:
            return exceeded(worst)
        cautions = ", ".join(sorted({caution.name for caution in pair.cautions}))
        return f"{pair.verdict} ({exceeded(worst)}; cautions: {cautions or 'none'})"
    if not gates:
        return pair.verdict
    # Details begin with the run's folder.
    return f"{gates[0].name}: {re.sub(r'^/[^:]*: ', '', [*gates[0].details, gates[0].summary][0])}"


if __name__ == "__main__":
    sys.exit(main())
