"""Data sets by name. A sequence depends on its global number alone, not on the world size or on a resume."""

from __future__ import annotations

from collections.abc import Callable

from harness.config import Config
from harness.workload.data.base import Dataset
from harness.workload.data.synthetic import SyntheticDataset
from harness.workload.data.text import open_text
from harness.workload.data.tokens import open_tokens

__all__ = ["Dataset", "open_dataset"]


def open_dataset(config: Config, heartbeat: Callable[[], None] = lambda: None) -> Dataset:
    """Open the configured data set and check that it fits the model and the workload.

    Args:
        heartbeat: called as the data are read, since a large text takes longer than a hang may.

    Raises:
        DataError: a file that is missing or does not fit; the message names the file or setting.
    """
    seq_len, vocab_size = config.workload.seq_len, config.model.vocab_size
    if config.data.name == "synthetic":
        return SyntheticDataset(vocab_size, seq_len, config.seed)
    if config.data.name == "tokens":
        return open_tokens(config, vocab_size, seq_len)
    return open_text(config, vocab_size, seq_len, heartbeat)
