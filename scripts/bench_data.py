"""Speed of data sets on one core: tokens/s of generating or reading each, with and without the digest.

    python scripts/bench_data.py
    python scripts/bench_data.py --memory 10 100 1000

A step waits for data only if the device trains faster than this. The second form measures the memory that reading text
with a tokenizer takes, for files of these sizes in megabytes; on one core 1000 take a quarter to half an hour.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
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
    parser.add_argument("--memory", type=int, nargs="+", metavar="MB", help="measure memory for texts of these sizes")
    parser.add_argument("--open", nargs=2, metavar=("TEXT", "TOKENIZER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        return open_text(*options.open)
    if options.memory:
        return measure_memory(options.memory)
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


def measure_memory(sizes: list[int]) -> int:
    """Print the memory that opening texts of `sizes` MB takes, each in a fresh process."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    generator = np.random.default_rng(1)
    words = np.array(["".join(map(chr, generator.integers(97, 123, n))) for n in generator.integers(2, 12, 20000)])
    lines = [" ".join(words[generator.zipf(1.3, 60) % len(words)]) + ".\n" for _ in range(20000)]
    sample = "".join(lines).encode()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=4096, show_progress=False, initial_alphabet=alphabet)
        tokenizer.train_from_iterator(lines[:2000], trainer)
        tokenizer.save(f"{folder}/tokenizer.json")
        print(f"{'text MB':>8} {'M tokens':>9} {'added MB':>9} {'4 bytes a token, MB':>20} {'seconds':>8}")
        for size in sizes:
            with open(f"{folder}/text.txt", "wb") as file:
                for start in range(0, size * 1_000_000, len(sample)):
                    file.write(sample[: size * 1_000_000 - start])
            command = [sys.executable, __file__, "--open", f"{folder}/text.txt", f"{folder}/tokenizer.json"]
            subprocess.run(command, check=True)
    return 0


def open_text(text: str, tokenizer: str) -> int:
    """Open a text with a tokenizer, and print its tokens and the memory that it added to the process."""
    settings = ["model=tiny", "model.vocab_size=4096", "data=text", f"data.path={text}", f"data.tokenizer={tokenizer}"]
    config = load(settings)
    before, began = peak_memory_megabytes(), time.perf_counter()
    data = open_dataset(config).describe()
    seconds, added = time.perf_counter() - began, peak_memory_megabytes() - before
    size, tokens = data["size_bytes"] / 1e6, (data["train_tokens"] + data["held_out_tokens"]) / 1e6
    print(f"{size:>8.0f} {tokens:>9.2f} {added:>9.1f} {4 * tokens:>20.1f} {seconds:>8.0f}", flush=True)
    return 0


def peak_memory_megabytes() -> float:
    """Return the largest memory of this process so far; getrusage would count that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0]) / 1e6


if __name__ == "__main__":
    sys.exit(main())
