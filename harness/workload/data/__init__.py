"""Data sets by name. Each yields sequences by global number, so that world size and history change nothing."""

from __future__ import annotations

from harness.config import Config
from harness.workload.data.base import Dataset
from harness.workload.data.synthetic import SyntheticDataset
from harness.workload.data.text import open_text
from harness.workload.data.tokens import open_tokens

__all__ = ["Dataset", "open_dataset"]


def open_dataset(config: Config) -> Dataset:
    """Open the configured data set and check that it fits the model and the workload.

    Raises:
        DataError: naming the file or key, what was found and what to do.
    """
    seq_len, vocab_size = config.workload.seq_len, config.model.vocab_size
    if config.data.name == "synthetic":
        return SyntheticDataset(vocab_size, seq_len, config.seed)
    opener = {"text": open_text, "tokens": open_tokens}[config.data.name]
    return opener(config, vocab_size, seq_len)
