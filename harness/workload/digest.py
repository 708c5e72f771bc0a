"""Digests of the initial weights and of the training tokens, which prove that two runs did the same work."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.workload.initialization import own_part
from harness.workload.model import compared_name

_MODULUS = 1 << 256


def init_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters' names, shapes and float32 bytes, read back from the device."""
    # Hashing releases the GIL; two threads hide the copy from the device.
    with ThreadPoolExecutor(2) as pool:
        names, parameters = zip(*sorted(model.named_parameters()), strict=True)
        return total_digest(dict(zip(names, pool.map(parameter_digest, names, parameters), strict=True)))


def sharded_digests(
    model: nn.Module, rank: int, size: int, heartbeat: Callable[[], None] = lambda: None
) -> dict[str, bytes]:
    """Return the digests of every `size`-th parameter of a sharded model, so that all ranks together cover all.

    Collective: every rank gathers each parameter in turn and frees it before the next.

    Args:
        heartbeat: called after each parameter.
    """
    digests = {}
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        whole = whole_tensor(parameter.detach())
        if number % size == rank:
            digests[name] = parameter_digest(name, whole)
        del whole
        heartbeat()
    return digests


def parameter_digest(name: str, parameter: torch.Tensor) -> bytes:
    """Return the SHA-256 of one whole parameter: its name, shape and little-endian float32 bytes."""
    values = parameter.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
    digest = hashlib.sha256(f"{name}{tuple(parameter.shape)}".encode())
    digest.update(values.data)
    return digest.digest()


def total_digest(by_parameter: Mapping[str, bytes]) -> str:
    """Return the digest of all parameters, given that of each by name."""
    total = hashlib.sha256()
    for name in sorted(by_parameter):
        total.update(by_parameter[name])
    return total.hexdigest()


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor of a DTensor, which is collective, or the tensor itself."""
    # Not by its type: importing DTensor takes a second, which a run on one device saves.
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()


def parameter_norms(
    parameters: Mapping[str, torch.Tensor], gather: Callable[[Any], list[Any]] = lambda own: [own]
) -> dict[str, float]:
    """Return the parameters' 2-norms by `compared_name`. Synchronizes once for each.

    Those of rows are computed in float32 on the device, and put together in float64 on the host: PyTorch's norm of
    four million elements at once is off by 9e-5 on the CPU, and that of 268 million by 4e-2 (torch 2.13).

    Args:
        parameters: by name, whole or distributed; of copies on several ranks, those of one.
        gather: returns every rank's value, on every rank.
    """
    own = [(name, _norm(own_part(parameter.detach()).local)) for name, parameter in sorted(parameters.items())]
    found: dict[str, float] = {}
    for name, norm in sorted(pair for rank in gather(own) for pair in rank):
        found[compared_name(name)] = math.hypot(found.get(compared_name(name), 0.0), norm)
    return found


def _norm(tensor: torch.Tensor) -> float:
    rows = torch.linalg.vector_norm(tensor.float(), dim=-1)
    return float(torch.linalg.vector_norm(rows.cpu().double()))


class BatchDigest:
    """Digest of training sequences that parallel ranks compute in parts and add up.

    Each sequence is hashed together with its stream and global number, and the hashes are added modulo 2^256
    (after AdHash, Bellare and Micciancio 1997): the sum does not depend on which rank saw a sequence or when,
    but changes if a sequence is skipped, repeated, altered or renumbered. It guards against mistakes, not against an
    adversary.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add(self, stream: str, first_sample: int, sequences: np.ndarray) -> None:
        """Add int64 sequences [count, length], numbered from `first_sample` on, of `stream` (train or held out)."""
        rows = np.ascontiguousarray(sequences, dtype="<i4")
        for offset, row in enumerate(rows):
            digest = hashlib.sha256(f"{stream}:{first_sample + offset}:".encode())
            digest.update(row.data)
            self._sum = (self._sum + int.from_bytes(digest.digest(), "big")) % _MODULUS

    def merge(self, other_hexdigest: str) -> None:
        """Add the digest of another rank."""
        self._sum = (self._sum + int(other_hexdigest, 16)) % _MODULUS

    def add_step(self, step: int, batch_hexdigest: str) -> None:
        """Add the digest of the batch of `step`, weighted by the step: swapping two batches changes the sum."""
        factor = int.from_bytes(hashlib.sha256(f"step:{step}".encode()).digest(), "big") | 1
        self._sum = (self._sum + factor * int(batch_hexdigest, 16)) % _MODULUS

    def hexdigest(self) -> str:
        return f"{self._sum:064x}"
