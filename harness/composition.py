"""Composition of a Config from YAML files and command-line overrides, with one-line errors.

Composition, override grammar and sweep expansion are Hydra's. `hydra.main` is not used: it writes files, runs a
sweep's jobs in one process, and reports errors on several lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import SearchPathElement
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.backends import create, plugin_config_packages, registered
from harness.config import BackendConfig, Config, config_directory, iter_settings
from harness.environment import check_working_directory
from harness.errors import ConfigError
from harness.text import did_you_mean, nearest, shortened
from harness.validation import validate

GROUPS = ("backend", "model", "data", "workload", "parallel", "track", "experiment")
# What other programs call a setting: Hugging Face, Megatron-LM, torchtitan, nanoGPT, litgpt.
SYNONYMS = {
    "workload.learning_rate": "lr max_lr base_lr peak_lr lrate",
    "workload.min_lr_ratio": "min_lr lr_min_ratio lr_decay_ratio final_lr",
    "workload.lr_warmup_steps": "warmup warmup_steps warmup_iters lr_warmup lr_warmup_iters num_warmup_steps",
    "workload.global_batch_size": "batch batch_size bs train_batch_size gbs total_batch_size",
    "workload.micro_batch_size": "micro_batch mbs per_device_train_batch_size per_device_batch_size device_batch_size "
    "accumulation gradient_accumulation_steps grad_accum gradient_accumulation",
    "workload.steps": "max_steps iters max_iters num_steps train_steps train_iters num_iterations epochs "
    "num_train_epochs num_epochs max_epochs",
    "workload.seq_len": "block_size context context_length max_seq_len seq_length sequence_length max_length",
    "workload.max_grad_norm": "clip grad_clip clip_grad gradient_clipping clip_grad_norm max_norm",
    "workload.weight_decay": "wd decay",
    "workload.epsilon": "eps adam_eps adam_epsilon",
    "workload.beta1": "adam_beta1 momentum betas",
    "workload.beta2": "adam_beta2",
    "workload.interval_steps": "log_every log_interval logging_steps log_freq",
    "workload.eval_every": "eval_steps eval_interval eval_iters eval_freq",
    "model.num_hidden_layers": "layers n_layer n_layers num_layers depth",
    "model.num_attention_heads": "heads n_head n_heads num_heads",
    "model.num_key_value_heads": "kv_heads n_kv_heads num_kv_heads num_query_groups",
    "model.hidden_size": "width dim d_model n_embd embed_dim embedding_dim hidden",
    "model.intermediate_size": "ffn_hidden_size ffn_dim hidden_dim d_ff mlp_dim",
    "model.vocab_size": "vocab vocabulary_size padded_vocab_size",
    "model.tie_word_embeddings": "tied_embeddings tie_embeddings weight_tying",
    "model.activation_checkpointing": "gradient_checkpointing recompute activation_recompute recompute_granularity",
    "precision": "fp16 bf16 amp mixed_precision torch_dtype param_dtype",
    "backend": "device gpu accelerator device_type platform",
    "out": "output_dir save_dir out_dir log_dir output outdir",
    "seed": "random_seed manual_seed",
    "resume": "resume_from resume_from_checkpoint load init_from",
    "checkpoint.every": "save_steps save_every save_interval checkpoint_interval",
    "data.path": "dataset data_dir data_path train_data train_file corpus",
    "track.adamw": "optimizer optim fused_adam",
    "track.compile": "torch_compile jit",
    "track.attention": "flash flash_attention flash_attn attn_implementation use_flash_attention",
    "parallel": "fsdp ddp zero sharding strategy distributed deepspeed",
}
# Settings of other programs that stand for what no run here has.
ABSENT = {
    **dict.fromkeys(
        ("dropout", "attention_dropout", "hidden_dropout", "resid_dropout", "attn_pdrop", "embd_pdrop"),
        "the models have no dropout, so that every device computes the same",
    ),
    **dict.fromkeys(
        ("experts", "num_experts", "n_experts", "moe", "top_k", "num_local_experts", "expert_parallel"),
        "the models are dense, without experts",
    ),
    **dict.fromkeys(
        ("gpus", "num_gpus", "devices", "n_gpus", "world_size", "nproc", "nproc_per_node", "num_processes"),
        "the launcher starts the processes: python -m harness torchrun --nproc-per-node=N",
    ),
}


def load(overrides: list[str]) -> Config:
    """Compose, type and validate one run's settings.

    Args:
        overrides: settings in Hydra's override grammar, such as `model=tiny` or `workload.steps=5`.

    Raises:
        ConfigError: an override is misspelled or of the wrong type, or settings contradict each other.
    """
    check_working_directory()
    with _hydra() as loader:
        _check_overrides(_parse(overrides), loader, sweeps_allowed=False)
        try:
            composed = compose("config", overrides=overrides)
            config = _to_typed(composed)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_one_line(error)) from error
    validate(config)
    return config


def expand_sweep(overrides: list[str]) -> list[list[str]]:
    """Return the override list of each job of a `--multirun`: the product of all swept values."""
    with _hydra() as loader:
        parsed = _parse(overrides, loader)
        _check_overrides(parsed, loader, sweeps_allowed=True)
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def group_options() -> dict[str, list[str]]:
    """Return the options of each config group."""
    with _hydra() as loader:
        return {group: _options(loader, group) for group in GROUPS}


@contextmanager
def _hydra() -> Iterator[ConfigLoaderImpl]:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        # Out-of-tree backends bring their own configs/backend/*.yaml. They come after ours, so that none can redefine
        # `model=tiny`, and before Hydra's schema source, which must be the last.
        elements = loader.get_search_path().get_path()
        for package in plugin_config_packages():
            elements.insert(len(elements) - 1, SearchPathElement(provider=package, search_path=f"pkg://{package}"))
        loader.repository.initialize_sources(loader.get_search_path())
        yield loader


def _options(loader: Any, group: str) -> list[str]:
    """Return the options of a group, with the files of its folders as FOLDER/NAME."""
    own = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
    folders = loader.get_group_options(group, results_filter=ObjectType.GROUP)
    return sorted([*own, *(f"{folder}/{name}" for folder in folders for name in _options(loader, f"{group}/{folder}"))])


def _parse(overrides: list[str], loader: Any = None) -> list[Override]:
    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except (HydraException, RecursionError) as error:
            raise ConfigError(_unreadable(text)) from error
    return parsed


def _unreadable(override: str) -> str:
    """Return the message for an override that Hydra's grammar refuses."""
    cause, value = "", override.partition("=")[2]
    if not value.startswith(("'", '"')) and (foreign := [letter for letter in value if not letter.isascii()]):
        cause = f"found {foreign[0]!r}, which is not ASCII, outside quotes; "
    return (
        f"cannot read {shortened(override)!r}: {cause}expected key=value, with quotes around a value with spaces, "
        "commas, brackets, equal signs or letters beyond ASCII, such as 'data.path=\"my texts (1)\"'; "
        "python -m harness --help"
    )


def _check_overrides(overrides: list[Override], loader: Any, *, sweeps_allowed: bool) -> None:
    """Check keys and group options. Hydra itself would accept `+typo=1`.

    Raises:
        ConfigError: a key or an option does not exist, or an override deletes or sweeps where it cannot.
    """
    leaves = [key for key, _, _ in iter_settings(Config)]
    nodes = {key.rsplit(".", 1)[0] for key in leaves if "." in key}
    for override in overrides:
        key, text = override.key_or_group, shortened(override.input_line or "")
        if override.is_delete():
            raise ConfigError(f"{text!r}: settings cannot be deleted; set the key to a value")
        if override.is_sweep_override() and not sweeps_allowed:
            raise ConfigError(f"{text!r}: found several values, expected one; add -m to run each, or quote the value")
        if key in GROUPS:
            _check_options(key, _swept_values(override), _options(loader, key))
        elif key not in leaves and key not in nodes:
            near = _suggestion(key, [*leaves, *GROUPS])
            raise ConfigError(f"{shortened(key)}: no such setting{near}; python -m harness --settings lists all")


def _check_options(group: str, values: list[Any], options: list[str]) -> None:
    for value in values:
        if value in options or (group == "experiment" and value is None):
            continue
        if group == "backend" and isinstance(value, str) and value in registered():
            # Its package has no YAML file, or is broken, in which case this raises the reason.
            create(BackendConfig(name=value))
            raise ConfigError(
                f"backend: {value} is registered, but its package has no configs/backend/{value}.yaml; "
                f"use backend.name={value}"
            )
        found = "null" if value is None else shortened(repr(value))
        raise ConfigError(
            f"{group}: found {found}, expected one of: {', '.join(options)}{did_you_mean(str(value), options)}"
        )


def _swept_values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return [text for text in override.sweep_string_iterator()]
    return [override.value()]


def _suggestion(key: str, known: list[str]) -> str:
    """Return the end of a message about an unknown setting: what other programs call so, else the nearest spelling."""
    name = key.rsplit(".", 1)[-1].casefold().replace("-", "_")
    if name in ABSENT:
        return f": {ABSENT[name]}"
    tails = {each.rsplit(".", 1)[-1]: each for each in known}
    meant = tails.get(name) or next((each for each, names in SYNONYMS.items() if name in names.split()), None)
    if meant is None:
        near = nearest(name, tails, cutoff=0.75)
        meant = nearest(key, known, cutoff=0.75) or (None if near is None else tails[near])
    return "" if meant is None else f"; did you mean {meant}?"


def _to_typed(composed: DictConfig) -> Config:
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{missing[0]}: found no value; set it on the command line or in its YAML file")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    given = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(given, dict)
    # to_object drops keys that the schema lacks: a typo in a YAML file must be an error.
    unknown = _unknown_keys(given, asdict(config))
    if unknown:
        leaves = [key for key, _, _ in iter_settings(Config)]
        raise ConfigError(f"{unknown[0]}: no such setting{_suggestion(unknown[0], leaves)}")
    return config


def _unknown_keys(given: dict[Any, Any], known: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in given.items():
        if key not in known:
            found.append(f"{prefix}{key}")
        elif isinstance(value, dict) and isinstance(known[key], dict):
            found += _unknown_keys(value, known[key], f"{prefix}{key}.")
    return found


def _one_line(error: Exception) -> str:
    """Return Hydra's or OmegaConf's message on one line, with the key first where they name it."""
    cause = error
    while isinstance(cause.__cause__, (HydraException, OmegaConfBaseException)):
        cause = cause.__cause__
    text = str(cause)
    key = re.search(r"full_key: (\S+)", text)
    message = " ".join(
        line.strip()
        for line in text.splitlines()
        if not re.match(r"\s*(full_key|object_type|reference_type)[:=]", line)
    )
    message = re.sub(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", _expected_type, message)
    message = re.sub(r"Value '(.*)' is not a valid bool.*", r"found '\1', expected true or false", message)
    return f"{key.group(1)}: {message}" if key else message


def _expected_type(match: re.Match[str]) -> str:
    names = {"Integer": "a whole number", "Float": "a number", "String": "text"}
    return f"found {match.group(1)!r}, expected {names.get(match.group(2), match.group(2))}"
