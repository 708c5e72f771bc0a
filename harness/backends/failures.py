"""What an exception means that was raised while a device worked."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """What an exception from the device means. `status` goes into the record."""

    status: str
    cause: str
    remedy: str
    secondary: bool = False
    """Whether it may only tell of what befell another process of the same run."""


OUT_OF_MEMORY_REMEDY = (
    "lower workload.micro_batch_size, then set model.activation_checkpointing=true, then shorten "
    "workload.seq_len or choose a smaller model"
)


PEER_REMEDY = "look for the first error in the other ranks' output, or the rank that is missing"


# PyTorch's own errors of torch.distributed, and gloo's, which come as plain RuntimeErrors.
_COLLECTIVE_FAILURE = re.compile(
    r"^Dist\w*Error: |gloo/|Connection closed by peer|Connection reset by peer|Application timeout caused pair closure"
)


def classify_common(error: BaseException) -> Failure | None:
    """Recognise the failures that look alike on every device."""
    import torch

    text = str(error)
    cause = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(phrase in text for phrase in ("out of memory", "can't allocate memory", "not enough memory"))
    )
    if out_of_memory:
        return Failure("oom", cause, OUT_OF_MEMORY_REMEDY)
    if _COLLECTIVE_FAILURE.search(f"{type(error).__name__}: {text}"):
        return Failure("rank_lost", f"the connection to another process of the run broke: {cause}", PEER_REMEDY, True)
    return None
