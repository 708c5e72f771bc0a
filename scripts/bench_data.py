"""Speed of data sets on one core: tokens/s of generating or reading each, with and without the digest.

    python scripts/bench_data.py

A step waits for data only if the device trains faster than this.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# As harness/__main__.py does: an installed plug-in of torch must not be loaded.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import numpy as np

from harness.composition import load
from harness.workload.data import open_dataset
from harness.workload.digest import BatchDigest

BATCH = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement (default 1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = prepare(Path(folder))
        print(f"{'data':<28} {'generate or read':>17} {'with digest':>12}   million tokens/s, median of five")
        for name, overrides in cases.items():
            for seq_len in (256, 1024):
                settings = [*overrides, f"workload.seq_len={seq_len}", "model.max_position_embeddings=1024"]
                alone, digested = (measure(settings, options.seconds, digested) for digested in (False, True))
                print(
                    f"{name + f', {seq_len} a sequence':<28} {alone / 1e6:>17.1f} {digested / 1e6:>12.1f}", flush=True
                )
    return 0


def prepare(folder: Path) -> dict[str, list[str]]:
    """Write 32 M tokens in each format and return the settings that read them."""
    tokens = np.random.default_rng(1).integers(32, 127, size=1 << 25, dtype=np.uint16)
    tokens.tofile(folder / "tokens.bin")
    np.save(folder / "tokens.npy", tokens)
    (folder / "text.txt").write_bytes(tokens.astype(np.uint8).tobytes())
    return {
        "synthetic": [],
        "synthetic 50257": ["model.vocab_size=50257"],
        "text": ["data=text", f"data.path={folder}/text.txt"],
        "tokens .bin": ["data=tokens", f"data.path={folder}/tokens.bin"],
        "tokens .npy": ["data=tokens", f"data.path={folder}/tokens.npy"],
    }


def measure(overrides: list[str], seconds: float, digested: bool) -> float:
    """Return the median tokens/s of five samples of `seconds` / 5."""
    config = load(overrides)
    dataset = open_dataset(config)
    dataset.train(0, BATCH)
    speeds, sample = [], 0
    for _ in range(5):
        began, done, digest = time.perf_counter(), 0, BatchDigest()
        while time.perf_counter() - began < seconds / 5:
            sequences = dataset.train(sample, BATCH)
            if digested:
                digest.add("train", sample, sequences)
            sample += BATCH
            done += BATCH * config.workload.seq_len
        speeds.append(done / (time.perf_counter() - began))
    return statistics.median(speeds)


if __name__ == "__main__":
    sys.exit(main())
