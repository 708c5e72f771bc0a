"""Every setting of a run: its type, meaning and limits; and workload_id, the identity of the work.

Hydra composes YAML files into these dataclasses (see composition.py). Values live in configs/, types and meanings
here; validation.py refuses impossible values before anything is built.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf

from harness.errors import ConfigError
from harness.log import FORMS, LEVELS

T = TypeVar("T")

# Bump when the same settings come to mean other work: another initialization, synthetic language, or update rule.
WORKLOAD_VERSION = 1

PRECISIONS = ("fp32", "bf16", "fp16", "bf16_weights")
# Number formats of matrix products, by which the speeds of devices are known.
PRODUCT_FORMATS = ("fp32", "bf16", "fp16")
# The option of `model` whose settings are in a file of the user's.
MODEL_OF_A_FILE = "hf"
# The value of `init` that names no file.
RANDOM = "random"
# The name of PyTorch's own operation among a backend's kernels.
STOCK = "stock"
# The operations for which a backend may bring its own kernels, used with track=tuned.
OPERATIONS = ("attention", "rotary", "rms_norm", "swiglu", "cross_entropy", "gradient_accumulation")


def bounded(default: Any = MISSING, *, minimum: float | None = None, maximum: float | None = None,
            above: float | None = None, below: float | None = None,
            choices: tuple[str, ...] | None = None) -> Any:  # fmt: skip
    """Return a dataclass field with the limits that validation.py enforces."""
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below, "choices": choices}
    return field(default=default, metadata={key: value for key, value in limits.items() if value is not None})


@dataclass
class BackendConfig:
    name: str = MISSING
    """The registered backend that runs the work. You name it; it is never detected."""
    device_index: int = bounded(0, minimum=0)
    """Index of the device among the visible ones, as the vendor's runtime counts them."""
    threads: int | None = bounded(None, minimum=1)
    """Host threads of one operation; null uses every core that the process may use."""


@dataclass
class RopeScalingConfig:
    rope_type: str = bounded("default", choices=("default", "linear", "llama3", "yarn"))
    """How the rotary frequencies are stretched for longer contexts: default (not at all), linear (positions divided by
    `factor`), llama3 (Llama 3.1's), or yarn (Peng et al. 2023). It changes short sequences too."""
    factor: float = bounded(1.0, minimum=1.0)
    """By how much the context is longer than the original one."""
    original_max_position_embeddings: int | None = bounded(None, minimum=1)
    """Context length before the stretching (llama3, yarn)."""
    low_freq_factor: float = bounded(1.0, above=0.0)
    """llama3: wavelengths above the original context divided by this are stretched in full."""
    high_freq_factor: float = bounded(4.0, above=0.0)
    """llama3: wavelengths below the original context divided by this stay as they are."""
    beta_fast: float = bounded(32.0, above=0.0)
    """yarn: frequencies with more turns than this over the original context stay as they are."""
    beta_slow: float = bounded(1.0, above=0.0)
    """yarn: frequencies with fewer turns than this over the original context are stretched in full."""
    attention_factor: float | None = bounded(None, above=0.0)
    """yarn: factor of the rotated queries and keys; null means 0.1 ln(factor) + 1."""


@dataclass
class ModelConfig:
    name: str = MISSING
    """Label in records and folder names."""
    path: str | None = None
    """With model=hf: a Hugging Face config.json, or its folder. Settings on the command line replace those in it."""
    # The data set needs memory for it before the model is checked. The largest vocabularies have 2^18 entries.
    vocab_size: int = bounded(minimum=2, maximum=1 << 24)
    """Number of distinct token ids."""
    max_position_embeddings: int = bounded(minimum=1)
    """Longest sequence that the model accepts: rows of the position table, or the published context length."""
    num_hidden_layers: int = bounded(minimum=1)
    """Transformer blocks."""
    hidden_size: int = bounded(minimum=1)
    """Size of the residual stream."""
    num_attention_heads: int = bounded(minimum=1)
    """Query heads of attention."""
    num_key_value_heads: int | None = bounded(None, minimum=1)
    """Key and value heads; null means `num_attention_heads`. Fewer is grouped-query attention."""
    head_dim: int | None = bounded(None, minimum=1)
    """Size of one head; null means hidden_size / num_attention_heads."""
    intermediate_size: int | None = bounded(None, minimum=1)
    """Inner size of the feed-forward block, or of each expert; null means 4 x hidden_size."""
    num_experts: int | None = bounded(None, minimum=1)
    """Experts in place of each feed-forward block; null: none."""
    num_experts_per_tok: int = bounded(2, minimum=1)
    """Experts that each token uses, of num_experts."""
    norm_topk_prob: bool = True
    """Divide the weights of a token's experts by their sum (Mixtral, Qwen3), or leave them as the router's softmax over
    all experts gives them."""
    routing: str = bounded("learned", choices=("learned", "round_robin"))
    """Choice of a token's experts. learned: those with the largest probabilities. round_robin: experts take turns by
    position, so that all have equally many tokens, and every device computes the same products."""
    norm: str = bounded("layernorm", choices=("layernorm", "rmsnorm"))
    """Normalization before each block's two parts and at the end."""
    norm_eps: float = bounded(1e-5, above=0.0)
    """Added to the variance inside the norm."""
    activation: str = bounded("gelu_tanh", choices=("gelu", "gelu_tanh", "swiglu"))
    """Feed-forward activation: exact GELU, its tanh approximation (GPT-2's), or SwiGLU (Llama's).

    The presets use the approximation, because every device has it: Ascend's kernel computes it for either name. The
    probe before a run finds out which one the device computes."""
    position_embedding: str = bounded("rotary", choices=("learned", "rotary"))
    """learned: a trained table added to the embedding. rotary: rotation of queries and keys."""
    rope_theta: float = bounded(10000.0, above=0.0)
    """Base of the rotary frequencies; used only with position_embedding=rotary."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    qk_norm: bool = False
    """RMS norm of each head's queries and keys before their rotation, as in Qwen3."""
    sliding_window: int | None = bounded(None, minimum=1)
    """Positions that a token attends to, itself included; null means all before it. No longer sequence is accepted:
    within the window it changes nothing."""
    bias: bool = False
    """Biases in the linear layers and norms."""
    attention_bias: str | None = bounded(None, choices=("none", "qkv", "all"))
    """Biases in attention's projections: of queries, keys and values (Qwen2), of these and the output, or none; null
    means as `bias`."""
    mlp_bias: bool | None = None
    """Biases in the feed-forward block's projections; null means as `bias`. Experts have none."""
    tie_word_embeddings: bool = True
    """Share the token embedding's weights with the output projection."""
    initializer_range: float = bounded(0.02, above=0.0)
    """Standard deviation of the initial weights."""
    scaled_residual_init: bool = True
    """Divide the initial weights of each block's two output projections by sqrt(2 x layers), as GPT-2 does."""
    activation_checkpointing: bool = False
    """Recompute blocks' activations in the backward pass: less memory, more time, the same numbers."""
    activation_checkpointing_blocks: int | None = bounded(None, minimum=1)
    """Number of blocks that recompute, spread evenly; null: all."""


@dataclass
class DataConfig:
    name: str = bounded(choices=("synthetic", "text", "tokens"))
    """Source of the tokens."""
    path: str | None = None
    """File or folder to read (text, tokens)."""
    eval_path: str | None = None
    """A separate held-out file or folder; null holds out the last `eval_fraction` of `path`."""
    eval_fraction: float = bounded(0.05, above=0.0, below=1.0)
    """Fraction of the tokens of `path` held out for evaluation when there is no `eval_path`."""
    glob: str = "*"
    """File-name pattern, matched in every sub-folder of a folder given as `path` (text, tokens)."""
    field: str = "text"
    """Field with the text of a line of JSON lines (.jsonl) or of a row of Parquet (text)."""
    invalid_files: str = bounded("error", choices=("error", "skip"))
    """Handling of a file that is no UTF-8 text (text); the record counts skipped files."""
    tokenizer: str | None = None
    """A Hugging Face tokenizer.json (text), without its truncation and padding, and with the separators that it adds
    itself; null reads bytes as tokens 0 to 255 with a NUL after each document."""
    dtype: str = bounded("uint16", choices=("uint16", "uint32"))
    """Element type of a raw .bin file (tokens); little-endian."""


@dataclass
class WorkloadConfig:
    name: str = MISSING
    """Label in records."""
    steps: int = bounded(minimum=1)
    """Optimizer steps in total, timing warm-up included."""
    timing_warmup_steps: int = bounded(minimum=1)
    """First steps of the training, excluded from the timing; the very first is reported separately."""
    interval_steps: int = bounded(10, minimum=1)
    """Steps between two synchronizations in the measured window: the unit of raw timing."""
    seq_len: int = bounded(minimum=1)
    """Tokens in one training sequence."""
    global_batch_size: int = bounded(minimum=1)
    """Sequences per optimizer step, over all devices."""
    micro_batch_size: int = bounded(minimum=1)
    """Sequences per forward pass on one device; the rest is gradient accumulation."""
    eval_every: int = bounded(0, minimum=0)
    """Steps between evaluations on held-out data, with one more at the end; 0 turns evaluation off."""
    eval_first: bool = False
    """Evaluate before the first step too: the loss of the initial weights."""
    eval_sequences: int = bounded(64, minimum=1)
    """Held-out sequences per evaluation, the same ones every time."""
    learning_rate: float = bounded(above=0.0)
    """Peak learning rate."""
    min_lr_ratio: float = bounded(0.1, minimum=0.0, maximum=1.0)
    """Final learning rate of the cosine decay, as a fraction of the peak."""
    lr_warmup_steps: int = bounded(0, minimum=0)
    """Steps over which the learning rate rises linearly from zero; unlike timing_warmup_steps, part of the work."""
    weight_decay: float = bounded(0.1, minimum=0.0)
    """AdamW's decoupled weight decay, applied to matrices only, not to biases and norm weights."""
    beta1: float = bounded(0.9, minimum=0.0, below=1.0)
    """AdamW's first-moment decay."""
    beta2: float = bounded(0.95, minimum=0.0, below=1.0)
    """AdamW's second-moment decay."""
    epsilon: float = bounded(1e-8, above=0.0)
    """AdamW's denominator term."""
    max_grad_norm: float = bounded(1.0, above=0.0)
    """Gradient clipping: largest global 2-norm of the gradients."""


@dataclass
class ParallelConfig:
    name: str = bounded(choices=("single", "ddp", "fsdp", "mesh"))
    """Distribution over devices: single, ddp (DistributedDataParallel, a full replica on each device), fsdp (FSDP2, a
    shard on each) or mesh (every axis that follows). Launch all but the first with torchrun, one process per device."""
    data: int | None = bounded(1, minimum=1)
    """Replicas of the model; null follows from the number of processes."""
    shard: int | None = bounded(1, minimum=1)
    """Shards of weights, gradients and AdamW's moments (FSDP2); null follows from the number of processes."""
    pipeline: int = bounded(1, minimum=1)
    """With mesh: stages of consecutive blocks, balanced by FLOPs; the last has the output projection too."""
    pipeline_schedule: str = bounded("1f1b", choices=("gpipe", "1f1b", "zero_bubble"))
    """Order of the micro-batches' passes through the stages."""
    pipeline_virtual_stages: int = bounded(1, minimum=1)
    """Stages of each rank, interleaved (Narayanan et al. 2021): rank 0 of two has stages 0 and 2."""
    pipeline_blocks: str | None = None
    """Number of blocks of each stage, as 9-8-8-7; null balances the stages by FLOPs."""
    context: int = bounded(1, minimum=1)
    """With mesh: parts of each sequence; attention exchanges positions for heads (DeepSpeed-Ulysses)."""
    tensor: int = bounded(1, minimum=1)
    """With mesh: parts of every matrix, of activations (sequence parallel) and of the vocabulary. Keep within a
    host."""
    timeout_seconds: float = bounded(600.0, above=0.0)
    """Timeout of rendezvous, collectives and the watchdog: the run ends when no process has made progress for this
    long. Set it above the longest step."""
    cpu_offload: bool = False
    """With fsdp: keep shards, gradients and AdamW's moments in host memory and run the optimizer there."""
    low_precision_all_gather: bool = True
    """With fsdp and bf16 or fp16: cast the blocks' weights before the all-gather, which halves its traffic."""
    scaling_reference: str | None = None
    """Folder of a finished run of the same work on fewer devices; the record then holds the scaling efficiency
    relative to it."""


@dataclass
class TrackConfig:
    name: str = bounded(choices=("portable", "tuned"))
    """portable: stock PyTorch, the same calls on every device. tuned: the fastest implementation on each device, for
    the same mathematics. Runs of different tracks are never compared."""
    adamw: str | None = bounded("foreach", choices=("for_loop", "foreach", "fused"))
    """PyTorch's AdamW implementation; null is the backend's choice."""
    compile: str | None = bounded("no", choices=("no", "blocks", "model"))
    """With tuned: torch.compile of each transformer block, or of the whole model; null is the backend's choice."""
    attention: str | None = STOCK
    """With tuned: the backend's attention kernel; null is the backend's choice."""
    rotary: str | None = STOCK
    """With tuned: the backend's kernel for the rotation of queries and keys; null is the backend's choice."""
    rms_norm: str | None = STOCK
    """With tuned: the backend's RMSNorm kernel; null is the backend's choice."""
    swiglu: str | None = STOCK
    """With tuned: the backend's SwiGLU kernel; null is the backend's choice."""
    cross_entropy: str | None = STOCK
    """With tuned: the backend's cross-entropy implementation; null is the backend's choice."""
    gradient_accumulation: str | None = STOCK
    """With tuned: how gradients are added up over micro-batches; fused: those of bf16 copies of the weights, made once
    a step, in one pass. null is the backend's choice."""
    activation_memory_budget: float | None = bounded(1.0, above=0.0, maximum=1.0)
    """With tuned: fraction of the activation memory that compiled parts may use; what does not fit is recomputed in the
    backward pass, cheapest first. Changes no result; null is the backend's choice."""


# The track choices that are stock PyTorch: TrackConfig's defaults.
STOCK_TRACK = {item.name: item.default for item in fields(TrackConfig) if item.name != "name"}


@dataclass
class CheckpointConfig:
    every: int = bounded(0, minimum=0)
    """Steps between checkpoints, with more at the end and on interruption; 0 writes none."""
    keep: int = bounded(2, minimum=1)
    """Checkpoints to keep; older ones are deleted once a new one is complete."""
    asynchronous: bool = False
    """Train on while a checkpoint is written, from a copy in the host's memory. Steps meanwhile are not timed."""


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
    """Name of the experiment file, if any."""
    precision: str = bounded("fp32", choices=PRECISIONS)
    """fp32: everything in float32, no TF32 or HF32. bf16, fp16: autocast over float32 weights. bf16_weights: bf16
    in all layers, of whose weights AdamW updates float32 masters, as large trainings do."""
    seed: int = bounded(1, minimum=0)
    """Seed of the initial weights and of the order or content of the data."""
    init: str = RANDOM
    """Initial weights: random, or a safetensors file, an index of several, or a folder with one, in Hugging Face's
    names."""
    repeats: int = bounded(1, minimum=1)
    """Number of runs, each in a fresh process, in out/1, out/2, ..."""
    out: str | None = None
    """Folder of the run; null creates runs/<UTC time>-<backend>-<model>."""
    peak_dir: str = "runs/peaks"
    """Folder of the records of `python -m harness peak`. A run takes its measured peak from the newest record of its
    device and software there."""
    peak_collective_seconds: float = bounded(60.0, above=0.0)
    """Limit of the time that `python -m harness torchrun ... peak` takes to measure collectives; messages that would
    take longer are left out."""
    profile: bool = False
    """Profile nine extra steps after the last measured one: a table in summary and record, and PyTorch's trace in the
    run's folder. The extra updates are discarded."""
    telemetry: bool = True
    """Sample the device's power, temperature and clock during the run, where its sensors report them; the record then
    holds the energy too."""
    fingerprint: bool = True
    """Record the numerical fingerprint of the computation: gradients of the first sequences in float32 and in the run's
    precision, the first step's gradients and update, and the same step again after the training. Outside of timed
    intervals; without it `compare` warns."""
    log: str = bounded("human", choices=FORMS)
    """Log format on standard error: human-readable lines, or one JSON object per line. With json the summary at the end
    is a log line too."""
    log_level: str = bounded("info", choices=LEVELS)
    """Lowest level that is logged."""
    metrics_file: str | None = None
    """File for node_exporter's textfile collector (Prometheus), rewritten after each timed interval; its name ends in
    .prom. The option --metrics-file PATH sets it too."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run's folder."""
    tracker: str | None = bounded(None, choices=("wandb", "swanlab", "mlflow"))
    """Write the ended run to an experiment tracker, in the run's folder, offline unless the tracker's own variable says
    otherwise (WANDB_MODE, SWANLAB_MODE, MLFLOW_TRACKING_URI)."""
    autotune: bool = False
    """Search for the fastest micro-batch size and, with track=tuned, settings of the track, each value in short runs of
    its own, and print the command that uses them."""
    autotuned: bool = False
    """Use the answers of the newest search (autotune) of this device, software and work, with the same given settings
    of the track, in autotune_dir."""
    autotune_dir: str = "runs/autotune"
    """Folder of searches (autotune)."""
    resume: str | None = bounded(None, choices=("auto",))
    """auto: resume from the newest checkpoint in out=DIR, or start there if there is none. null: never resume."""
    on_nonfinite: str = bounded("stop", choices=("stop", "skip"))
    """Action when loss or gradient norm is not finite: stop the run, or skip the update, which costs a device
    synchronization in every step. With fp16 the loss scaler skips overflowing gradients by itself."""
    nonfinite_limit: int = bounded(10, minimum=1)
    """With on_nonfinite=skip: skipped updates after which the run fails."""
    loss_spike_factor: float | None = bounded(None, above=1.0)
    """Stop when a step's loss exceeds the median of the previous 50 by this factor; null turns the check off."""
    target_loss: float | None = bounded(None, above=0.0)
    """Stop when the evaluation loss reaches this; the record holds the time to it."""


def unused_operations(config: Config) -> dict[str, str]:
    """Return those of OPERATIONS that the work does not have, with the setting that decides it."""
    model = config.model
    needs = {
        "rotary": ("model.position_embedding", model.position_embedding, ("rotary",)),
        "rms_norm": ("model.norm", model.norm, ("rmsnorm",)),
        "swiglu": ("model.activation", model.activation, ("swiglu",)),
        # Other than stock ones add bf16 gradients to float32 ones.
        "gradient_accumulation": ("precision", config.precision, ("bf16", "bf16_weights")),
    }
    return {operation: f"{key}={value}" for operation, (key, value, needed) in needs.items() if value not in needed}


def product_format(precision: str) -> str:
    """Return the number format of the matrix products of a precision, one of PRODUCT_FORMATS."""
    return precision.removesuffix("_weights")


def num_key_value_heads(model: ModelConfig) -> int:
    """Return the number of key and value heads."""
    return model.num_attention_heads if model.num_key_value_heads is None else model.num_key_value_heads


def head_dim(model: ModelConfig) -> int:
    """Return the size of one head."""
    return model.hidden_size // model.num_attention_heads if model.head_dim is None else model.head_dim


def attention_bias(model: ModelConfig) -> str:
    """Return which of attention's projections have biases: none, qkv or all."""
    if model.attention_bias is None:
        return "all" if model.bias else "none"
    return model.attention_bias


def turns_unit(model: ModelConfig) -> int:
    """Return the fewest positions in which all experts have equally many turns (model.routing=round_robin)."""
    assert model.num_experts is not None
    return model.num_experts // math.gcd(model.num_experts, model.num_experts_per_tok)


def mlp_bias(model: ModelConfig) -> bool:
    """Return whether the feed-forward block's projections have biases."""
    return model.bias if model.mlp_bias is None else model.mlp_bias


def intermediate_size(model: ModelConfig) -> int:
    """Return the inner size of the feed-forward block."""
    return 4 * model.hidden_size if model.intermediate_size is None else model.intermediate_size


def blocks_by_stage(pipeline_blocks: str) -> list[int]:
    """Return the numbers in `parallel.pipeline_blocks`; none if it holds something else."""
    is_right = re.fullmatch(r"[0-9]{1,6}(-[0-9]{1,6})*", pipeline_blocks) is not None
    return [int(count) for count in pipeline_blocks.split("-")] if is_right else []


def iter_settings(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, dataclass field, value) for every leaf of a config, or of a config class."""
    for item in fields(node):
        key = prefix + item.name
        value = getattr(node, item.name, MISSING)
        section = _section(item)
        if section is not None:
            yield from iter_settings(value if is_dataclass(value) else section, key + ".")
        else:
            yield key, item, value


def from_settings(config_class: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return a config with the given values by dotted key, and its fields' defaults for the others."""
    own: dict[str, Any] = {}
    of_class: Any = config_class
    for item in fields(of_class):
        key = prefix + item.name
        section = _section(item)
        if section is not None:
            own[item.name] = from_settings(section, values, key + ".")
        elif key in values:
            own[item.name] = values[key]
    return config_class(**own)


def _section(item: Field[Any]) -> type[Any] | None:
    """Return the config class of a field, or None if the field is a setting."""
    kind = globals().get(item.type) if isinstance(item.type, str) else item.type
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


# Settings that decide how or where the work is done, not what is computed. Every other setting is part of the
# workload_id, so a setting added later counts as work unless it is listed here.
EXCLUDED_FROM_WORKLOAD_ID = (
    "backend.*",
    "parallel.*",
    # Compared by a gate of its own: two tracks do the same work by different rules.
    "track.*",
    "experiment",
    # The digest of the initial weights proves them.
    "init",
    "repeats",
    "out",
    "peak_dir",
    "peak_collective_seconds",
    "profile",
    "telemetry",
    "fingerprint",
    "log",
    "log_level",
    "metrics_file",
    "tensorboard",
    "tracker",
    "autotune",
    "autotuned",
    "autotune_dir",
    "resume",
    "checkpoint.*",
    # A run without skipped updates is the same work; the record counts skipped updates.
    "on_nonfinite",
    "nonfinite_limit",
    "loss_spike_factor",
    # Labels, and the file that the model's settings come from.
    "model.name",
    "model.path",
    "workload.name",
    # Location of the data; the batch digest proves its content.
    "data.path",
    "data.eval_path",
    "data.tokenizer",
    "data.field",
    # Division of a global batch on one device, and recomputation.
    "workload.micro_batch_size",
    "model.activation_checkpointing",
    "model.activation_checkpointing_blocks",
    # No sequence is longer than the window, which so changes nothing.
    "model.sliding_window",
    # Timing.
    "workload.timing_warmup_steps",
    "workload.interval_steps",
)


# Settings that a step time depends on besides the work: those of one side's repeats, and of a resumed run, are equal.
CONDITIONS = (
    "track",
    "parallel",
    "model.activation_checkpointing",
    "model.activation_checkpointing_blocks",
    "workload.micro_batch_size",
    "workload.timing_warmup_steps",
    "workload.interval_steps",
)
# Of these no step time depends.
NO_CONDITIONS = ("parallel.timeout_seconds", "parallel.scaling_reference")
# Settings that name a file or folder: a leading ~ stands for a home folder.
PATH_SETTINGS = (
    "out",
    "peak_dir",
    "autotune_dir",
    "metrics_file",
    "init",
    "model.path",
    "data.path",
    "data.eval_path",
    "data.tokenizer",
    "parallel.scaling_reference",
)


@cache
def is_part_of_the_work(key: str) -> bool:
    """Return whether a setting, by its dotted key, decides what is computed."""
    return not any(
        key == name or (name.endswith(".*") and key.startswith(name[:-1])) for name in EXCLUDED_FROM_WORKLOAD_ID
    )


def conditions(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a step time depends on besides the work, by dotted key.

    Args:
        config: as of `workload_settings`.
    """
    parts = tuple(f"{name}." for name in CONDITIONS)
    # With a dot, a setting is found like a group of settings.
    known = {key: value for key, value in flatten(config).items() if f"{key}.".startswith(parts)}
    return {key: value for key, value in known.items() if key not in NO_CONDITIONS}


def workload_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that define the work, by dotted key, with equivalent values made equal.

    Args:
        config: the whole config as nested dictionaries, as `to_dict` returns it and a record holds it.
    """
    work = {key: value for key, value in flatten(config).items() if is_part_of_the_work(key)}
    hidden_size = work.get("model.hidden_size")
    if work.get("model.num_key_value_heads") is None:
        work["model.num_key_value_heads"] = work.get("model.num_attention_heads")
    # The settings that a user has edited can be anything.
    if work.get("model.intermediate_size") is None and isinstance(hidden_size, int):
        work["model.intermediate_size"] = 4 * hidden_size
    if work.get("model.position_embedding") != "rotary":
        work["model.rope_theta"] = None
    return _without_unused(work)


def work_differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of the work that differ, by dotted key, with both values, "absent" where there is none.

    Args:
        one, two: whole configs as nested dictionaries.
    """
    first, second = workload_settings(one), workload_settings(two)
    differing = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    # A setting that changes nothing at its value has it all the same.
    values = [{**flatten(config), **work} for config, work in ((one, first), (two, second))]
    return {key: (values[0].get(key, "absent"), values[1].get(key, "absent")) for key in differing}


# Settings of the model that only experts use.
EXPERT_SETTINGS = ("model.num_experts_per_tok", "model.norm_topk_prob", "model.routing")
# Parameters that each kind of rotary scaling uses.
ROPE_PARAMETERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
}


def _without_unused(work: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the work without those that change nothing at their values.

    These came after the first records, whose identities so stay as they are.
    """
    bias, rope = work.get("model.bias"), "model.rope_scaling."
    width, heads = work.get("model.hidden_size"), work.get("model.num_attention_heads")
    unset = {
        "model.attention_bias": "all" if bias else "none",
        "model.mlp_bias": bias,
        # Settings that are being checked, and those of a stranger's record, can be anything.
        "model.head_dim": width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None,
        "model.qk_norm": False,
        "model.num_experts": None,
        "workload.eval_first": False,
    }
    if work.get("model.num_experts") is None:
        unset |= {key: work.get(key) for key in EXPERT_SETTINGS}
    kind = work.get(f"{rope}rope_type") if work["model.rope_theta"] is not None else None
    used = ROPE_PARAMETERS.get(kind, ()) if isinstance(kind, str) else ()
    kept = {}
    for key, value in work.items():
        if key in unset:
            if value is not None and value != unset[key]:
                kept[key] = value
        elif not key.startswith(rope) or (used and key.removeprefix(rope) in ("rope_type", *used)):
            kept[key] = value
    return kept


def workload_id(config: Config | Mapping[str, Any]) -> str:
    """Return the identity of the work: 16 hexadecimal digits of a SHA-256 over its settings.

    Two runs with equal ids have the same settings of the work; digests and loss curves prove that they did.

    Args:
        config: the config, or the nested dictionaries that a record holds.
    """
    settings = workload_settings(to_dict(config) if isinstance(config, Config) else config)
    identity = {"version": WORKLOAD_VERSION, **settings}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_dict(config: Config) -> dict[str, Any]:
    """Return the whole config as plain nested dictionaries."""
    return asdict(config)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one flat dictionary with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def to_yaml(config: Config) -> str:
    """Return the whole config as YAML, the content of a run's config.yaml."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def config_directory() -> Path:
    """Return the folder of YAML files: beside the package in a checkout, inside it when installed.

    Raises:
        ConfigError: it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"configs: found no such folder in or beside {package}; reinstall the package")
