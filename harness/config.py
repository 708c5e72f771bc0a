"""Every setting of a run: its type, its meaning, its limits; and the identity of the work that it describes.

Hydra composes YAML files into these dataclasses (see composition.py). Values live in configs/, types and
meanings here; checks.py refuses what is impossible before anything is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from harness.errors import ConfigError
from harness.log import FORMS, LEVELS

# Bump when the same settings begin to mean other work: another initialisation, language, or update rule.
WORKLOAD_VERSION = 1

PRECISIONS = ("fp32", "bf16", "fp16")
# What a backend may bring kernels of its own for, with track=tuned.
OPERATIONS = ("attention", "rotary", "rms_norm", "swiglu", "cross_entropy")


def bounded(default: Any = MISSING, *, minimum: float | None = None, maximum: float | None = None,
            above: float | None = None, below: float | None = None,
            choices: tuple[str, ...] | None = None) -> Any:  # fmt: skip
    """Return a dataclass field with the limits that checks.py enforces."""
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below, "choices": choices}
    return field(default=default, metadata={key: value for key, value in limits.items() if value is not None})


@dataclass
class BackendConfig:
    name: str = MISSING
    """The registered backend that runs the work. Named by the user, never detected."""
    device_index: int = bounded(0, minimum=0)
    """Which device of this kind, counted as the vendor's runtime counts the visible ones."""
    threads: int | None = bounded(None, minimum=1)
    """Host threads for one operation; null takes every core that the process may use."""


@dataclass
class ModelConfig:
    name: str = MISSING
    """Label in records and folder names."""
    vocab_size: int = bounded(minimum=2)
    """Number of distinct token ids."""
    max_position_embeddings: int = bounded(minimum=1)
    """Longest sequence the model takes: rows of the position table, or the published context length."""
    num_hidden_layers: int = bounded(minimum=1)
    """Transformer blocks."""
    hidden_size: int = bounded(minimum=1)
    """Size of the residual stream."""
    num_attention_heads: int = bounded(minimum=1)
    """Query heads of attention."""
    num_key_value_heads: int | None = bounded(None, minimum=1)
    """Key and value heads; null means as many as `heads`. Fewer is grouped-query attention."""
    intermediate_size: int | None = bounded(None, minimum=1)
    """Inner size of the feed-forward block; null means 4 x width."""
    norm: str = bounded("layernorm", choices=("layernorm", "rmsnorm"))
    """Normalisation before each block and at the end."""
    norm_eps: float = bounded(1e-5, above=0.0)
    """Added to the variance inside the norm."""
    activation: str = bounded("gelu_tanh", choices=("gelu", "gelu_tanh", "swiglu"))
    """Feed-forward non-linearity: exact GELU, its tanh approximation (GPT-2's), or SwiGLU (Llama's).

    The presets use the approximation, since it is the one that every device has: Ascend's kernel computes it for
    either. Which one a device computes is found out before a run begins."""
    position_embedding: str = bounded("rotary", choices=("learned", "rotary"))
    """A trained table added to the embedding, or rotation of queries and keys."""
    rope_theta: float = bounded(10000.0, above=0.0)
    """Base of the rotary frequencies; read only with positions=rotary."""
    bias: bool = False
    """Biases in the linear layers and norms."""
    tie_word_embeddings: bool = True
    """Whether the output projection shares the token embedding's weights."""
    initializer_range: float = bounded(0.02, above=0.0)
    """Standard deviation of the initial weights."""
    scaled_residual_init: bool = True
    """Divide the initial weights of each block's two output projections by sqrt(2 x layers), as GPT-2 does."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, more time, the same numbers."""


@dataclass
class DataConfig:
    name: str = bounded(choices=("synthetic", "text", "tokens"))
    """Where tokens come from."""
    path: str | None = None
    """File or folder to read (text, tokens)."""
    eval_path: str | None = None
    """A separate held-out file or folder; null holds out the last `eval_fraction` of `path`."""
    eval_fraction: float = bounded(0.05, above=0.0, below=1.0)
    """Share of the tokens of `path` that is held out for evaluation when there is no `eval_path`."""
    glob: str = "*"
    """File-name pattern, matched in every sub-folder of a folder given as `path` (text)."""
    invalid_files: str = bounded("error", choices=("error", "skip"))
    """What to do with a file that is not UTF-8 (text); skipped files are counted in the record."""
    tokenizer: str | None = None
    """A Hugging Face tokenizer.json (text), without its truncation and padding, and with the separators that it adds
    itself; null reads bytes as tokens 0 to 255 with a NUL after each file."""
    dtype: str = bounded("uint16", choices=("uint16", "uint32"))
    """Element type of a raw .bin file (tokens); little-endian."""


@dataclass
class WorkloadConfig:
    name: str = MISSING
    """Label in records."""
    steps: int = bounded(minimum=1)
    """Optimizer steps in all, the warm-up included."""
    timing_warmup_steps: int = bounded(minimum=1)
    """First steps of the same training that are left out of the timing; the very first is reported apart."""
    interval_steps: int = bounded(10, minimum=1)
    """Steps between two synchronisations in the measured window: the unit of raw timing."""
    seq_len: int = bounded(minimum=1)
    """Tokens in one training sequence."""
    global_batch_size: int = bounded(minimum=1)
    """Sequences per optimizer step, over all devices."""
    micro_batch_size: int = bounded(minimum=1)
    """Sequences per forward pass on one device; the rest is gradient accumulation."""
    eval_every: int = bounded(0, minimum=0)
    """Evaluate on held-out data after every so many steps and at the end; 0 never does."""
    eval_sequences: int = bounded(64, minimum=1)
    """Held-out sequences per evaluation, always the same ones."""
    learning_rate: float = bounded(above=0.0)
    """Peak learning rate."""
    min_lr_ratio: float = bounded(0.1, minimum=0.0, maximum=1.0)
    """Where the cosine decay ends, as a fraction of the peak."""
    lr_warmup_steps: int = bounded(0, minimum=0)
    """Steps over which the learning rate rises linearly from zero; unlike timing_warmup_steps, part of the work."""
    weight_decay: float = bounded(0.1, minimum=0.0)
    """AdamW's decoupled decay, on matrices only: biases and norm weights are not decayed."""
    beta1: float = bounded(0.9, minimum=0.0, below=1.0)
    """AdamW's first-moment decay."""
    beta2: float = bounded(0.95, minimum=0.0, below=1.0)
    """AdamW's second-moment decay."""
    epsilon: float = bounded(1e-8, above=0.0)
    """AdamW's denominator term."""
    max_grad_norm: float = bounded(1.0, above=0.0)
    """Gradients are scaled down to this global 2-norm when they exceed it."""


@dataclass
class ParallelConfig:
    name: str = bounded(choices=("single", "ddp", "fsdp"))
    """How the work is spread over devices: not at all, by DDP (each holds the whole model), or by FSDP2 (each holds
    its shard). The last two are started by torchrun, one process for each device."""
    timeout_seconds: float = bounded(600.0, above=0.0)
    """Give up when no process has got any further for so long, or did not come. Longer than the longest step."""
    hybrid_shard: bool = False
    """With fsdp on several hosts: shard over the devices of each host and keep a copy on every host."""
    cpu_offload: bool = False
    """With fsdp: keep shards, gradients and AdamW's moments in the host's memory, and update them there."""
    low_precision_all_gather: bool = True
    """With fsdp and bf16 or fp16: cast the blocks' weights before they are gathered, which halves the traffic."""
    scaling_reference: str | None = None
    """Folder of a finished run of the same work on fewer devices: the record then says how much of its speed per
    device this run keeps."""


@dataclass
class TrackConfig:
    name: str = bounded(choices=("portable", "tuned"))
    """Which rules the run keeps: portable is stock PyTorch, the same calls on every device; tuned is what is fastest on
    each, for the same mathematics. Runs of different tracks are never compared."""
    adamw: str | None = bounded("foreach", choices=("for_loop", "foreach", "fused"))
    """Which of PyTorch's AdamW implementations runs; null is the backend's own choice."""
    compile: str | None = bounded("no", choices=("no", "blocks", "model"))
    """With tuned: torch.compile of each transformer block, or of the whole model; null is the backend's own choice."""
    attention: str | None = "stock"
    """With tuned: which of the backend's attention kernels runs; null is the backend's own choice."""
    rotary: str | None = "stock"
    """With tuned: likewise, for the rotation of queries and keys."""
    rms_norm: str | None = "stock"
    """With tuned: likewise, for RMSNorm."""
    swiglu: str | None = "stock"
    """With tuned: likewise, for SwiGLU."""
    cross_entropy: str | None = "stock"
    """With tuned: which of the backend's cross-entropies runs; null is the backend's own choice."""
    activation_memory_budget: float | None = bounded(1.0, above=0.0, maximum=1.0)
    """With tuned: share of the memory for activations that compiled parts may take; what does not fit is computed again
    in the backward pass, cheapest first. The same numbers; null is the backend's own choice."""


@dataclass
class CheckpointConfig:
    every: int = bounded(0, minimum=0)
    """Save after every so many steps, at the end and when interrupted; 0 never does."""
    keep: int = bounded(2, minimum=1)
    """How many checkpoints to keep; older ones are removed once a new one is whole."""


@dataclass
class Config:
    backend: BackendConfig = MISSING
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    workload: WorkloadConfig = MISSING
    parallel: ParallelConfig = MISSING
    track: TrackConfig = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    experiment: str | None = None
    """The experiment file that was chosen, if any."""
    precision: str = bounded("fp32", choices=PRECISIONS)
    """fp32: everything in float32, no TF32 or HF32. bf16, fp16: autocast over float32 weights."""
    seed: int = bounded(1, minimum=0)
    """Seed of initial weights and of the order or content of the data."""
    repeats: int = bounded(1, minimum=1)
    """How many times to run, each in a fresh process, into out/1, out/2, ..."""
    out: str | None = None
    """Folder of the run; null makes runs/<UTC time>-<backend>-<model>."""
    peak_dir: str = "runs/peaks"
    """Where `python -m harness peak` leaves its records, and where a run looks for the newest one of its device and
    software to be held against."""
    profile: bool = False
    """After the last measured step, look where the time of a step goes: a table in summary and record, and PyTorch's
    trace in the run's folder. It takes nine more steps, whose weights nobody keeps."""
    telemetry: bool = True
    """Read the device's power, temperature and clock beside the loop, where it tells them; the record then tells energy
    too."""
    log: str = bounded("human", choices=FORMS)
    """Form of what is said while a run goes on, on standard error: lines for people, or one JSON object a line. With
    json the summary at the end is such a line too."""
    log_level: str = bounded("info", choices=LEVELS)
    """The least of what is said there."""
    metrics_file: str | None = None
    """A file for node_exporter's textfile collector (Prometheus), rewritten after each block; its name ends in .prom.
    Also as --metrics-file PATH."""
    tensorboard: bool = False
    """Write curves for TensorBoard into the run's folder."""
    autotune: bool = False
    """Try the micro-batch sizes that the global batch allows, each in a short run of its own, and name the fastest."""
    resume: str | None = bounded(None, choices=("auto",))
    """auto: go on from the newest checkpoint in out=DIR, or begin there if there is none; null never does."""
    on_nonfinite: str = bounded("stop", choices=("stop", "skip"))
    """When loss or gradient is no longer finite: stop the run, or skip the update, which costs a wait for the device in
    every step. With fp16 the loss scaler skips overflowing gradients by itself."""
    nonfinite_limit: int = bounded(10, minimum=1)
    """With on_nonfinite=skip: how many updates may be skipped before the run is given up."""
    loss_spike_factor: float | None = bounded(None, above=1.0)
    """Stop when a step's loss is so many times the median of the 50 before it; null never does."""
    target_loss: float | None = bounded(None, above=0.0)
    """Stop when the evaluation loss has come down to this; the time it took is recorded."""


def num_key_value_heads(model: ModelConfig) -> int:
    """Return the number of key and value heads."""
    return model.num_attention_heads if model.num_key_value_heads is None else model.num_key_value_heads


def intermediate_size(model: ModelConfig) -> int:
    """Return the inner size of the feed-forward block."""
    return 4 * model.hidden_size if model.intermediate_size is None else model.intermediate_size


def iter_settings(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, dataclass field, value) for every leaf of a config, or of a config class."""
    for item in fields(node):
        key = prefix + item.name
        value = getattr(node, item.name, MISSING)
        kind = globals().get(item.type, item.type) if isinstance(item.type, str) else item.type
        if isinstance(kind, type) and is_dataclass(kind):
            yield from iter_settings(value if is_dataclass(value) else kind, key + ".")
        else:
            yield key, item, value


# Settings that decide how or where the work is done, not what is computed. Everything else is part of the
# workload's identity, so a setting added later counts as work until somebody says otherwise here.
EXCLUDED_FROM_WORKLOAD_ID = (
    "backend.*",
    "parallel.*",
    # Compared on its own: two tracks do the same work by different rules.
    "track.*",
    "experiment",
    "repeats",
    "out",
    "peak_dir",
    "profile",
    "telemetry",
    "log",
    "log_level",
    "metrics_file",
    "tensorboard",
    "autotune",
    "resume",
    "checkpoint.*",
    # A run in which nothing was skipped is the same work; what was skipped is in the record.
    "on_nonfinite",
    "nonfinite_limit",
    "loss_spike_factor",
    # Labels.
    "model.name",
    "workload.name",
    # Where the data lies; what it holds is proved by the batch digest.
    "data.path",
    "data.eval_path",
    "data.tokenizer",
    # How a global batch is cut up for one device, and what is kept or recomputed.
    "workload.micro_batch_size",
    "model.activation_checkpointing",
    # How the clock is read.
    "workload.timing_warmup_steps",
    "workload.interval_steps",
)


def is_part_of_the_work(key: str) -> bool:
    """Return whether a setting, by its dotted key, decides what is computed."""
    return not any(
        key == name or (name.endswith(".*") and key.startswith(name[:-1])) for name in EXCLUDED_FROM_WORKLOAD_ID
    )


def workload_settings(config: Config) -> dict[str, Any]:
    """Return the settings that define the work, by dotted key, with defaults that mean the same made equal."""
    work = {key: value for key, _, value in iter_settings(config) if is_part_of_the_work(key)}
    work["model.num_key_value_heads"] = num_key_value_heads(config.model)
    work["model.intermediate_size"] = intermediate_size(config.model)
    if config.model.position_embedding != "rotary":
        work["model.rope_theta"] = None
    return work


def workload_id(config: Config) -> str:
    """Return the identity of the work: 16 hexadecimal digits of a SHA-256 over its settings.

    Two runs with equal ids were asked to compute the same thing; that they did is for the digests and the
    loss curves to prove.
    """
    identity = {"version": WORKLOAD_VERSION, **workload_settings(config)}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_dict(config: Config) -> dict[str, Any]:
    """Return the whole config as plain nested dictionaries."""
    return asdict(config)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def to_yaml(config: Config) -> str:
    """Return the whole config as YAML: what config.yaml holds."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def config_directory() -> Path:
    """Return the folder of YAML files: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"the configs folder is missing beside {package}; install the package again")
