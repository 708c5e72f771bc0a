"""Settings of a very small training, also for scripts that run without pytest."""

from __future__ import annotations

# A run of a second or two: every part of the harness, next to no work.
TINY = (
    "model=tiny",
    "model.num_hidden_layers=1",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "workload=smoke",
    "workload.steps=6",
    "workload.timing_warmup_steps=2",
    "workload.interval_steps=2",
    "workload.seq_len=32",
    "workload.global_batch_size=4",
    "workload.micro_batch_size=2",
    "workload.eval_every=3",
    "workload.eval_sequences=4",
    "workload.lr_warmup_steps=2",
    "backend.threads=1",
)
