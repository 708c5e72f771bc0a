"""Tables of many records: how often a slow host of a fleet is found, and how long a thousand records take.

    python scripts/bench_tables.py
    python scripts/bench_tables.py --fleets 5000 --hosts 256 --slow 0.03

Fleets are simulated: the step time of each host is the mean of its repeats, which have noise. One host is slow. It
should be found in 95 % of the fleets, and another one be accused in at most 5 %, also where none is slow. The records
are those of tests/records.py, of 64 hosts.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from harness.analysis.ratio_statistics import outliers
from harness.analysis.run_table import FLEET_ALPHA, SLOW_SHARE, make_table, table_rows
from harness.records.load import load_tree
from harness.records.record import write_record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
MIN_FOUND, MAX_ACCUSED = 0.95, 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleets", type=int, default=1000)
    parser.add_argument("--hosts", type=int, default=64)
    parser.add_argument("--slow", type=float, default=0.05, help="by how much one host is slower")
    parser.add_argument("--noise", type=float, default=0.01, help="standard deviation of the logarithm of a run")
    parser.add_argument("--records", type=int, nargs="*", default=[250, 500, 1000])
    options = parser.parse_args()
    print(f"| {options.hosts} hosts, repeats | slow one found | another accused | accused where none is slow |")
    print("|---|---|---|---|")
    held = True
    for repeats in (1, 3):
        found, accused, alone = simulate(repeats, options)
        held &= found >= MIN_FOUND and max(accused, alone) <= MAX_ACCUSED
        print(f"| {repeats} | {found:.3f} | {accused:.3f} | {alone:.3f} |")
    print("\n| records | seconds | peak MiB |\n|---|---|---|")
    for count in options.records:
        print(
            f"| {count} | {seconds_of(count):.2f} | {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} |"
        )
    return 0 if held else 1


def simulate(repeats: int, options: argparse.Namespace) -> tuple[float, float, float]:
    """Return the shares of fleets whose slow host is found, where another is accused, and where any is without one."""
    source = np.random.default_rng([repeats, options.hosts])
    found = accused = alone = 0
    for _ in range(options.fleets):
        hosts = source.normal(0, options.noise / math.sqrt(repeats), options.hosts)
        alone += bool(outliers(hosts.tolist(), FLEET_ALPHA, SLOW_SHARE))
        hosts[0] += math.log1p(options.slow)
        named = outliers(hosts.tolist(), FLEET_ALPHA, SLOW_SHARE)
        found += 0 in named
        accused += any(host != 0 for host in named)
    return found / options.fleets, accused / options.fleets, alone / options.fleets


def seconds_of(count: int) -> float:
    """Return the seconds from folders of this many records to the rows of a table."""
    # Imported here: the tests lie beside this folder, not in a package of theirs.
    from tests.records import make_record

    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            host = f"node{number % 64}"
            run = Path(folder) / host / str(number // 64 + 1)
            run.mkdir(parents=True)
            write_record(run, make_record(process=number, environment={"host": host}))
        began = time.perf_counter()
        runs, _ = load_tree([Path(folder)])
        table_rows(make_table(runs, 0.05, "host"))
        return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
