"""Simulated pairs of suites: does the mean's interval cover, and how often is "equivalent" false?

    python scripts/bench_suites.py
    python scripts/bench_suites.py --pairs 20000 --spread 0.3
    python scripts/bench_suites.py --intensity card       FLOP per byte of the products of each workload

Each workload has a true ratio, drawn around the mean with the spread that rows published for two chips have (standard
deviation of the logarithms 0.14), and each of its repeats has noise. The mean's interval should cover the true mean in
95 % of the pairs; with a true mean at the edge of the margin, at most 5 % may be called equivalent.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np

from harness.analysis.flops import product_intensity, training_flops_per_token
from harness.analysis.suite_verdict import mean_ratio
from harness.composition import load
from harness.config import to_dict
from harness.suites import find_suite

MARGIN = 0.05
MAX_FALSE_SHARE = 0.05
COVERAGE = (0.93, 0.97)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--workloads", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument(
        "--spread", type=float, default=0.14, help="standard deviation of the logarithms of true ratios"
    )
    parser.add_argument("--noise", type=float, default=0.01, help="standard deviation of the logarithm of a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--intensity", metavar="SUITE", help="only print the arithmetic intensity of its workloads")
    options = parser.parse_args()
    if options.intensity:
        print_intensities(options.intensity)
        return 0
    print("| workloads | weights | coverage of the 95 % interval | false equivalent |\n|---|---|---|---|")
    held = True
    for count in options.workloads:
        for weights in ("equal", "1 to 4"):
            covered, wrong = simulate(count, weights, options)
            held &= COVERAGE[0] <= covered <= COVERAGE[1] and wrong <= MAX_FALSE_SHARE
            print(f"| {count} | {weights} | {covered:.3f} | {wrong:.4f} |")
    return 0 if held else 1


def print_intensities(name: str) -> None:
    """Print FLOP per byte of each workload's products, and its seconds at 100 TFLOP/s."""
    for each in find_suite(name).workloads:
        config = load(list(each.settings))
        model, work = to_dict(config)["model"], config.workload
        number_bytes = 4 if config.precision == "fp32" else 2
        intensity = product_intensity(model, work.seq_len, work.micro_batch_size, number_bytes)
        tokens = work.steps * work.global_batch_size * work.seq_len
        seconds = tokens * training_flops_per_token(model, work.seq_len) / 1e14
        print(f"{each.name:16} {intensity:6,.0f} FLOP per byte, {seconds:5.1f} s at 100 TFLOP/s")


def simulate(count: int, weights: str, options: argparse.Namespace) -> tuple[float, float]:
    """Return the share of intervals that hold the true mean, and of means at the margin that are called equivalent."""
    source = np.random.default_rng([options.seed, count, len(weights)])
    # Without real spread, noise alone could make a mean at the margin look equivalent.
    own = np.ones(count) if weights == "equal" else np.linspace(1, 4, count)
    covered = wrong = 0
    for _ in range(options.pairs):
        deviations = source.normal(0, options.spread, count)
        noise = source.normal(0, options.noise * math.sqrt(2 / options.repeats), count)
        found = mean_ratio(np.exp(deviations + noise).tolist(), own.tolist(), MARGIN)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1 <= found.high
        at_margin = mean_ratio(np.exp(math.log1p(MARGIN) + deviations + noise).tolist(), own.tolist(), MARGIN)
        wrong += at_margin.equivalent
    return covered / options.pairs, wrong / options.pairs


if __name__ == "__main__":
    sys.exit(main())
