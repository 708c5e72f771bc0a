"""Bytes of the tensors that exist at a time, counted as operations make them: the memory of a step on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.workload.initialization import local_tensor


class LiveBytes(TorchDispatchMode):
    """A context that counts the storages of all that operations return, from their making to their end.

    It counts as torch.distributed._tools.mem_tracker does, without that one's attribution to modules. Fake tensors have
    no values: an operation that reads one gets 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes that exist."""
        self.peak = 0
        """Most bytes at once since the last `reset_peak`."""
        self._sizes: dict[int, int] = {}
        self._resize_patch: Any = None

    def reset_peak(self) -> None:
        """Begin a new peak."""
        self.peak = self.now

    def __enter__(self) -> LiveBytes:
        resize = torch.UntypedStorage.resize_

        def counted_resize(storage: torch.UntypedStorage, size: int) -> Any:
            # FSDP frees and makes the storage of gathered weights in this way, which no operation shows.
            result = resize(storage, size)
            if id(storage) in self._sizes:
                self._set_size(storage)
            return result

        self._resize_patch = patch.object(torch.UntypedStorage, "resize_", counted_resize)
        self._resize_patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._resize_patch.stop()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            # A DTensor, or the result of a collective under way: it calls the operation on the tensor within it next,
            # which comes here too.
            return NotImplemented
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self._sizes:
            self._sizes[id(storage)] = 0
            weakref.finalize(storage, self._forget, id(storage)).atexit = False
            self._set_size(storage)

    def _set_size(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.now += size - self._sizes[id(storage)]
        self._sizes[id(storage)] = size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes that this rank holds of tensors, each storage once."""
    storages = [local_tensor(tensor).untyped_storage() for tensor in tensors]
    return sum({id(storage): storage.nbytes() for storage in storages}.values())
