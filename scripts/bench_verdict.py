"""Error rates of the verdict: false alarms between identical processes, and the slowdowns that it detects.

    python scripts/bench_verdict.py                   simulated: about three minutes
    python scripts/bench_verdict.py --real 100        100 comparisons of the harness with itself, with one, three and
                                                      five repeats a side: half an hour on two cores
    python scripts/bench_verdict.py --real 100 --beside 'python scripts/bench_sabotage.py'
                                                      the same on a busy machine: the command competes, again and again

Simulated processes have the step times of a real run: the deviations of its intervals are resampled in runs of
consecutive intervals, so that they stay autocorrelated and bursty, and every process gets its own level (normal, or
sometimes disturbed). A false alarm is any pair of identical processes with a significant difference, whether the
verdict is "faster", "slower" or "equivalent".

A real comparison has five runs a side, in the order of `compare --run`. Its first runs are also judged as comparisons
of one and of three a side.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from harness_runs import run_harness
from scipy import stats

from harness.analysis.cautions import interval_step_seconds
from harness.analysis.ratio_statistics import Ratio, ratio_of, single_run_ratio_of
from harness.analysis.run_group import load_run_groups
from harness.analysis.verdict import FASTER, SLOWER, Pair, compare
from harness.commands.interleaved_runs import balanced_order

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.ranks import end_ranks, shared_zygote  # noqa: E402

MARGIN = 0.05
REPEATS = (3, 5, 10)
REAL_REPEATS = (1, 3, 5)
SIDES = ("reference", "other")
# A second of training, in ten intervals.
REAL = ("experiment=smoke", "workload.steps=24", "workload.timing_warmup_steps=4", "workload.interval_steps=2",
        "workload.eval_every=0", "fingerprint=false", "telemetry=false", "backend.threads=1")  # fmt: skip
TIMEOUT_SECONDS = 600
SLOWDOWNS = (0.01, 0.03, 0.05, 0.10)
INTERVALS = 40
# Consecutive intervals that are resampled together.
RUN_LENGTH = 5
# Standard deviation of a simulated process's intervals.
WITHIN = 0.02
SMOKE = ("experiment=smoke", "workload.steps=110", "workload.interval_steps=2", "workload.eval_every=0")

Levels = Callable[[np.random.Generator, int], np.ndarray]
# Distributions of the level of a process, as a logarithm.
NOISE: dict[str, Levels] = {
    "0.5 % between processes": lambda source, count: source.normal(0, 0.005, count),
    "1 %": lambda source, count: source.normal(0, 0.01, count),
    "2 %": lambda source, count: source.normal(0, 0.02, count),
    "5 %": lambda source, count: source.normal(0, 0.05, count),
    "1 %, heavy tails (t, 3 d.f.)": lambda source, count: 0.01 * source.standard_t(3, count) / np.sqrt(3),
    "1 %, one in ten 10 % slower": lambda source, count: (
        source.normal(0, 0.01, count) + 0.10 * (source.random(count) < 0.1)
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--real", type=int, default=0, metavar="TRIES")
    parser.add_argument("--beside", metavar="COMMAND", help="with --real: a program that competes for the machine")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.real:
        return real(options.real, options.beside)
    source = np.random.default_rng(options.seed)
    deviations = real_deviations()
    print(f"False alarms in {options.pairs} pairs of identical processes (95 % interval)")
    print(f"{'noise':<32}" + "".join(f"{f'{repeats} repeats':>24}" for repeats in (1, *REPEATS)))
    for name, levels in NOISE.items():
        cells = [alarms(levels, deviations, repeats, options.pairs, source) for repeats in (1, *REPEATS)]
        print(f"{name:<32}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    print(
        f"\nOf {options.pairs} pairs of identical processes, `--expect not-slower` is not shown (margin {MARGIN:.0%})"
    )
    print(f"{'noise':<32}" + "".join(f"{f'{repeats} repeats':>24}" for repeats in REPEATS))
    for name, levels in NOISE.items():
        cells = [not_shown(levels, deviations, repeats, options.pairs, source) for repeats in REPEATS]
        print(f"{name:<32}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    print(f"\nOf {options.pairs // 4} pairs with a slowdown: found different / called slower (margin {MARGIN:.0%})")
    print(f"{'noise':<32}{'repeats':>8}" + "".join(f"{slowdown:>14.0%}" for slowdown in (0.0, *SLOWDOWNS)))
    for name, levels in list(NOISE.items())[:4]:
        for repeats in REPEATS:
            cells = [power(levels, deviations, repeats, slowdown, options.pairs // 4, source)
                     for slowdown in (0.0, *SLOWDOWNS)]  # fmt: skip
            print(f"{name:<32}{repeats:>8}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    return 0


def real_deviations() -> np.ndarray:
    """Return the logarithms of the step times of a real run's intervals, less their mean, scaled to WITHIN.

    The pattern is the machine's. The scale is fixed, so that other load on the machine does not change the table.
    """
    record, _ = run_harness(SMOKE)
    logs = np.log(interval_step_seconds(record))
    centered = logs - logs.mean()
    print(f"within a real process: intervals' standard deviation {centered.std():.2%}, lag-1 autocorrelation "
          f"{np.corrcoef(centered[:-1], centered[1:])[0, 1]:+.2f}; scaled to {WITHIN:.0%}\n")  # fmt: skip
    return centered * (WITHIN / centered.std())


def processes(levels: Levels, deviations: np.ndarray, repeats: int, source: np.random.Generator) -> np.ndarray:
    """Return the step times of `repeats` processes: [repeats, INTERVALS]."""
    starts = source.integers(len(deviations), size=(repeats, INTERVALS // RUN_LENGTH, 1))
    inside = deviations[(starts + np.arange(RUN_LENGTH)) % len(deviations)].reshape(repeats, INTERVALS)
    return 0.1 * np.exp(levels(source, repeats)[:, None] + inside)


def pairs_of(levels: Levels, deviations: np.ndarray, repeats: int, slowdown: float, count: int,
             source: np.random.Generator) -> Iterator[Ratio]:  # fmt: skip
    for _ in range(count):
        reference = processes(levels, deviations, repeats, source)
        other = processes(levels, deviations, repeats, source) * (1 + slowdown)
        if repeats == 1:
            yield single_run_ratio_of(
                [list(row) for row in reference],
                [list(row) for row in other],
                MARGIN,
                (list(reference.mean(axis=1)), list(other.mean(axis=1))),
            )
        else:
            yield ratio_of(list(reference.mean(axis=1)), list(other.mean(axis=1)), MARGIN, plan=False)


def alarms(levels: Levels, deviations: np.ndarray, repeats: int, count: int, source: np.random.Generator) -> str:
    return _rate([ratio.differs for ratio in pairs_of(levels, deviations, repeats, 0.0, count, source)])


def not_shown(levels: Levels, deviations: np.ndarray, repeats: int, count: int, source: np.random.Generator) -> str:
    return _rate([not ratio.not_slower for ratio in pairs_of(levels, deviations, repeats, 0.0, count, source)])


def _rate(events: list[bool]) -> str:
    share, interval = sum(events) / len(events), stats.binomtest(sum(events), len(events)).proportion_ci(0.95)
    return f"{share:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def power(levels: Levels, deviations: np.ndarray, repeats: int, slowdown: float, count: int,
          source: np.random.Generator) -> str:  # fmt: skip
    ratios = list(pairs_of(levels, deviations, repeats, slowdown, count, source))
    found = sum(ratio.differs and ratio.estimate > 1 for ratio in ratios) / count
    slower = sum(ratio.differs and ratio.estimate > 1 and not ratio.equivalent for ratio in ratios) / count
    return f"{found:.0%} / {slower:.0%}"


def real(tries: int, beside: str | None) -> int:
    """Compare the harness with itself `tries` times, and count the verdicts by repeats."""
    verdicts: dict[int, Counter[str]] = {repeats: Counter() for repeats in REAL_REPEATS}
    with competing(beside), tempfile.TemporaryDirectory() as temporary:
        for number in range(1, tries + 1):
            folder = Path(temporary) / str(number)
            made: Counter[int] = Counter()
            for side in balanced_order(len(SIDES), max(REAL_REPEATS), random.Random(number)):
                made[side] += 1
                run_once(folder / SIDES[side] / str(made[side]))
            for repeats in REAL_REPEATS:
                pair = judged(folder, repeats)
                verdicts[repeats][pair.verdict] += 1
                ratio = pair.quantities[0].ratio.estimate if pair.quantities else float("nan")
                print(f"{number:>3} {repeats} {pair.verdict:<12} {ratio:.3f}  "
                      f"{', '.join(sorted({caution.name for caution in pair.cautions}))}", flush=True)  # fmt: skip
    for repeats, counts in verdicts.items():
        wrong = counts[FASTER] + counts[SLOWER]
        interval = stats.binomtest(wrong, tries).proportion_ci(0.95)
        print(f"{repeats} a side: {wrong / tries:.1%} faster or slower ({interval.low:.1%} to {interval.high:.1%}); "
              + ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common()))  # fmt: skip
    return 0


@contextmanager
def competing(command: str | None) -> Iterator[None]:
    """Keep a command running: when it ends, it starts again."""
    if command is None:
        yield
        return
    loop = subprocess.Popen(["sh", "-c", f"while :; do {command}; done"], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        yield
    finally:
        os.killpg(loop.pid, signal.SIGKILL)


def run_once(out: Path) -> None:
    """Make a short run in a fork of a process that has imported torch, without what is not timed."""
    settings = [*REAL, f"out='{out}'"]
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    [ended] = end_ranks([shared_zygote().start(["harness", *settings], PROJECT, environment)], TIMEOUT_SECONDS)
    if ended.code:
        sys.exit(ended.err)


def judged(folder: Path, repeats: int) -> Pair:
    """Compare the first runs of both sides."""
    chosen = folder / f"{repeats} a side"
    for side in SIDES:
        for repeat in range(1, repeats + 1):
            shutil.copytree(folder / side / str(repeat), chosen / side / str(repeat))
    [pair] = compare(load_run_groups([chosen / side for side in SIDES]), MARGIN).pairs
    return pair


if __name__ == "__main__":
    sys.exit(main())
