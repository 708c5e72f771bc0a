"""Weights in Hugging Face's safetensors files: names and shapes, read row by row, and written.

Ours and theirs differ in names, in GPT-2's matrices (its files hold them transposed, and the projections to queries,
keys and values as one) and in those of experts (one tensor each).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness.config import RANDOM, Config, ModelConfig
from harness.errors import DataError
from harness.file_formats import foreign_format, read_head, special_file
from harness.regular_files import load_json
from harness.text import counted, shortened

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
GPT2_PREFIX = "transformer."
DTYPES = ("F64", "F32", "F16", "BF16")
# Problems that a message names.
SHOWN = 3


LLAMA_NAMES = {
    "embedding": "embed_tokens",
    "norm": "norm",
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
GPT2_NAMES = {
    "embedding": "wte",
    "position": "wpe",
    "norm": "ln_f",
    "attention_norm": "ln_1",
    "attention.q": "attn.c_attn",
    "attention.k": "attn.c_attn",
    "attention.v": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
GPT2_FUSED = ("attention.q", "attention.k", "attention.v")
# Names of the router and of an expert's projections, {} being its number, by family.
QWEN3_EXPERTS = {
    "feed_forward.router": "mlp.gate",
    "feed_forward.gate": "mlp.experts.{}.gate_proj",
    "feed_forward.up": "mlp.experts.{}.up_proj",
    "feed_forward.down": "mlp.experts.{}.down_proj",
}
MIXTRAL_EXPERTS = {
    "feed_forward.router": "block_sparse_moe.gate",
    "feed_forward.gate": "block_sparse_moe.experts.{}.w1",
    "feed_forward.up": "block_sparse_moe.experts.{}.w3",
    "feed_forward.down": "block_sparse_moe.experts.{}.w2",
}


class Source(NamedTuple):
    """Their tensor that holds one of our parameters, or some rows of it."""

    name: str
    rows: int
    """Of our parameter."""
    first: int = 0
    """Its row that is our first one; of a transposed matrix, its column."""
    transposed: bool = False


def sources_of(name: str, model: ModelConfig, shape: torch.Size) -> list[Source]:
    """Return where their files hold one of our parameters, given by name and shape: its rows in order."""
    module, _, kind = name.rpartition(".")
    if module == "head":
        return [Source("lm_head.weight", shape[0])]
    block = ""
    if module.startswith("blocks."):
        _, block, module = module.split(".", maxsplit=2)
        block += "."
    # What a family has no name for keeps ours, and is missing in its files.
    if model.position_embedding != "learned":
        names = LLAMA_NAMES if model.num_experts is None else {**LLAMA_NAMES, **expert_names(model)}
        theirs = f"model.layers.{block}{{}}.{kind}" if block else f"model.{{}}.{kind}"
        theirs = theirs.format(names.get(module, module))
        # Each expert's matrix is a tensor of its own.
        count = model.num_experts if model.num_experts is not None and "{}" in theirs else 1
        return [Source(theirs.format(number), shape[0] // count) for number in range(count)]
    layer = f"h.{block}" if block else ""
    part = GPT2_FUSED.index(module) if module in GPT2_FUSED else 0
    theirs = f"{GPT2_PREFIX}{layer}{GPT2_NAMES.get(module, module)}.{kind}"
    return [Source(theirs, shape[0], part * shape[0], transposed=bool(block) and len(shape) > 1)]


def expert_names(model: ModelConfig) -> Mapping[str, str]:
    """Return the names of router and experts in the model's family."""
    return QWEN3_EXPERTS if model.qk_norm else MIXTRAL_EXPERTS


def open_weights(config: Config) -> WeightFiles | None:
    """Return the files that the initial weights come from, or None if they are random.

    Raises:
        DataError: there is none, or one is damaged or of another format.
    """
    return None if config.init == RANDOM else WeightFiles(config.init, config.model)


class WeightFiles:
    """The tensors of a safetensors file, or of the files that an index names. Only what is asked for is read."""

    def __init__(self, given: str, model: ModelConfig) -> None:
        """
        Args:
            given: a file, an index, or the folder that holds one, as `init` states it.

        Raises:
            DataError: there is none, or one is damaged, of another format, or outside its index's folder.
        """
        self.path, self._model = Path(given), model
        self._files: dict[str, Any] = {}
        for file, listed in _files(self.path):
            opened = _open(file)
            names = set(opened.keys())
            if listed - names:
                raise DataError(f"init: {file}: has no tensor {min(listed - names)}, which the index says it has")
            self._files |= dict.fromkeys(names, opened)

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Check that the files hold every parameter of the model in its shape, and nothing else.

        Args:
            shapes: of our parameters by name.

        Raises:
            DataError: naming the tensors that are missing, surplus, of another shape or no floating-point numbers.
        """
        wanted: dict[str, list[int]] = {}
        for name, shape in shapes.items():
            for source in sources_of(name, self._model, shape):
                # Of several parameters in one tensor the last comes last.
                own = [source.first + source.rows, *shape[1:]]
                wanted[self._name(source.name)] = own[::-1] if source.transposed else own
        problems = []
        for name, shape in wanted.items():
            if name not in self._files:
                problems.append(f"{name} is missing")
                continue
            part = self._files[name].get_slice(name)
            if part.get_shape() != shape:
                problems.append(f"{name} has shape {part.get_shape()}, expected {shape}")
            elif part.get_dtype() not in DTYPES:
                problems.append(f"{name} has type {part.get_dtype()}, expected one of {', '.join(DTYPES)}")
        problems += [f"{name} belongs to no parameter of the model" for name in sorted(self._files.keys() - wanted)
                     if not self._is_ignored(name)]  # fmt: skip
        if any(name.endswith(".experts.gate_up_proj") for name in self._files):
            raise DataError(
                f"init: {self.path}: holds all experts of a block in one tensor, expected one of each; save the model "
                "again with save_pretrained(DIR), whose save_original_format is true"
            )
        if problems:
            more = "" if len(problems) <= SHOWN else f"; and {counted(len(problems) - SHOWN, 'other')}"
            raise DataError(
                f"init: {self.path}: does not hold this model: {'; '.join(problems[:SHOWN])}{more}; use the "
                "config.json beside it, with model=hf model.path=..."
            )

    def value(self, name: str, shape: torch.Size, rows: range) -> torch.Tensor:
        """Return some rows of one of our parameters: float32, on the CPU."""
        if not rows:
            return torch.empty((0, *shape[1:]))
        parts, first = [], 0
        for source in sources_of(name, self._model, shape):
            own = range(max(rows.start, first), min(rows.stop, first + source.rows))
            if own:
                start, stop = (source.first + row - first for row in (own.start, own.stop))
                stored = self._files[self._name(source.name)].get_slice(self._name(source.name))
                part = stored[:, start:stop].t() if source.transposed else stored[start:stop]
                parts.append(part.to(torch.float32))
            first += source.rows
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _name(self, name: str) -> str:
        """Return a tensor's name in these files: those of GPT-2 may lack the prefix."""
        short = name.removeprefix(GPT2_PREFIX)
        return short if name not in self._files and short in self._files else name

    def _is_ignored(self, name: str) -> bool:
        """Return whether a tensor is no parameter: GPT-2's mask, rotary frequencies, or a copy of a tied head."""
        return name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")) or (
            name == "lm_head.weight" and self._model.tie_word_embeddings
        )


def _files(path: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield each file with the names of the tensors that an index says it has; without an index, none."""
    if path.is_dir():
        found = [path / name for name in (INDEX_FILE, WEIGHTS_FILE) if (path / name).exists()]
        if not found:
            raise DataError(
                f"init: {path}: holds neither {WEIGHTS_FILE} nor {INDEX_FILE}; name a file or folder with one"
            )
        path = found[0]
    if path.suffix != ".json":
        yield path, set()
        return
    try:
        weight_map = load_json(path).get("weight_map")
        by_file: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            by_file.setdefault(file, set()).add(name)
    except OSError as error:
        raise DataError(f"init: {path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"init: {path}: is no index of safetensors files; name that, or its folder") from error
    for file, names in sorted(by_file.items()):
        if Path(file).name != file:
            raise DataError(f"init: {path}: names the file {shortened(file)!r} outside its folder; download it again")
        yield path.parent / file, names


def safetensors_library(key: str) -> Any:
    """Return the package safetensors, with its module for torch.

    Raises:
        DataError: it is not installed.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise DataError(f"{key}: needs the package safetensors; pip install safetensors") from error
    return safetensors


def _open(file: Path) -> Any:
    library = safetensors_library("init")
    try:
        kind = special_file(file)
        foreign = (kind, "name a file of weights") if kind is not None else foreign_format(read_head(file), file.name)
        # Its own format is in the list, as one that holds no training data.
        if foreign is not None and "safetensors" not in foreign[0]:
            raise DataError(f"init: {file}: is {foreign[0]}, expected a safetensors file; {foreign[1]}")
        return library.safe_open(file, framework="pt")
    except OSError as error:
        raise DataError(
            f"init: {file}: cannot be read: {error.strerror or error}; check init and permissions"
        ) from error
    except library.SafetensorError as error:
        raise DataError(
            f"init: {file}: is no complete safetensors file: {shortened(str(error))}; copy it again"
        ) from error
