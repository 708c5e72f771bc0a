"""Files of a checkpoint: their checksums, and a reader that runs no code."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from harness.text import counted

MANIFEST = "manifest.json"
_HASH_CHUNK_BYTES = 1 << 22


class SafeReader(FileSystemReader):
    """Reader of checkpoints that cannot run code.

    PyTorch reads the tensors with `weights_only`, but the metadata as a plain pickle: here, only the types that
    metadata consists of are unpickled.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f".metadata holds {type(metadata).__name__}")
        # Entries other than tensors would be unpickled without restriction when they are read.
        for name, entry in metadata.state_dict_metadata.items():
            if type(entry).__name__ != "TensorStorageMetadata":
                raise pickle.UnpicklingError(f"{name} is not a tensor")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
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
        if module == "pathlib._local":
            # The home of PosixPath in Python 3.13 only; a checkpoint may be read by another release than wrote it.
            module = "pathlib"
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ours = module in self._MODULES and isinstance(getattr(__import__(module, fromlist=[name]), name, None), type)
        if dtype or ours or (module, name) in self._NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f".metadata asks for {module}.{name}, which no checkpoint needs")


def describe_file(path: Path) -> dict[str, Any]:
    """Return the size and the checksum of a file, as the manifest has them."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def find_damage(path: Path, expected: Mapping[str, Any]) -> str | None:
    """Return the difference between a file and its entry in the manifest, or None."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path.name} is damaged: it has {counted(size, 'byte')}, expected {expected['bytes']}"
        if _sha256(path) != expected["sha256"]:
            return f"{path.name} is damaged: its checksum differs from the one in {MANIFEST}"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_HASH_CHUNK_BYTES):
            digest.update(part)
    return digest.hexdigest()
