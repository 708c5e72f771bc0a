"""Error rates of the verdict: false alarms between identical processes, and the slowdowns that it detects.

    python scripts/bench_verdict.py                   simulated: about three minutes
    python scripts/bench_verdict.py --real 20         20 comparisons of the harness with itself, five repeats a side:
                                                      about fifteen minutes on two cores

Simulated processes have the step times of a real run: the deviations of its intervals are resampled in runs of
consecutive intervals, so that they stay autocorrelated and bursty, and every process gets its own level (normal, or
sometimes disturbed). A false alarm is any pair of identical processes with a significant difference, whether the
verdict is "faster", "slower" or "equivalent".
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from harness_runs import run_harness
from scipy import stats

from harness.analysis.cautions import interval_step_seconds
from harness.analysis.ratio_statistics import Ratio, ratio_of, single_run_ratio_of

MARGIN = 0.05
REPEATS = (3, 5, 10)
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
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.real:
        return real(options.real)
    source = np.random.default_rng(options.seed)
    deviations = real_deviations()
    print(f"False alarms in {options.pairs} pairs of identical processes (95 % interval)")
    print(f"{'noise':<32}" + "".join(f"{f'{repeats} repeats':>24}" for repeats in (1, *REPEATS)))
    for name, levels in NOISE.items():
        cells = [alarms(levels, deviations, repeats, options.pairs, source) for repeats in (1, *REPEATS)]
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
    wrong = sum(ratio.differs for ratio in pairs_of(levels, deviations, repeats, 0.0, count, source))
    interval = stats.binomtest(wrong, count).proportion_ci(0.95)
    return f"{wrong / count:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def power(levels: Levels, deviations: np.ndarray, repeats: int, slowdown: float, count: int,
          source: np.random.Generator) -> str:  # fmt: skip
    ratios = list(pairs_of(levels, deviations, repeats, slowdown, count, source))
    found = sum(ratio.differs and ratio.estimate > 1 for ratio in ratios) / count
    slower = sum(ratio.differs and ratio.estimate > 1 and not ratio.equivalent for ratio in ratios) / count
    return f"{found:.0%} / {slower:.0%}"


def real(tries: int) -> int:
    """Compare the harness with itself `tries` times, and count the verdicts."""
    verdicts: Counter[str] = Counter()
    for number in range(1, tries + 1):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "harness", "compare", "--repeats", "5", "--out", f"{folder}/out",
                       "--format", "json", "--run", "experiment=smoke", "--run", "experiment=smoke "]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        pair = json.loads(done.stdout)["pairs"][0]
        ratio = pair["quantities"][0]
        verdicts[pair["verdict"]] += 1
        print(f"{number:>3} {pair['verdict']:<12} {ratio['ratio']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]",
              flush=True)  # fmt: skip
    print(", ".join(f"{verdict}: {count}" for verdict, count in verdicts.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
