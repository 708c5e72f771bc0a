"""Failures of a device, recognized from the exception that it raised."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Meaning of an exception from the device. `status` goes into the record."""

    status: str
    cause: str
    remedy: str
    secondary: bool = False
    """True if it may be the consequence of a failure in another process of the same run."""


OUT_OF_MEMORY_REMEDY = (
    "lower workload.micro_batch_size, then set model.activation_checkpointing=true, then shorten workload.seq_len; if "
    "the 16 bytes a parameter of the training's state are too much, choose a smaller model, or cut it into more parts "
    "with parallel=fsdp or mesh"
)
WEIGHTS_REMEDY = (
    "the weights alone do not fit, whatever the micro-batch: choose a smaller model or a device with more memory, free "
    "the memory that other processes use, or cut the model into more parts with parallel=fsdp or mesh"
)
PEER_REMEDY = "look for the first error in the other ranks' output, or the rank that is missing"

# PyTorch's own errors of torch.distributed, and gloo's, which come as plain RuntimeErrors.
_COLLECTIVE_FAILURE = re.compile(
    r"^Dist\w*Error: |gloo/|Connection closed by peer|Connection reset by peer|Application timeout caused pair closure"
)


def classify_common(error: BaseException) -> Failure | None:
    """Return the failure that `error` means on every device (out of memory, a lost rank), or None."""
    import torch

    text = str(error)
    cause = find_line(text) or type(error).__name__
    out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(phrase in text for phrase in ("out of memory", "can't allocate memory", "not enough memory"))
    )
    if out_of_memory:
        return Failure("oom", cause, OUT_OF_MEMORY_REMEDY)
    if _COLLECTIVE_FAILURE.search(f"{type(error).__name__}: {text}"):
        return Failure("rank_lost", f"the connection to another process of the run broke: {cause}", PEER_REMEDY, True)
    return None


def find_line(text: str, pattern: str | re.Pattern[str] = r"\S") -> str | None:
    """Return the first matching line, stripped, or None; by default the first line that is not blank."""
    return next((line.strip() for line in text.splitlines() if re.search(pattern, line)), None)
