"""Shared part of the peers' programs: the work to do, the clock, and the report of the measurements.

These programs run in their own environment, created by scripts/bench_peers.py, without the harness. Each is a training
loop as that library's users write it; only the tokens and the timing come from here.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Work:
    """The work of one run, as scripts/bench_peers.py describes it."""

    began: float
    """time.time() when the process was started."""
    tokens: str
    """A file of int32, [steps x global_batch_size, seq_len + 1]."""
    model: dict[str, Any]
    """The harness's model settings."""
    seq_len: int
    global_batch_size: int
    micro_batch_size: int
    steps: int
    timing_warmup_steps: int
    learning_rate: float
    threads: int
    device: str
    compile: bool
    attention: str
    """How transformers computes attention: sdpa or eager."""
    tuned: bool
    """Use the library's settings for speed; otherwise bf16 alone."""

    @property
    def accumulation(self) -> int:
        return self.global_batch_size // self.micro_batch_size

    def sequences(self) -> np.ndarray:
        return np.memmap(self.tokens, dtype=np.int32, mode="r").reshape(-1, self.seq_len + 1)

    @property
    def sample_count(self) -> int:
        return self.steps * self.global_batch_size


@dataclass
class Measured:
    """Reads the clock at the end of each step."""

    work: Work
    ends: list[float] = field(default_factory=list)
    start_up_seconds: float | None = None

    def step_done(self) -> None:
        """Note the end of an optimizer step. Only the first step and both ends of the window synchronize."""
        number = len(self.ends) + 1
        if self.work.device != "cpu" and number in (1, self.work.timing_warmup_steps, self.work.steps):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if number == 1:
            self.start_up_seconds = time.time() - self.work.began

    def report(self, loss: float) -> None:
        """Print the measurements as JSON, in the last line."""
        work = self.work
        steps = work.steps - work.timing_warmup_steps
        seconds = self.ends[work.steps - 1] - self.ends[work.timing_warmup_steps - 1]
        if work.device == "cpu":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        else:
            peak = torch.cuda.max_memory_allocated()
        print(
            json.dumps(
                {
                    "tokens_per_second": steps * work.global_batch_size * work.seq_len / seconds,
                    "peak_memory_bytes": peak,
                    "start_up_seconds": self.start_up_seconds,
                    "loss": loss,
                }
            )
        )


class Sequences(torch.utils.data.Dataset):
    """The tokens, in order."""

    def __init__(self, work: Work) -> None:
        self._sequences = work.sequences()

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._sequences[index].astype(np.int64))


def read_work() -> Work:
    """Return the work given on the command line, and set threads and seed."""
    work = Work(**json.loads(sys.argv[1]))
    torch.set_num_threads(work.threads)
    torch.manual_seed(1)
    return work


def transformers_model(work: Work) -> Any:
    """Return a transformers model of the same shape, with weights in float32."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    shape = work.model
    if shape["norm"] == "rmsnorm":
        config = LlamaConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["hidden_size"],
            intermediate_size=shape["intermediate_size"],
            num_hidden_layers=shape["num_hidden_layers"],
            num_attention_heads=shape["num_attention_heads"],
            num_key_value_heads=shape["num_key_value_heads"] or shape["num_attention_heads"],
            max_position_embeddings=shape["max_position_embeddings"],
            rms_norm_eps=shape["norm_eps"],
            tie_word_embeddings=shape["tie_word_embeddings"],
            use_cache=False,
        )
    else:
        config = GPT2Config(
            vocab_size=shape["vocab_size"],
            n_embd=shape["hidden_size"],
            n_layer=shape["num_hidden_layers"],
            n_head=shape["num_attention_heads"],
            n_inner=shape["intermediate_size"],
            n_positions=shape["max_position_embeddings"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=shape["tie_word_embeddings"],
            use_cache=False,
        )
    return AutoModelForCausalLM.from_config(config, attn_implementation=work.attention, dtype=torch.float32)
