"""Files of a checkpoint: their names and checksums, and which tensor is where in them, as JSON."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from harness.errors import CheckpointError
from harness.records.files import has_valid_seal
from harness.regular_files import load_json
from harness.text import counted

MANIFEST = "manifest.json"
# Of the manifest.
FORMAT_VERSION = 4
# The files that PyTorch and CheckpointStore write into a checkpoint's folder.
CHECKPOINT_FILE = re.compile(
    r"__\d+_\d+\.distcp|\.metadata|\.metadata\.tmp|manifest\.json|\.manifest\.json\.\d+-[0-9a-f]{8}\.partial"
)
_HASH_CHUNK_BYTES = 1 << 22
# Of weights and optimizer state.
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16,
           "int64": torch.int64, "int32": torch.int32}  # fmt: skip

Beat = Callable[[], None]
"""Called while a checkpoint is written or read, however long that takes: a run without progress counts as hung."""


class ManifestReader(FileSystemReader):
    """Reader of a checkpoint's tensors that cannot run code.

    PyTorch's own reader unpickles the file .metadata, which can run any code. Here, the place of every tensor comes
    from the manifest, and .metadata, which PyTorch writes for its own tools, is never unpickled. The tensors themselves
    are read with `weights_only`.
    """

    def __init__(self, folder: Path, layout: Mapping[str, Any], files: Collection[str]) -> None:
        """
        Args:
            layout: of the tensors, as `describe_layout` returns it.
            files: names of the files whose checksums are right; no other is read.

        Raises:
            ValueError: the layout is none, or names another file.
        """
        super().__init__(folder)
        try:
            self._metadata = _to_metadata(layout, files)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"holds no layout of tensors ({type(error).__name__}: {error})") from error

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


class PlacingWriter(FileSystemWriter):
    """Writer that keeps where each chunk went: in torch 2.9 the metadata that `save` returns lack it."""

    places: Mapping[MetadataIndex, Any] = {}
    """By chunk, on the process that finishes the checkpoint; set by `finish`."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.places = {written.index: written.storage_data for by_rank in results for written in by_rank}
        super().finish(metadata, results)


def describe_layout(metadata: Metadata, places: Mapping[MetadataIndex, Any]) -> dict[str, Any]:
    """Return the data type, shape and place of every tensor of a checkpoint that was saved, as JSON values.

    Args:
        places: by chunk, as `PlacingWriter` has them.

    Raises:
        TypeError: the checkpoint holds something else than tensors, which could be read only by unpickling it.
    """
    layout: dict[str, Any] = {}
    for name, found in metadata.state_dict_metadata.items():
        if not isinstance(found, TensorStorageMetadata):
            raise TypeError(f"{name} is not a tensor")
        chunks = []
        for chunk in found.chunks:
            place = places[MetadataIndex(name, chunk.offsets)]
            chunks.append(
                {
                    "offsets": list(chunk.offsets),
                    "sizes": list(chunk.sizes),
                    "file": place.relative_path,
                    "at_byte": place.offset,
                    "bytes": place.length,
                }
            )
        dtype = str(found.properties.dtype).removeprefix("torch.")
        layout[name] = {"dtype": dtype, "shape": list(found.size), "chunks": chunks}
    return layout


@dataclass(frozen=True)
class _Place:
    """A chunk's place in a file, with the fields that PyTorch's reader uses."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: Sequence[str] = ()


def _to_metadata(layout: Mapping[str, Any], files: Collection[str]) -> Metadata:
    tensors, places = {}, {}
    for name, tensor in layout.items():
        chunks = []
        for chunk in tensor["chunks"]:
            offsets = torch.Size(chunk["offsets"])
            chunks.append(ChunkStorageMetadata(offsets, torch.Size(chunk["sizes"])))
            if chunk["file"] not in files:
                raise ValueError(f"names the file {chunk['file']!r}, of which it has no checksum")
            place = _Place(chunk["file"], int(chunk["at_byte"]), int(chunk["bytes"]))
            places[MetadataIndex(name, offsets)] = place
        properties = TensorProperties(dtype=_DTYPES[tensor["dtype"]])
        tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor["shape"]), chunks)
    return Metadata(tensors, storage_data=places)


def read_manifest(path: Path, workload_id: str, remedy: str) -> dict[str, Any]:
    """Return the manifest of a checkpoint's folder.

    Args:
        remedy: for the message about a damaged one.

    Raises:
        CheckpointError: it is missing, damaged, of another workload or of another version.
    """
    file = path / MANIFEST
    try:
        manifest = load_json(file)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{file}: cannot be read: {why}; {remedy}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{file}: not a checkpoint of this harness; {remedy}")
    if version != FORMAT_VERSION:
        older = "go on with the version of the harness that wrote it, or train again, with another out=DIR"
        age, cure = ("newer", "upgrade it") if version > FORMAT_VERSION else ("older", older)
        raise CheckpointError(
            f"{file}: format_version {version} is {age} than this harness reads ({FORMAT_VERSION}); {cure}"
        )
    if manifest.get("workload_id") != workload_id:
        raise CheckpointError(
            f"{path}: is of workload {manifest.get('workload_id')}, expected {workload_id}; resume with the "
            "settings that the run started with, or choose another out=DIR"
        )
    if not has_valid_seal(manifest):
        raise CheckpointError(f"{file}: was changed after it was written (content_sha256 differs); {remedy}")
    for key, kind in (("step", int), ("files", dict), ("tensors", dict), ("progress", dict)):
        if not isinstance(manifest.get(key), kind):
            raise CheckpointError(f"{file}: has no usable {key}; {remedy}")
    return manifest


def describe_file(path: Path, heartbeat: Beat) -> dict[str, Any]:
    """Return the size and the checksum of a file, as the manifest has them."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path, heartbeat)}


def find_damage(folder: Path, name: str, expected: Any, heartbeat: Beat) -> str | None:
    """Return the difference between a checkpoint's file and its entry in the manifest, or None."""
    if not CHECKPOINT_FILE.fullmatch(name):
        return f"{MANIFEST} names {name!r}, which is no file of a checkpoint"
    if not isinstance(expected, dict) or set(expected) != {"bytes", "sha256"}:
        return f"{MANIFEST} has no checksum of {name}"
    try:
        found = os.lstat(folder / name)
        difference = None
        if not stat.S_ISREG(found.st_mode):
            difference = "it is not a regular file"
        elif found.st_size != expected["bytes"]:
            difference = f"it has {counted(found.st_size, 'byte')}, expected {expected['bytes']}"
        elif _sha256(folder / name, heartbeat) != expected["sha256"]:
            difference = f"its checksum differs from the one in {MANIFEST}"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None if difference is None else f"{name} is damaged: {difference}"


def _sha256(path: Path, heartbeat: Beat) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_HASH_CHUNK_BYTES):
            digest.update(part)
            heartbeat()
    return digest.hexdigest()
