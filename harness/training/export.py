"""Weights of a checkpoint as a Hugging Face model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from harness.config import ModelConfig, flatten, from_settings, workload_id
from harness.errors import ConfigError
from harness.huggingface import CONFIG_FILE, to_huggingface
from harness.records.files import write_atomically, write_failure
from harness.records.run_folder import checkpoint_steps, read_settings
from harness.training.checkpoint import CheckpointStore
from harness.training.distributed.collectives import Ranks
from harness.workload.model import parameter_shapes
from harness.workload.weights import INDEX_FILE, WEIGHTS_FILE, Source, safetensors_library, sources_of

MAX_FILE_BYTES = 5_000_000_000


def export_checkpoint(run: Path, out: Path, dtype: str, *, max_file_bytes: int = MAX_FILE_BYTES) -> list[Path]:
    """Write the weights of a run's newest checkpoint, and return the files.

    Args:
        run: folder of the run.
        out: folder to create, or an empty one.
        dtype: name of a floating-point type of torch.

    Raises:
        ConfigError: there is no checkpoint, the folder is in use, or no family of transformers describes the model.
        CheckpointError: the checkpoint is damaged.
        RunFailed: a file cannot be written.
    """
    safetensors_library("export")
    settings = read_settings(run)
    model = from_settings(ModelConfig, flatten(settings["model"]))
    # A model that cannot be described is refused before a folder is made.
    to_huggingface(model, dtype)
    steps = checkpoint_steps(run)
    if not steps:
        raise ConfigError(f"export: {run} holds no checkpoint; start the run with checkpoint.every, and out={run}")
    _make_folder(out)
    weights = _read_weights(run, steps[-1], model, workload_id(settings))
    return write_model(weights, model, out, dtype, max_file_bytes=max_file_bytes)


def write_model(
    weights: Mapping[str, torch.Tensor], model: ModelConfig, out: Path, dtype: str, *,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> list[Path]:  # fmt: skip
    """Write weights, by our names, and the description of their model as transformers reads them; return the files.

    Raises:
        ConfigError: no family of transformers describes the model.
        RunFailed: a file cannot be written.
    """
    library = safetensors_library("export")
    description = to_huggingface(model, dtype)
    tensors = _theirs(weights, model, getattr(torch, dtype))
    files = list(_files(tensors, max_file_bytes))
    written, by_tensor = [], {}
    for number, part in enumerate(files, 1):
        name = WEIGHTS_FILE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        try:
            library.torch.save_file(part, out / name, metadata={"format": "pt"})
        except (OSError, library.SafetensorError) as error:
            # The library has an error of its own for a full disk, and leaves what it has written.
            with suppress(OSError):
                (out / name).unlink()
            raise write_failure(out / name, OSError(*error.args)) from error
        by_tensor |= dict.fromkeys(part, name)
        written.append(out / name)
    if len(files) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(by_tensor.items()))}
        written.append(write_atomically(out / INDEX_FILE, json.dumps(index, indent=2) + "\n"))
    last = write_atomically(out / CONFIG_FILE, json.dumps(description, indent=2) + "\n")
    for file in written:
        # Some releases of safetensors let the owner alone read a file.
        shutil.copymode(last, file)
    return [*written, last]


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigError(f"--out: {out} is not empty; choose another folder")
    except OSError as error:
        raise ConfigError(f"--out: cannot create the folder {out}: {error.strerror}; choose another") from error


def _read_weights(run: Path, step: int, model: ModelConfig, work: str) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights, float32 on the CPU, by our names."""
    weights = {name: torch.empty(shape) for name, shape in parameter_shapes(model).items()}
    store = CheckpointStore(run, Ranks(), workload_id=work, keep=1)
    store.load(step, {f"model.{name}": weight for name, weight in weights.items()})
    return weights


def _theirs(weights: Mapping[str, torch.Tensor], model: ModelConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the weights by Hugging Face's names."""
    parts: dict[str, list[tuple[Source, torch.Tensor]]] = {}
    for name, weight in weights.items():
        sources = sources_of(name, model, weight.shape)
        for source, part in zip(sources, weight.split([each.rows for each in sources]), strict=True):
            parts.setdefault(source.name, []).append((source, part))
    named: dict[str, torch.Tensor] = {}
    for name, found in parts.items():
        found.sort(key=lambda part: part[0].first)
        # A copy: safetensors refuses tensors that share their storage, as those of experts do.
        whole = torch.cat([weight for _, weight in found]).to(dtype)
        named[name] = whole.t().contiguous() if found[0][0].transposed else whole
    return named


def _files(tensors: Mapping[str, torch.Tensor], max_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of each file."""
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > max_bytes:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part
