"""The harness against other trainers on the same work, on several shapes: tokens/s, peak memory, start-up time.

    python scripts/bench_peers.py                            every shape of SHAPES, five rounds each
    python scripts/bench_peers.py --shape long --shape wide --rounds 3
    python scripts/bench_peers.py --micro-batch 1 --micro-batch fastest    one size for all, then each one's fastest
    python scripts/bench_peers.py --only 'bare PyTorch'      a selected peer at its best; may be repeated
    python scripts/bench_peers.py --plain                    every peer with its library's defaults too
    python scripts/bench_peers.py --out peers.jsonl          keeps each run there, and repeats none that is there
    python scripts/bench_peers.py model=llama-30m workload.seq_len=512 workload.global_batch_size=16    any other work

The peers are Hugging Face Trainer, accelerate, Lightning Fabric with litgpt's GPT, and a bare PyTorch loop. At their
best they have torch.compile, fused AdamW, and the fastest attention and micro-batch size, found by a search before the
rounds (the attention first, then the size). The harness's track=tuned gets the same search for its size. Every run is a
fresh process that begins when the machine is idle, and the runs of a round take turns, so that a noisy machine disturbs
all alike. The peers are installed into their own environment (--environment, created on first use), without the
harness. The harness's MFU is printed if `python -m harness peak backend=cpu` was run before.

Not among them: torchtitan 0.3.0, whose trainer takes a CUDA device where there is no other accelerator, and whose flex
attention has no backward pass on a CPU (torch 2.13), and nanochat, which is no package, and whose GPT (squared ReLU,
norms without weights, Muon) is another work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from harness_runs import geometric_mean, in_turn, touch_memory, wait_until_idle
from peer_runs import (
    ENVIRONMENT,
    PEERS,
    PROGRAMS,
    REQUIREMENTS,
    check_work,
    describe,
    environment,
    harness,
    peer,
    write_tokens,
)

from harness.composition import load
from harness.config import Config
from harness.environment import allowed_cores, cpu_model
from harness.errors import UserError
from harness.text import layered_settings, override_key

WORK = ("workload=gpt2", "workload.micro_batch_size=1", "workload.steps=4", "workload.timing_warmup_steps=1",
        "workload.eval_every=0", "workload.lr_warmup_steps=1", "precision=bf16", "fingerprint=false")  # fmt: skip
OURS = "harness"
PROJECT = Path(__file__).resolve().parent.parent
MEASURED = ("tokens_per_second", "peak_memory_bytes", "start_up_seconds", "loss")
# A run of the search: two steps after the one that compiles are enough to find the fastest.
SEARCH = {"steps": 3, "timing_warmup_steps": 1, "lr_warmup_steps": 1}


def llama(layers: int, width: int, heads: int, kv: int, feed_forward: int, vocab: int, *, tied: bool) -> list[str]:
    """Return the settings of a Llama block's shape."""
    return ["model=llama-30m", f"model.num_hidden_layers={layers}", f"model.hidden_size={width}",
            f"model.num_attention_heads={heads}", f"model.num_key_value_heads={kv}",
            f"model.intermediate_size={feed_forward}", f"model.vocab_size={vocab}",
            f"model.tie_word_embeddings={str(tied).lower()}", "model.max_position_embeddings=8192"]  # fmt: skip


def batch(sequences: int, length: int, steps: int = 3) -> list[str]:
    """Return the settings of a global batch. `steps` makes the measured window of a small model 8 s long or longer."""
    settings = {"global_batch_size": sequences, "seq_len": length, "steps": steps}
    return [f"workload.{key}={value}" for key, value in settings.items()]


# From 7 M to 310 M parameters, 512 to 8 192 positions, vocabularies of 8 k to 152 k, with and without GQA, tied or not.
SHAPES = {
    "narrow": [*llama(6, 256, 4, 4, 704, 8192, tied=True), *batch(8, 1024, steps=10)],
    "stranger": [*llama(8, 512, 8, 8, 1408, 8192, tied=False), *batch(8, 512, steps=5)],
    "long": [*llama(6, 512, 8, 2, 1408, 32000, tied=True), *batch(1, 8192)],
    "deep": [*llama(30, 576, 9, 3, 1536, 49152, tied=True), *batch(2, 2048)],
    "vocabulary": [*llama(4, 896, 14, 2, 4864, 151936, tied=True), *batch(8, 512)],
    "wide": [*llama(4, 2048, 16, 4, 5632, 32000, tied=False), *batch(8, 512)],
    "gpt2-124m": ["model=gpt2-124m", *batch(8, 512)],
}


def software(trainer: str) -> str:
    """Return what a trainer's speed depends on: versions, and a digest of its program, or of our code and configs."""
    if trainer != OURS:
        programs = [PROGRAMS / PEERS[trainer][0], PROGRAMS / "common.py"]
        return ", ".join([f"torch {version('torch')}", *REQUIREMENTS, f"program {digest(programs)}"])
    own = sorted([*PROJECT.glob("harness/**/*.py"), *PROJECT.glob("configs/**/*.yaml")])
    return f"torch {version('torch')}, harness {digest(own)}"


def digest(files: Sequence[Path]) -> str:
    """Return some digits of a digest of the files' content."""
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


@dataclass
class Runs:
    """Runs so far, in a file of one line each: none is repeated, so that a broken benchmark goes on where it was."""

    file: Path | None
    device: str | None = None
    """Name of the accelerator; None for the CPU, which other processes may use too."""
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            for line in self.file.read_text().splitlines():
                # The last line may be cut off.
                with suppress(json.JSONDecodeError):
                    entry = json.loads(line)
                    self.found[entry["key"]] = entry["run"]

    def get(self, trainer: str, parts: Sequence[str], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the measurements of the run that these parts name, and make it if there is none yet."""
        host = ", ".join(filter(None, [str(cpu_model()), f"{allowed_cores()} cores", self.device]))
        key = " | ".join([host, software(trainer), *parts])
        if key in self.found:
            return self.found[key]
        if self.device is None:
            wait_until_idle()
        self.found[key] = run = make()
        # A failure may be of the moment.
        if self.file is not None and "failed" not in run:
            with self.file.open("a") as file:
                file.write(json.dumps({"key": key, "run": run}) + "\n")
        print(f"{' | '.join(parts[1:])}: {described(run)}", flush=True)
        return run


def device_name(backend: str) -> str | None:
    """Return the name of the accelerator that a backend runs on, or None for the CPU."""
    if backend != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name(0)


def described(run: dict[str, Any]) -> str:
    return f"{run['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in run else f"failed: {run['failed']}"


@dataclass
class Row:
    """The rounds of one trainer with its choices. `ratios` are the harness's speed over its, none if a run failed."""

    name: str
    settings: str
    runs: list[dict[str, Any]]
    ratios: list[float]


@dataclass
class Trainer:
    """A trainer on one work."""

    name: str
    attentions: tuple[str, ...]
    run: Callable[[dict[str, Any]], dict[str, Any]]
    """Returns the measurements of a run with these choices."""

    def fastest(self, runs: Runs, work: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
        """Return the fastest choices: the attention at the middle size, then the size."""
        choices = [{"attention": each, "micro_batch_size": sizes[len(sizes) // 2]} for each in self.attentions]
        attention = self._fastest(runs, work, choices)["attention"]
        return self._fastest(runs, work, [{"attention": attention, "micro_batch_size": size} for size in sizes])

    def _fastest(self, runs: Runs, work: Sequence[str], choices: list[dict[str, Any]]) -> dict[str, Any]:
        if len(choices) == 1:
            return choices[0]
        return max(choices, key=lambda choice: self.measured(runs, work, choice, "search").get("tokens_per_second", 0))

    def measured(self, runs: Runs, work: Sequence[str], choice: dict[str, Any], label: str) -> dict[str, Any]:
        own = SEARCH if label == "search" else {}
        parts = [" ".join(work), self.name, label_of(choice), label]
        return runs.get(self.name, parts, lambda: self.run({**choice, **own}))


def label_of(choice: dict[str, Any]) -> str:
    parts = (choice["attention"], f"micro-batch {choice['micro_batch_size']}", "plain" if choice.get("plain") else "")
    return ", ".join(filter(None, parts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", action="append", default=[], choices=SHAPES, help="may be repeated")
    parser.add_argument("--micro-batch", action="append", default=[], type=micro_batch, metavar="N|fastest", help=(
        "the size of every run, or the next smaller one that fits; fastest: each trainer's own; may be repeated"
    ))  # fmt: skip
    parser.add_argument("--only", action="append", default=[], choices=PEERS, help="a peer; may be repeated")
    parser.add_argument("--plain", action="store_true", help="each peer with its library's defaults too")
    parser.add_argument("--out", type=Path, help="a file for the runs, used again if it exists")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    parser.add_argument("overrides", nargs="*", help="settings of the work, as on the harness's command line")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: found {options.rounds}, expected at least 1")
    if "workload.micro_batch_size" in map(override_key, options.overrides):
        parser.error("workload.micro_batch_size: found as a setting; use --micro-batch")
    shapes = {name: SHAPES[name] for name in options.shape or SHAPES}
    if options.overrides and not options.shape:
        shapes = {" ".join(options.overrides): []}
    python = environment(options.environment)
    runs = Runs(options.out)
    tables = []
    for shape, settings in shapes.items():
        work = layered_settings(WORK, settings, options.overrides)
        try:
            config = load(work)
            check_work(config)
        except UserError as error:
            parser.error(str(error))
        runs.device = device_name(config.backend.name)
        if runs.device is None and not tables:
            touch_memory()
        # Sizes that the global batch makes the same are measured once.
        for sizes in dict.fromkeys(sizes_to_try(config, size) for size in options.micro_batch or [None]):
            rows = compare(work, config, sizes, python, runs, options)
            title = f"{shape}, micro-batch {sizes[0] if len(sizes) == 1 else 'fastest'}"
            print_table(title, rows)
            tables.append((title, rows))
    if len(tables) > 1:
        print_summary(tables)
    return 0


def micro_batch(text: str) -> int | None:
    """Return the size, None for each trainer's fastest."""
    if text == "fastest":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a size of at least 1, or fastest")
    return int(text)


def compare(
    work: list[str], config: Config, sizes: Sequence[int], python: Path, runs: Runs, options: argparse.Namespace
) -> list[Row]:
    """Return the rounds of all trainers on one work, the harness first."""
    with tempfile.TemporaryDirectory() as folder:
        described_work = describe(config, write_tokens(config, Path(folder)))
        trainers = [Trainer(OURS, ("",), lambda choice: harness(layered_settings(work, ["track=tuned"]), choice))]
        for name, (program, attentions) in PEERS.items():
            if not options.only or name in options.only:
                trainers.append(
                    Trainer(
                        name,
                        attentions,
                        lambda choice, program=program: peer(
                            python, program, {**described_work, "compile": True, "tuned": True, **choice}
                        ),
                    )
                )
        chosen = [(trainer, trainer.fastest(runs, work, sizes)) for trainer in trainers]
        if options.plain:
            plain = {"compile": False, "tuned": False, "plain": True, "attention": "sdpa"}
            chosen += [(trainer, {**choice, **plain}) for trainer, choice in chosen[1:]]
        found: list[list[dict[str, Any]]] = [[] for _ in chosen]
        for number in range(options.rounds):
            for index in in_turn(range(len(chosen)), number):
                trainer, choice = chosen[index]
                found[index].append(trainer.measured(runs, work, choice, f"round {number + 1}"))
    return [
        Row(trainer.name, label_of(choice), each, ratios(found[0], each))
        for (trainer, choice), each in zip(chosen, found, strict=True)
    ]


def ratios(mine: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[float]:
    if any("failed" in run for run in (*mine, *others)):
        return []
    return [one["tokens_per_second"] / other["tokens_per_second"] for one, other in zip(mine, others, strict=True)]


def sizes_to_try(config: Config, fixed: int | None) -> tuple[int, ...]:
    """Return the micro-batch sizes to try: those that divide the global batch, or the fixed one."""
    whole = config.workload.global_batch_size
    sizes = tuple(size for size in range(1, whole + 1) if whole % size == 0)
    return sizes if fixed is None else tuple(size for size in sizes if size <= fixed)[-1:]


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print the table of one work."""
    print(f"\n{title}\n\n| run | settings | tokens/s | harness over it, 95 % | peak MiB | start-up s | last loss |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        failures = [run["failed"] for run in (*rows[0].runs, *row.runs) if "failed" in run]
        if failures:
            print(f"| {row.name} | {row.settings} | failed, or no run to compare with: {failures[-1]} | | | | |")
            continue
        median = {key: statistics.median(run[key] for run in row.runs) for key in MEASURED}
        print(
            f"| {row.name} | {row.settings} | {median['tokens_per_second']:,.0f} | {interval(row.ratios)} | "
            f"{median['peak_memory_bytes'] / 2**20:,.0f} | {median['start_up_seconds']:.1f} | {median['loss']:.3f} |"
        )
    if (share := mfu(rows[0])) is not None:
        print(f"\nMFU of the harness, against the measured peak: {share:.3f}")


def print_summary(tables: Sequence[tuple[str, Sequence[Row]]]) -> None:
    """Print one row for each work: the harness's speed over every peer's, and over all works their geometric means."""
    peers = [(row.name, "plain" in row.settings) for row in tables[0][1][1:]]
    print("\n| work | harness, tokens/s | MFU |", *(f"over {name}{', plain' * plain} |" for name, plain in peers))
    print("|---|---|---|" + "---|" * len(peers))
    for title, (own, *others) in tables:
        speeds = [run["tokens_per_second"] for run in own.runs if "failed" not in run]
        share = mfu(own)
        cells = [f"{statistics.median(speeds):,.0f}" if speeds else "failed", f"{share:.3f}" if share else ""]
        cells += [interval(row.ratios) if row.ratios else "failed" for row in others]
        print(f"| {title} | {' | '.join(cells)} |")
    means = [[rows[1 + index].ratios for _, rows in tables if rows[1 + index].ratios] for index in range(len(peers))]
    cells = [
        f"{geometric_mean([geometric_mean(each)[0] for each in works])[0]:.3f}" if works else "" for works in means
    ]
    print(f"| geometric mean | | | {' | '.join(cells)} |")


def mfu(row: Row) -> float | None:
    shares = [run["mfu"] for run in row.runs if run.get("mfu")]
    return statistics.median(shares) if shares else None


def interval(ratios: Sequence[float]) -> str:
    """Return the geometric mean of ratios and its 95 % interval, as text."""
    mean, low, high = geometric_mean(ratios)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if len(ratios) > 1 else f"{mean:.3f}"


if __name__ == "__main__":
    sys.exit(main())
