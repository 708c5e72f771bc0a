"""Prefetching: a thread that makes batches ahead of the steps that need them."""

from __future__ import annotations

import queue
import threading

import torch

from harness.config import WorkloadConfig
from harness.workload.data import Dataset
from harness.workload.digest import BatchDigest

DEPTH = 4


class Prefetcher:
    """Makes this rank's share of each step's global batch as host int64 micro-batches, in order.

    Ranks take consecutive shares of equal size, so that the global batch does not depend on their number. A batch is
    added to the digest when it is handed out, not when it is made: the digest covers exactly the trained batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        work: WorkloadConfig,
        *,
        first_step: int,
        pin_memory: bool,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """
        Args:
            rank: among the `ranks` that divide the batch: those on other axes of the layout have the same share.
        """
        self._dataset, self._work = dataset, work
        self._steps = range(first_step, work.steps + 1)
        self._rank, self._share = rank, work.global_batch_size // ranks
        self._pin_memory = pin_memory
        self._queue: queue.Queue[tuple[tuple[torch.Tensor, ...], BatchDigest] | BaseException] = queue.Queue(DEPTH)
        self._stop = threading.Event()
        self.digest = BatchDigest()
        self._next_step = first_step
        self._thread = threading.Thread(target=self._produce, name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> tuple[torch.Tensor, ...]:
        """Return the next step's micro-batches, [micro_batch_size, seq_len + 1] each; waits if none is ready.

        Raises:
            DataError: the data of this step cannot be used (a token id beyond the vocabulary, a read error).
        """
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        micro_batches, digest = item
        self.digest.add_step(self._next_step, digest.hexdigest())
        self._next_step += 1
        return micro_batches

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _produce(self) -> None:
        try:
            for step in self._steps:
                if not self._put(self._make(step)):
                    return
        except BaseException as error:  # noqa: BLE001 (raised again in the loop's thread by next)
            self._put(error)

    def _make(self, step: int) -> tuple[tuple[torch.Tensor, ...], BatchDigest]:
        first_sample = (step - 1) * self._work.global_batch_size + self._rank * self._share
        sequences = self._dataset.train(first_sample, self._share)
        digest = BatchDigest()
        digest.add("train", first_sample, sequences)
        batch = torch.from_numpy(sequences)
        if self._pin_memory:
            batch = batch.pin_memory()
        return batch.split(self._work.micro_batch_size), digest

    def _put(self, item: tuple[tuple[torch.Tensor, ...], BatchDigest] | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
