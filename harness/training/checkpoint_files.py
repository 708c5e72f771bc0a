"""The files of a checkpoint: their checksums, and a reader that runs no code."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

MANIFEST = "manifest.json"


_HASH_BYTES = 1 << 22


class SafeReader(FileSystemReader):
    """Reads checkpoints without letting them run code.

    The tensors are read with `weights_only` by PyTorch itself; the list of what lies where is a plain pickle, of which
    only the types that such a list is made of are taken.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _ListUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f".metadata holds {type(metadata).__name__}")
        # No entry is anything but a tensor: other values would be unpickled freely when they are read.
        for name, entry in metadata.state_dict_metadata.items():
            if type(entry).__name__ != "TensorStorageMetadata":
                raise pickle.UnpicklingError(f"{name} is no tensor")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _ListUnpickler(pickle.Unpickler):
    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    _NAMES = frozenset(
        {
            ("collections", "OrderedDict"),
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("pathlib", "PosixPath"),
            ("pathlib", "Path"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ours = module in self._MODULES and isinstance(getattr(__import__(module, fromlist=[name]), name, None), type)
        if dtype or ours or (module, name) in self._NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f".metadata asks for {module}.{name}, which no checkpoint needs")


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _damage(path: Path, expected: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path.name} is damaged: it has {size} bytes, expected {expected['bytes']}"
        if _sha256(path) != expected["sha256"]:
            return f"{path.name} is damaged: its checksum is not the one in {MANIFEST}"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_HASH_BYTES):
            digest.update(part)
    return digest.hexdigest()
