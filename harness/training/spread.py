"""A model as it is spread over the processes of a run: on one device whole, as it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from harness.backends.step import ALONE, GradientExchange
from harness.workload.model import Transformer


@dataclass
class Spread:
    """A model as it is spread over the ranks."""

    model: Transformer
    """The model itself, whose parameters are this rank's: whole, or its shards."""
    call: nn.Module
    """What the training step calls."""
    exchange: GradientExchange = ALONE
