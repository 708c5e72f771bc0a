"""Prefetcher: order and shape of batches, their digest, and errors raised at the step that needs the batch."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from harness.config import WorkloadConfig
from harness.errors import DataError
from harness.training.prefetch import Prefetcher
from harness.workload.data import Dataset
from harness.workload.data.synthetic import SyntheticDataset
from harness.workload.digest import BatchDigest


class Numbered(Dataset):
    """Data set whose sequence n is [n, n, n]; reading `fail_at` raises."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at

    def train(self, first_sample: int, count: int) -> np.ndarray:
        if self.fail_at is not None and first_sample <= self.fail_at < first_sample + count:
            raise DataError("token id 700")
        return np.repeat(np.arange(first_sample, first_sample + count)[:, None], 3, axis=1)

    def held_out(self, first_sample: int, count: int) -> np.ndarray:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {}


def work(steps: int) -> WorkloadConfig:
    return WorkloadConfig(
        steps=steps, timing_warmup_steps=1, seq_len=2, global_batch_size=6, micro_batch_size=2, learning_rate=1.0
    )


def prefetcher(dataset: Dataset, *, first_step: int = 1, last_step: int = 20) -> Prefetcher:
    return Prefetcher(dataset, work(last_step), first_step=first_step, pin_memory=False)


def test_steps_come_in_order_cut_into_micro_batches() -> None:
    source = prefetcher(Numbered())
    for step in range(3):
        micro_batches = source.next()
        assert [part.shape for part in micro_batches] == [(2, 3)] * 3
        assert torch.cat(micro_batches)[:, 0].tolist() == list(range(step * 6, step * 6 + 6))
        assert micro_batches[0].dtype == torch.int64
    source.close()


def test_a_later_start_gets_the_same_batches() -> None:
    early, late = prefetcher(Numbered()), prefetcher(Numbered(), first_step=3)
    early.next()
    early.next()
    assert torch.equal(torch.cat(early.next()), torch.cat(late.next()))
    early.close()
    late.close()


def test_digest_covers_returned_batches_not_queued_ones() -> None:
    source = prefetcher(Numbered())
    time.sleep(0.2)  # the queue is full now
    assert source.digest.hexdigest() == BatchDigest().hexdigest()
    source.next()
    source.next()
    assert source.digest.hexdigest() == digest_of(1, 2)
    source.close()


def test_digest_depends_on_the_order_of_batches() -> None:
    assert digest_of(1, 2) != digest_of(2, 1)


def digest_of(*steps: int) -> str:
    """Return the digest of training on the batches of these steps, one after another."""
    total = BatchDigest()
    for position, step in enumerate(steps, 1):
        batch = BatchDigest()
        batch.add("train", (step - 1) * 6, Numbered().train((step - 1) * 6, 6))
        total.add_step(position, batch.hexdigest())
    return total.hexdigest()


def test_an_error_is_raised_at_the_step_that_needs_the_data() -> None:
    source = prefetcher(Numbered(fail_at=13))
    source.next()
    source.next()
    with pytest.raises(DataError, match="token id 700"):
        source.next()
    source.close()


def test_close_ends_the_thread_when_the_queue_is_full() -> None:
    source = prefetcher(Numbered(), last_step=10_000)
    source.next()
    source.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_returned_batches_are_not_overwritten() -> None:
    source = prefetcher(SyntheticDataset(256, 16, seed=1), last_step=50)
    kept = [torch.cat(source.next()) for _ in range(30)]
    for step, batch in enumerate(kept):
        assert np.array_equal(batch.numpy(), SyntheticDataset(256, 16, seed=1).train(step * 6, 6))
    source.close()
