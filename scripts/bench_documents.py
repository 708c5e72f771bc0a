"""Reading of documents with a tokenizer: MB/s and memory for text, JSON lines and Parquet, against plain tokenizers.

    python scripts/bench_documents.py 10 100 1000        # sizes of the text in MB; 1000 takes an hour on two cores

Each measurement runs in a process of its own, on all cores. *plain* is what a script does with the packages tokenizers
and pyarrow: batches of documents (of a text file, pieces of 1 MB that end at a line) through `encode_batch`, the ids
appended to one array. It neither counts nor checks anything. Then training at 1 M tokens/s is played on the tokens: the
time that steps wait for data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

# As harness/__main__.py does: an installed plug-in of torch must not be loaded.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import numpy as np

FILES = {"text": "corpus.txt", "JSON lines": "corpus.jsonl", "Parquet": "corpus.parquet"}
VOCABULARY = 8192
DOCUMENTS_PER_BATCH = 256
PIECES_PER_BATCH = 4
PIECE_BYTES = 1_000_000
TOKENS_PER_SECOND = 1_000_000
WAIT_STEPS = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", default=[10], metavar="MB", help="sizes of the text (default 10)")
    parser.add_argument("--measure", nargs=3, metavar=("READER", "FILE", "TOKENIZER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return 0
    print(f"{'text MB':>8} {'format':<10} {'reader':<8} {'MB/s':>6} {'added MB':>9} {'M tokens':>9} {'waiting':>8}")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = write_corpus(Path(folder), size)
            for name, file in FILES.items():
                for reader in ("harness", "plain"):
                    command = [sys.executable, __file__, "--measure", reader, f"{folder}/{file}", tokenizer]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    found = json.loads(done.stdout)
                    waiting = "" if found["waiting"] is None else f"{found['waiting']:.2%}"
                    print(
                        f"{size:>8} {name:<10} {reader:<8} {size / found['seconds']:>6.2f} {found['megabytes']:>9.1f} "
                        f"{found['tokens'] / 1e6:>9.2f} {waiting:>8}",
                        flush=True,
                    )
    return 0


def write_corpus(folder: Path, size: int) -> str:
    """Write the same documents in each format, with `size` MB of text, and a tokenizer; return its path."""
    import pyarrow
    import pyarrow.parquet
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    generator = np.random.default_rng(1)
    words = np.array(["".join(map(chr, generator.integers(97, 123, n))) for n in generator.integers(2, 12, 20000)])
    lines = [" ".join(words[generator.zipf(1.3, 60) % len(words)]) + ".\n" for _ in range(20000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(lines[:4000], trainer)
    tokenizer.save(f"{folder}/tokenizer.json")
    written = 0
    schema = pyarrow.schema([("text", pyarrow.string())])
    with (
        open(folder / FILES["text"], "w") as text,
        open(folder / FILES["JSON lines"], "w") as json_lines,
        pyarrow.parquet.ParquetWriter(folder / FILES["Parquet"], schema) as parquet,
    ):
        while written < size * 1_000_000:
            documents = ["".join(lines[i] for i in generator.integers(0, len(lines), 10)) for _ in range(250)]
            text.writelines(documents)
            json_lines.writelines(json.dumps({"text": document}) + "\n" for document in documents)
            parquet.write_table(pyarrow.table({"text": documents}, schema=schema))
            written += sum(map(len, documents))
    return f"{folder}/tokenizer.json"


def measure(reader: str, file: str, tokenizer: str) -> dict[str, Any]:
    """Return seconds, added memory, tokens, and of our own reader the share of time that steps wait for data."""
    if reader == "plain":
        import tokenizers  # noqa: F401 (before the memory is measured)

        before, began = peak_megabytes(), time.perf_counter()
        count, waiting = len(plain_tokens(Path(file), tokenizer)), None
        seconds, added = time.perf_counter() - began, peak_megabytes() - before
    else:
        from harness.composition import load
        from harness.workload.data import open_dataset

        settings = ["model=tiny", f"model.vocab_size={VOCABULARY}", "model.max_position_embeddings=1024", "data=text",
                    f"data.path={file}", f"data.tokenizer={tokenizer}", "workload.seq_len=1024",
                    "workload.global_batch_size=64", f"workload.steps={WAIT_STEPS}"]  # fmt: skip
        config = load(settings)
        before, began = peak_megabytes(), time.perf_counter()
        data = open_dataset(config)
        seconds, added = time.perf_counter() - began, peak_megabytes() - before
        described = data.describe()
        count, waiting = described["train_tokens"] + described["held_out_tokens"], waiting_share(config, data)
    return {"seconds": seconds, "megabytes": added, "tokens": count, "waiting": waiting}


def plain_tokens(file: Path, tokenizer: str) -> array[int]:
    from tokenizers import Tokenizer

    plain, tokens = Tokenizer.from_file(tokenizer), array("I")
    documents, size = documents_of(file), PIECES_PER_BATCH if file.suffix == ".txt" else DOCUMENTS_PER_BATCH
    for batch in iter(lambda: list(islice(documents, size)), []):
        for encoded in plain.encode_batch(batch):
            tokens.extend(encoded.ids)
    return tokens


def documents_of(file: Path) -> Iterator[str]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        for rows in pyarrow.parquet.ParquetFile(file).iter_batches(1024):
            yield from rows.column("text").to_pylist()
        return
    with open(file, encoding="utf-8") as stream:
        if file.suffix == ".jsonl":
            yield from (json.loads(line)["text"] for line in stream)
        else:
            yield from ("".join(lines) for lines in iter(lambda: stream.readlines(PIECE_BYTES), []))


def waiting_share(config: Any, data: Any) -> float:
    """Return the share of time in which steps of TOKENS_PER_SECOND wait for their batch, after the first."""
    from harness.training.prefetch import Prefetcher

    prefetcher = Prefetcher(data, config.workload, first_step=1, pin_memory=False)
    step_seconds = config.workload.global_batch_size * config.workload.seq_len / TOKENS_PER_SECOND
    prefetcher.next()
    waited, began = 0.0, time.perf_counter()
    for _ in range(2, config.workload.steps + 1):
        asked = time.perf_counter()
        prefetcher.next()
        waited += time.perf_counter() - asked
        time.sleep(step_seconds)
    total = time.perf_counter() - began
    prefetcher.close()
    return waited / total


def peak_megabytes() -> float:
    """Return the largest memory of this process so far; getrusage would count that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0]) / 1e6


if __name__ == "__main__":
    sys.exit(main())
