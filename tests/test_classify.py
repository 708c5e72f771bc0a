"""Failures that are classified alike on every device."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from harness import backends
from harness.backends.failures import OUT_OF_MEMORY_REMEDY, PEER_REMEDY, WEIGHTS_REMEDY, classify_common
from harness.composition import load
from harness.errors import RunFailed
from harness.training import prepare
from harness.training.distributed.collectives import Ranks
from tests.tiny import TINY

GLOO = (
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4218. This may "
    "indicate a remote process crash"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 1 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory(error: Exception) -> None:
    failure = classify_common(error)
    assert failure is not None
    assert (failure.status, failure.remedy, failure.secondary) == ("oom", OUT_OF_MEMORY_REMEDY, False)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO),
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError("[/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1000ms for recv operation"),
        ConnectionResetError("Connection reset by peer"),
        DistBackendError("NCCL communicator was aborted on rank 1"),
        DistNetworkError("failed to recv, got 0 bytes"),
        DistStoreError("wait timeout after 300000ms"),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:20]}",
)
def test_a_broken_connection_may_be_the_echo_of_another_ranks_end(error: Exception) -> None:
    failure = classify_common(error)
    assert failure is not None
    assert (failure.status, failure.remedy, failure.secondary) == ("rank_lost", PEER_REMEDY, True)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no"), KeyError()]
)
def test_our_own_faults_are_nobodys(error: Exception) -> None:
    assert classify_common(error) is None


def test_weights_that_do_not_fit_need_another_remedy_than_a_smaller_micro_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def does_not_fit(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr(prepare, "parallelize_model", does_not_fit)
    config = load([*TINY])
    with pytest.raises(RunFailed, match=r"^Tried to allocate 2.00 GiB; the weights alone do not fit") as failed:
        prepare.prepare_step(config, backends.create(config.backend), Ranks(), lambda: None)
    assert failed.value.status == "oom"
    assert WEIGHTS_REMEDY in str(failed.value)
    assert "workload.micro_batch_size" not in str(failed.value)
