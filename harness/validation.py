"""Validation of a run's settings: their limits, and combinations that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from harness.config import (
    EXPERT_SETTINGS,
    PATH_SETTINGS,
    ROPE_PARAMETERS,
    STOCK,
    STOCK_TRACK,
    Config,
    ModelConfig,
    WorkloadConfig,
    blocks_by_stage,
    head_dim,
    intermediate_size,
    iter_settings,
    mlp_bias,
    num_key_value_heads,
    turns_unit,
    unused_operations,
)
from harness.errors import config_error
from harness.layout import AXES, LAYOUT_AXES, Layout, uneven_rounds
from harness.schemas import MAX_INTEGER, MAX_NUMBER
from harness.text import counted


def validate(config: Config) -> None:
    """Check every limit and every combination of settings.

    Raises:
        ConfigError: naming each wrong key, what was found, what was expected, and what to do.
    """
    problems: dict[str, list[str]] = {}
    for key, item, value in iter_settings(config):
        problems[key] = list(_check_limits(key, value, **item.metadata))
    wrong = {key.split(".")[0] for key, found in problems.items() if found}
    found = [problem for each in problems.values() for problem in each]
    for parts, check in COMBINATIONS:
        # A combination with a value out of its limits cannot be judged.
        if wrong.isdisjoint(parts):
            found += check(config)
    if found:
        raise config_error(found)


def limit_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with single settings, by key, each within its own limits."""
    limits = {key: item.metadata for key, item, _ in iter_settings(Config)}
    return [problem for key, value in values.items() for problem in _check_limits(key, value, **limits[key])]


def _check_paths(config: Config) -> Iterator[str]:
    """Check for empty paths, which the system would take for the working directory."""
    for key, _, value in iter_settings(config):
        if key in PATH_SETTINGS and value is not None and not str(value).strip():
            yield f"{key}: found an empty path; leave it out, or check the variable that was to hold it"


def _check_limits(key: str, value: Any, minimum: float | None = None, maximum: float | None = None,
                  above: float | None = None, below: float | None = None,
                  choices: tuple[str, ...] | None = None) -> Iterator[str]:  # fmt: skip
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key}: found {value}, expected a finite number"
        return
    # A record's reader takes larger ones for damage.
    if isinstance(value, int) and value > MAX_INTEGER:
        yield f"{key}: found a number of {value.bit_length()} bits, expected at most {MAX_INTEGER}"
        return
    if isinstance(value, float) and abs(value) >= MAX_NUMBER:
        yield f"{key}: found {value:g}, expected less than {MAX_NUMBER:g}"
        return
    if choices is not None and value not in choices:
        yield f"{key}: found {value!r}, expected one of: {', '.join(choices)}"
    if minimum is not None and value < minimum:
        yield f"{key}: found {value}, expected at least {minimum:g}"
    if maximum is not None and value > maximum:
        yield f"{key}: found {value}, expected at most {maximum:g}"
    if above is not None and value <= above:
        yield f"{key}: found {value}, expected more than {above:g}"
    if below is not None and value >= below:
        yield f"{key}: found {value}, expected less than {below:g}"


def _check_model(config: Config) -> Iterator[str]:
    model = config.model
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        yield (
            f"model.num_attention_heads: found {model.num_attention_heads}, which does not divide model.hidden_size "
            f"({model.hidden_size}); choose a divisor of the hidden size, or set model.head_dim"
        )
    if model.num_attention_heads % num_key_value_heads(model):
        yield (
            f"model.num_key_value_heads: found {model.num_key_value_heads}, which does not divide "
            f"model.num_attention_heads ({model.num_attention_heads}); choose a divisor, or null for as many"
        )
    if model.position_embedding == "rotary" and head_dim(model) % 2:
        yield (
            f"model.position_embedding: rotary needs an even head size, found {head_dim(model)} (model.head_dim, or "
            "model.hidden_size / model.num_attention_heads); change that, or use model.position_embedding=learned"
        )
    if (chosen := model.activation_checkpointing_blocks) is not None:
        if not model.activation_checkpointing:
            yield (
                f"model.activation_checkpointing_blocks: found {chosen}, but no block recomputes; set "
                "model.activation_checkpointing=true, or leave it out"
            )
        if chosen > model.num_hidden_layers:
            yield (
                f"model.activation_checkpointing_blocks: found {chosen}, but the model has "
                f"{counted(model.num_hidden_layers, 'block')}; choose at most that, or null for all"
            )
    yield from _check_experts(model)
    yield from _check_rope_scaling(model)


def _check_experts(model: ModelConfig) -> Iterator[str]:
    experts, each = model.num_experts, model.num_experts_per_tok
    if experts is None:
        for key in EXPERT_SETTINGS:
            name = key.removeprefix("model.")
            if (found := getattr(model, name)) != getattr(ModelConfig, name):
                yield f"{key}: found {found}, but the model has no experts; set model.num_experts, or leave it out"
        return
    if each > experts:
        yield f"model.num_experts_per_tok: found {each}, but the model has {counted(experts, 'expert')}; choose fewer"
    if mlp_bias(model):
        yield "model.mlp_bias: found true, but experts have no biases; set model.mlp_bias=false"


def _check_rope_scaling(model: ModelConfig) -> Iterator[str]:
    scaling, key = model.rope_scaling, "model.rope_scaling"
    used = ROPE_PARAMETERS[scaling.rope_type]
    if used and model.position_embedding != "rotary":
        yield f"{key}.rope_type: found {scaling.rope_type}, but only model.position_embedding=rotary uses it"
    for item in fields(scaling):
        value = getattr(scaling, item.name)
        if value != item.default and item.name not in ("rope_type", *used):
            yield (
                f"{key}.{item.name}: found {value}, but {key}.rope_type={scaling.rope_type} does not use it; leave it "
                "out, or choose the type that does"
            )
    if "original_max_position_embeddings" in used and scaling.original_max_position_embeddings is None:
        yield f"{key}.original_max_position_embeddings: missing; {key}.rope_type={scaling.rope_type} needs it"
    if "low_freq_factor" in used and not scaling.low_freq_factor < scaling.high_freq_factor:
        yield (
            f"{key}.low_freq_factor: found {scaling.low_freq_factor:g}, expected less than {key}.high_freq_factor "
            f"({scaling.high_freq_factor:g})"
        )
    if "beta_slow" in used and not scaling.beta_slow < scaling.beta_fast:
        yield (
            f"{key}.beta_slow: found {scaling.beta_slow:g}, expected less than {key}.beta_fast ({scaling.beta_fast:g})"
        )


def _check_data(config: Config) -> Iterator[str]:
    data = config.data
    reads_files = data.name != "synthetic"
    if reads_files and data.path is None:
        yield f"data.path: missing; data={data.name} needs a file or folder: add data.path=/path/to/it"
    ignored = {
        "path": reads_files,
        "eval_path": reads_files,
        "tokenizer": data.name == "text",
        "glob": reads_files,
    }
    defaults = {item.name: item.default for item in fields(data)}
    for key, is_read in ignored.items():
        if getattr(data, key) != defaults[key] and not is_read:
            yield (
                f"data.{key}: found {getattr(data, key)!r}, but data={data.name} does not use it; leave it out, or "
                "choose other data"
            )


def _check_workload(config: Config) -> Iterator[str]:
    work = config.workload
    if work.timing_warmup_steps >= work.steps:
        yield (
            f"workload.timing_warmup_steps: found {work.timing_warmup_steps}, expected fewer than workload.steps "
            f"({work.steps}), so that measured steps remain; lower it or raise workload.steps"
        )
    if work.lr_warmup_steps >= work.steps:
        yield (
            f"workload.lr_warmup_steps: found {work.lr_warmup_steps}, expected fewer "
            f"than workload.steps ({work.steps}); lower it or raise workload.steps"
        )
    if work.seq_len > config.model.max_position_embeddings:
        yield (
            f"workload.seq_len: found {work.seq_len}, but model.max_position_embeddings is "
            f"{config.model.max_position_embeddings}; shorten the sequence or choose a model with a longer context"
        )
    window = config.model.sliding_window
    if window is not None and work.seq_len > window:
        yield (
            f"workload.seq_len: found {work.seq_len}, but model.sliding_window is {window}, and attention within a "
            "window is not implemented; shorten the sequence, within which the window changes nothing"
        )
    # A search sets micro-batch sizes of its own.
    if work.global_batch_size % work.micro_batch_size and not config.autotune:
        yield (
            f"workload.global_batch_size: found {work.global_batch_size}, which is not a multiple of "
            f"workload.micro_batch_size ({work.micro_batch_size}); set {_fitting_batch(work, shares=1)}"
        )
    if work.eval_first and work.eval_every == 0:
        yield "workload.eval_first: evaluates too, but workload.eval_every=0 evaluates nothing; set workload.eval_every"
    if config.target_loss is not None and work.eval_every == 0:
        yield "target_loss: found a target, but workload.eval_every=0 evaluates nothing; set workload.eval_every"


def _check_track(config: Config) -> Iterator[str]:
    track = config.track
    for key, stock in STOCK_TRACK.items():
        value = getattr(track, key)
        # Any of PyTorch's AdamW implementations is stock.
        if track.name == "portable" and (value is None or (value != stock and key != "adamw")):
            yield (
                f"track.{key}: found {'null' if value is None else value}, but track=portable is stock PyTorch on "
                "every device; use track=tuned"
            )
    if track.compile == "model" and config.model.num_experts is not None and config.model.routing == "learned":
        yield (
            "track.compile: found model, but learned routing makes products whose shapes are known while they run; use "
            "track.compile=blocks, which leaves experts out, or model.routing=round_robin"
        )
    for operation, setting in unused_operations(config).items():
        if getattr(track, operation) not in (None, STOCK):
            yield (
                f"track.{operation}: found {getattr(track, operation)}, but with {setting} there is nothing that it "
                f"replaces; leave track.{operation} out"
            )
    if config.parallel.name in ("fsdp", "mesh") and track.compile == "model":
        yield (
            f"track.compile: found model, but parallel={config.parallel.name} gathers weights block by block; use "
            "track.compile=blocks"
        )


def _check_checkpoint(config: Config) -> Iterator[str]:
    if config.checkpoint.asynchronous and config.checkpoint.every == 0:
        yield "checkpoint.asynchronous: found true, but nothing is saved; set checkpoint.every, or leave it false"


def _check_resume(config: Config) -> Iterator[str]:
    if config.resume is None:
        return
    if config.out is None:
        yield "resume: auto resumes the run in a folder; name it with out=DIR"
    if config.checkpoint.every == 0:
        yield "resume: auto needs checkpoints to resume from; set checkpoint.every"
    if config.repeats > 1 and not config.autotune:
        yield (
            f"resume: auto resumes one run, found repeats={config.repeats}; set repeats=1 and resume each repeat with "
            "out=DIR/1, out=DIR/2, ..."
        )


def _check_parallel(config: Config) -> Iterator[str]:
    parallel = config.parallel
    for key, default in (("cpu_offload", False), ("low_precision_all_gather", True)):
        if parallel.name not in ("fsdp", "mesh") and getattr(parallel, key) is not default:
            yield f"parallel.{key}: only FSDP uses it; leave it {str(default).lower()}, or use parallel=fsdp"
    for axis in AXES:
        size = getattr(parallel, axis)
        if axis not in LAYOUT_AXES[parallel.name] and size != 1:
            yield (f"parallel.{axis}: found {size}, but parallel={parallel.name} has no such axis; use parallel=mesh")
    if parallel.name == "single" and parallel.scaling_reference is not None:
        yield (
            "parallel.scaling_reference: a reference runs on fewer devices than this run, and parallel=single has only "
            "one; leave it out"
        )
    if parallel.name != "single" and config.repeats > 1 and not config.autotune:
        yield (
            f"repeats: found {config.repeats}, but torchrun launches each run of several processes; "
            f"launch it {config.repeats} times with out=DIR/1, out=DIR/2, ..."
        )


def _check_autotune(config: Config) -> Iterator[str]:
    if config.autotune and config.resume is not None:
        yield "resume: a search (autotune) cannot be resumed, it starts again each time; leave resume out"
    if config.autotune and config.parallel.name != "single":
        yield (
            f"autotune: searches on one device, found parallel={config.parallel.name}; leave parallel=single and set "
            "workload.global_batch_size to one device's part"
        )
    if config.autotuned and config.autotune:
        yield "autotuned: found true, but a search (autotune) looks for these settings; leave autotuned out"
    if config.autotuned and config.parallel.name != "single":
        yield f"autotuned: searches are of one device, found parallel={config.parallel.name}; leave autotuned out"


COMBINATIONS: tuple[tuple[tuple[str, ...], Callable[[Config], Iterator[str]]], ...] = (
    (("model",), _check_model),
    (("data",), _check_data),
    (("workload", "model", "target_loss"), _check_workload),
    (("parallel", "repeats"), _check_parallel),
    (("checkpoint",), _check_checkpoint),
    (("resume", "checkpoint", "repeats"), _check_resume),
    (("track",), _check_track),
    (("autotune",), _check_autotune),
    ((), _check_paths),
)


def check_layout(config: Config, layout: Layout) -> None:
    """Check that batch and model divide over the axes of a layout.

    Raises:
        ConfigError: naming each number that does not, and the nearest that would.
    """
    if problems := list(_layout_problems(config, layout)):
        raise config_error(problems)


def _layout_problems(config: Config, layout: Layout) -> Iterator[str]:
    work, model = config.workload, config.model
    if work.global_batch_size % (layout.shares * work.micro_batch_size):
        parts = "the number of processes" if layout.shares == layout.size else "parallel.data x parallel.shard"
        yield (
            f"workload.global_batch_size: found {work.global_batch_size}, which is not a multiple of "
            f"workload.micro_batch_size ({work.micro_batch_size}) times {parts} ({layout.shares}); set "
            f"{_fitting_batch(work, layout.shares)}"
        )
    # Each rank of a tensor axis has a part of the feed-forward block's features, or some experts whole.
    features, count = "model.intermediate_size", intermediate_size(model)
    if model.num_experts is not None:
        features, count = "model.num_experts", model.num_experts
    # Attention has a part of the heads on each rank that has a part of the sequence.
    for axes, key, size in (
        (("tensor", "context"), "model.num_attention_heads", model.num_attention_heads),
        (("tensor", "context"), "workload.seq_len", work.seq_len),
        (("tensor",), features, count),
    ):
        used = [axis for axis in axes if getattr(layout, axis) > 1]
        parts = math.prod(getattr(layout, axis) for axis in used)
        if size % parts:
            name = " x ".join(f"parallel.{axis}" for axis in used)
            near = " or ".join(str(number) for number in _nearest_divisors(size, parts))
            yield f"{name}: found {parts}, which does not divide {key} ({size}); choose {near}"

    yield from _routing_problems(config, layout)
    yield from _pipeline_problems(config, layout)
    if config.parallel.cpu_offload and config.parallel.name == "mesh" and layout.shares * layout.context == 1:
        yield "parallel.cpu_offload: only FSDP uses it, and nothing is sharded; leave it false, or set parallel.shard"
    if -(-model.vocab_size // layout.tensor) * (layout.tensor - 1) >= model.vocab_size:
        yield (
            f"parallel.tensor: found {layout.tensor}, which leaves a device without a part of model.vocab_size "
            f"({model.vocab_size}); choose fewer"
        )


def _fitting_batch(work: WorkloadConfig, shares: int) -> str:
    """Return settings by which the batch divides over this number of shares: a smaller micro-batch, a larger batch."""
    share, rest = divmod(work.global_batch_size, shares)
    unit = work.micro_batch_size * shares
    larger = f"workload.global_batch_size={-(-work.global_batch_size // unit) * unit}"
    return larger if rest else f"workload.micro_batch_size={math.gcd(share, work.micro_batch_size)} or {larger}"


def _routing_problems(config: Config, layout: Layout) -> Iterator[str]:
    model, positions = config.model, config.workload.seq_len // layout.context
    if model.num_experts is None or model.routing != "round_robin":
        return
    if positions % turns_unit(model):
        yield (
            f"workload.seq_len: found {config.workload.seq_len}, in which {model.num_experts} experts cannot have "
            f"equally many turns (model.routing=round_robin); choose a multiple of {turns_unit(model) * layout.context}"
        )


def _pipeline_problems(config: Config, layout: Layout) -> Iterator[str]:
    work, model = config.workload, config.model
    stages = layout.pipeline * config.parallel.pipeline_virtual_stages
    each = "" if stages == layout.pipeline else f" x {config.parallel.pipeline_virtual_stages} stages"
    if stages > model.num_hidden_layers:
        yield (
            f"parallel.pipeline: found {layout.pipeline}{each}, but the model has "
            f"{counted(model.num_hidden_layers, 'block')}, and each stage needs one; choose fewer stages"
        )
    share = work.global_batch_size // layout.shares
    micro_batches = share // work.micro_batch_size
    if 0 < micro_batches < layout.pipeline:
        fitting = [size for size in range(1, share // layout.pipeline + 1) if share % size == 0]
        remedy = f"choose {fitting[-1]}" if fitting else "train more sequences a step, or choose fewer stages"
        yield (
            f"workload.micro_batch_size: found {work.micro_batch_size}, which leaves "
            f"{counted(micro_batches, 'micro-batch', 'micro-batches')} for a pipeline of {layout.pipeline}; {remedy}"
        )
    yield from _schedule_problems(config, layout, micro_batches)
    for key, default in (("pipeline_schedule", "1f1b"), ("pipeline_virtual_stages", 1), ("pipeline_blocks", None)):
        if layout.pipeline == 1 and (found := getattr(config.parallel, key)) != default:
            yield f"parallel.{key}: found {found}, but there is no pipeline; leave it out, or set parallel.pipeline"
    if layout.pipeline > 1 and (found := config.parallel.pipeline_blocks) is not None:
        counts = blocks_by_stage(found)
        if len(counts) != stages or 0 in counts or sum(counts) != model.num_hidden_layers:
            yield (
                f"parallel.pipeline_blocks: found {found}, expected {stages} numbers with a dash between them "
                f"that add up to {counted(model.num_hidden_layers, 'block')}, one for each stage"
            )


def _schedule_problems(config: Config, layout: Layout, micro_batches: int) -> Iterator[str]:
    """Yield what PyTorch's schedules cannot do."""
    if layout.pipeline == 1:
        return
    schedule, interleaved = config.parallel.pipeline_schedule, config.parallel.pipeline_virtual_stages > 1
    rounds = micro_batches // layout.pipeline
    # Too few are another problem.
    if rounds and uneven_rounds(schedule, layout.pipeline, interleaved, micro_batches):
        fitting = rounds * layout.pipeline
        other = "gpipe" if interleaved else "1f1b"
        yield (
            f"parallel.pipeline_schedule: found {schedule}{' of interleaved stages' * interleaved}, which does not "
            f"divide {micro_batches} micro-batches into {counted(rounds, 'round')}; train {fitting} micro-batches a "
            f"step, or choose {other}"
        )
    # It splits each backward pass in two.
    if schedule == "zero_bubble" and config.track.name == "tuned" and config.track.compile != "no":
        yield (
            "parallel.pipeline_schedule: found zero_bubble, which cannot split the backward pass of compiled blocks; "
            "choose 1f1b, or set track.compile=no"
        )


def _nearest_divisors(size: int, parts: int) -> list[int]:
    """Return the divisors of `size` just below and above a number that is none."""
    divisors = [number for number in range(1, size + 1) if size % number == 0]
    below, above = ([n for n in divisors if n < parts], [n for n in divisors if n > parts])
    return below[-1:] + above[:1]
