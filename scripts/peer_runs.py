"""Runs of other trainers, and of the harness, on the same work, for the benchmarks in this folder.

The peers are installed into their own environment, created on first use, without the harness.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from harness_runs import run_harness

from harness.composition import load
from harness.config import Config, head_dim, intermediate_size
from harness.environment import allowed_cores
from harness.errors import ConfigError
from harness.text import layered_settings
from harness.workload.data import open_dataset

PROGRAMS = Path(__file__).resolve().parent / "peers"
ENVIRONMENT = Path.home() / ".cache" / "training-harness" / "peers"
REQUIREMENTS = ("transformers==5.24.0", "accelerate==1.15.0", "lightning==2.6.6", "litgpt==0.5.9")
PEERS = {
    "HF Trainer": ("hf_trainer.py", ("sdpa", "eager")),
    "accelerate": ("accelerate_loop.py", ("sdpa", "eager")),
    "Fabric + litgpt": ("fabric_litgpt.py", ("sdpa",)),
    "bare PyTorch": ("bare_loop.py", ("sdpa",)),
}
# Settings of the model that the peers' programs read, or that change nothing of the cost.
SHAPE = {"name", "path", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
         "intermediate_size", "vocab_size", "max_position_embeddings", "tie_word_embeddings", "norm_eps", "rope_theta",
         "initializer_range"}  # fmt: skip


def environment(folder: Path) -> Path:
    """Return the Python of the peers' environment, and create that first if need be."""
    python = folder / "bin" / "python"
    installed = folder / "requirements.txt"
    torch = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import version; print(version('torch').split('+')[0])"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    wanted = "\n".join([f"torch=={torch}", *REQUIREMENTS])
    if not installed.exists() or installed.read_text() != wanted:
        print(f"installing the peers into {folder} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted.split()], check=True)
        installed.write_text(wanted)
    return python


def write_tokens(config: Config, folder: Path) -> Path:
    """Write the tokens of all steps, the same for every trainer, and return the file."""
    dataset = open_dataset(config)
    count = config.workload.steps * config.workload.global_batch_size
    path = folder / "tokens.bin"
    dataset.train(0, count).astype(np.int32).tofile(path)
    return path


def check_work(config: Config) -> None:
    """Check that the peers do the same work: bf16, and a model of GPT-2's or Llama's kind on the first device.

    Raises:
        ConfigError: naming each setting with which they would do other work.
    """
    model = config.model
    kind = load([f"model={'gpt2-124m' if model.norm == 'layernorm' else 'llama-30m'}"]).model
    pairs = [(f"model.{key}", value, asdict(kind)[key]) for key, value in asdict(model).items() if key not in SHAPE]
    pairs.append(("model.head_dim", head_dim(model), model.hidden_size // model.num_attention_heads))
    pairs.append(("precision", config.precision, "bf16"))
    pairs.append(("backend.device_index", config.backend.device_index, 0))
    if config.backend.name not in ("cpu", "cuda"):
        pairs.append(("backend", config.backend.name, "cpu or cuda"))
    others = [f"{key}: found {found}, but the peers have {value}" for key, found, value in pairs if found != value]
    if others:
        raise ConfigError("; ".join([*others, "leave these settings out"]))


def describe(config: Config, tokens: Path) -> dict[str, Any]:
    """Return the fields of `Work` in peers/common.py that all peers share."""
    work = config.workload
    return {
        "tokens": str(tokens),
        "model": {**asdict(config.model), "intermediate_size": intermediate_size(config.model)},
        "seq_len": work.seq_len,
        "global_batch_size": work.global_batch_size,
        "micro_batch_size": work.micro_batch_size,
        "steps": work.steps,
        "timing_warmup_steps": work.timing_warmup_steps,
        "learning_rate": work.learning_rate,
        "threads": config.backend.threads or allowed_cores(),
        "device": config.backend.name,
    }


def peer(python: Path, program: str, work: dict[str, Any]) -> dict[str, Any]:
    """Return the measurements of one run of a peer, whose learning rate does not warm up, or why it failed."""
    work = {key: value for key, value in work.items() if key not in ("plain", "lr_warmup_steps")}
    command = [str(python), str(PROGRAMS / program), json.dumps({**work, "began": time.time()})]
    # Of several GPUs some peers would use all, on as many times the work.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    )
    if done.returncode != 0:
        return {"failed": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def harness(overrides: list[str], choice: dict[str, Any]) -> dict[str, Any]:
    """Return the same measurements of one run of the harness, or why it failed."""
    settings = [f"workload.{key}={value}" for key, value in choice.items() if key != "attention"]
    try:
        record, seconds = run_harness(layered_settings(overrides, settings))
    except SystemExit as failed:
        return {"failed": str(failed).strip().splitlines()[-1]}
    timing = record["timing"]
    return {
        "tokens_per_second": timing["tokens_per_second"],
        "peak_memory_bytes": record["memory"]["peak_allocated_bytes"],
        # The whole process less the time after the first step; it includes writing the record.
        "start_up_seconds": seconds - timing["training_seconds"] + timing["first_step_seconds"],
        "loss": record["losses"]["train"][-1],
        "mfu": (record["utilization"] or {}).get("mfu_of_measured_peak"),
    }
