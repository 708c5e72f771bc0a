"""What no run may be asked for: settings beyond their limits, or at odds with each other, refused by name."""

from __future__ import annotations

import math
from typing import Any

from harness.config import OPERATIONS, Config, DataConfig, ModelConfig, iter_settings, num_key_value_heads
from harness.errors import ConfigError


def validate(config: Config) -> None:
    """Refuse impossible settings.

    Raises:
        ConfigError: naming the key, what was found, what was expected, and what to do.
    """
    for key, item, value in iter_settings(config):
        _check_limits(key, value, **item.metadata)
    _check_model(config.model)
    _check_data(config.data)
    _check_workload(config)
    _check_parallel(config)
    _check_resume(config)
    _check_track(config)
    _check_autotune(config)
    if config.out is not None and not config.out.strip():
        raise ConfigError("out: found an empty name, expected a folder; leave it out for the default")


def _check_limits(key: str, value: Any, minimum: float | None = None, maximum: float | None = None,
                  above: float | None = None, below: float | None = None,
                  choices: tuple[str, ...] | None = None) -> None:  # fmt: skip
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: found {value}, expected a finite number")
    if choices is not None and value not in choices:
        raise ConfigError(f"{key}: found {value!r}, expected one of: {', '.join(choices)}")
    if minimum is not None and value < minimum:
        raise ConfigError(f"{key}: found {value}, expected at least {minimum:g}")
    if maximum is not None and value > maximum:
        raise ConfigError(f"{key}: found {value}, expected at most {maximum:g}")
    if above is not None and value <= above:
        raise ConfigError(f"{key}: found {value}, expected more than {above:g}")
    if below is not None and value >= below:
        raise ConfigError(f"{key}: found {value}, expected less than {below:g}")


def _check_model(model: ModelConfig) -> None:
    if model.hidden_size % model.num_attention_heads:
        raise ConfigError(
            f"model.num_attention_heads: found {model.num_attention_heads}, which does not divide model.hidden_size "
            f"({model.hidden_size}); choose a divisor of the hidden size"
        )
    if model.num_attention_heads % num_key_value_heads(model):
        raise ConfigError(
            f"model.num_key_value_heads: found {model.num_key_value_heads}, which does not divide "
            f"model.num_attention_heads ({model.num_attention_heads}); choose a divisor, or null for one for each"
        )
    if model.position_embedding == "rotary" and (model.hidden_size // model.num_attention_heads) % 2:
        raise ConfigError(
            "model.position_embedding: rotary needs an even head size, found model.hidden_size / "
            f"model.num_attention_heads = {model.hidden_size // model.num_attention_heads}; change either, or use "
            "model.position_embedding=learned"
        )


def _check_data(data: DataConfig) -> None:
    reads_files = data.name != "synthetic"
    if reads_files and data.path is None:
        raise ConfigError(f"data.path: missing; data={data.name} needs a file or folder: add data.path=/path/to/it")
    ignored = {
        "path": reads_files,
        "eval_path": reads_files,
        "tokenizer": data.name == "text",
    }
    for key, is_read in ignored.items():
        if getattr(data, key) is not None and not is_read:
            raise ConfigError(f"data.{key}: data={data.name} does not read it; drop it or choose other data")


def _check_workload(config: Config) -> None:
    work = config.workload
    if work.timing_warmup_steps >= work.steps:
        raise ConfigError(
            f"workload.timing_warmup_steps: found {work.timing_warmup_steps}, expected fewer than workload.steps "
            f"({work.steps}), so that something is left to time; lower it or raise workload.steps"
        )
    if work.lr_warmup_steps >= work.steps:
        raise ConfigError(
            f"workload.lr_warmup_steps: found {work.lr_warmup_steps}, expected fewer "
            f"than workload.steps ({work.steps}); lower it or raise workload.steps"
        )
    if work.seq_len > config.model.max_position_embeddings:
        raise ConfigError(
            f"workload.seq_len: found {work.seq_len}, but model.max_position_embeddings is "
            f"{config.model.max_position_embeddings}; shorten the sequence or choose a model with a longer context"
        )
    # A search brings micro-batch sizes of its own.
    if work.global_batch_size % work.micro_batch_size and not config.autotune:
        raise ConfigError(
            f"workload.global_batch_size: found {work.global_batch_size}, which is not a multiple of "
            f"workload.micro_batch_size ({work.micro_batch_size}); change either"
        )
    if config.target_loss is not None and work.eval_every == 0:
        raise ConfigError(
            "target_loss: needs evaluations to be compared with, but workload.eval_every is 0; set workload.eval_every"
        )


def _check_track(config: Config) -> None:
    track = config.track
    stock_kernels = dict.fromkeys(OPERATIONS, "stock")
    for key, stock in {"adamw": None, "compile": "no", "activation_memory_budget": 1.0, **stock_kernels}.items():
        value = getattr(track, key)
        if track.name == "portable" and (value is None or (stock is not None and value != stock)):
            raise ConfigError(
                f"track.{key}: found {'null' if value is None else value}, but track=portable is stock PyTorch on "
                "every device; use track=tuned"
            )
    model = config.model
    for operation, setting, wanted in (
        ("rotary", "position_embedding", "rotary"),
        ("rms_norm", "norm", "rmsnorm"),
        ("swiglu", "activation", "swiglu"),
    ):
        if getattr(track, operation) not in (None, "stock") and getattr(model, setting) != wanted:
            raise ConfigError(
                f"track.{operation}: found {getattr(track, operation)}, but the model has model.{setting}="
                f"{getattr(model, setting)} and never computes it; leave track.{operation} out"
            )
    if config.parallel.name == "fsdp" and track.compile not in (None, "no"):
        raise ConfigError(
            f"track.compile: found {track.compile}, but shards that come and go between blocks are not compiled; use "
            "track.compile=no with parallel=fsdp"
        )


def _check_resume(config: Config) -> None:
    if config.resume is None:
        return
    if config.out is None:
        raise ConfigError("resume: auto goes on with the run in a folder; name it with out=DIR")
    if config.checkpoint.every == 0:
        raise ConfigError("resume: auto needs checkpoints to go on from; set checkpoint.every")
    if config.repeats > 1:
        raise ConfigError(
            "resume: auto goes on with one run; leave repeats=1, or resume each repeat with out=DIR/1, ..."
        )


def _check_parallel(config: Config) -> None:
    parallel = config.parallel
    for key, default in (("hybrid_shard", False), ("cpu_offload", False), ("low_precision_all_gather", True)):
        if parallel.name != "fsdp" and getattr(parallel, key) is not default:
            raise ConfigError(f"parallel.{key}: only parallel=fsdp reads it; leave it {str(default).lower()}")
    if parallel.name == "single" and parallel.scaling_reference is not None:
        raise ConfigError(
            "parallel.scaling_reference: is of fewer devices than this run, and parallel=single has but one; leave it "
            "out"
        )
    if parallel.name != "single" and config.repeats > 1:
        raise ConfigError(
            f"repeats: found {config.repeats}, but a run of several processes is started by torchrun; "
            "start it as often with out=DIR/1, out=DIR/2, ..."
        )


def _check_autotune(config: Config) -> None:
    if config.autotune and config.resume is not None:
        raise ConfigError("resume: a search (autotune) begins anew each time; leave resume out")
    if config.autotune and config.parallel.name != "single":
        raise ConfigError(
            "autotune: tries micro-batch sizes on one device; leave parallel=single and set workload.global_batch_size "
            "to the share of one device"
        )


def check_batch_divides(config: Config, processes: int) -> None:
    """Refuse a global batch that cannot be dealt out evenly to so many processes.

    Raises:
        ConfigError: naming the keys.
    """
    work = config.workload
    if work.global_batch_size % (processes * work.micro_batch_size):
        raise ConfigError(
            f"workload.global_batch_size: found {work.global_batch_size}, which is not a multiple of "
            f"workload.micro_batch_size ({work.micro_batch_size}) times the number of processes ({processes}); "
            "change either, or start another number of processes"
        )
