"""Data sets by name. A sequence depends on its global number alone, not on the world size or on a resume."""

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
        DataError: a file that is missing or does not fit; the message names the file or setting.
    """
    seq_len, vocab_size = config.workload.seq_len, config.model.vocab_size
    if config.data.name == "synthetic":
        return SyntheticDataset(vocab_size, seq_len, config.seed)
    opener = {"text": open_text, "tokens": open_tokens}[config.data.name]
    return opener(config, vocab_size, seq_len)
