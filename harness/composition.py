"""Composition of a Config from YAML files and command-line overrides, with one-line errors.

Composition, override grammar and sweep expansion are Hydra's. `hydra.main` is not used: it writes files, runs a
sweep's jobs in one process, and reports errors on several lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.backends import create, plugin_config_packages, registered
from harness.config import (
    MODEL_OF_A_FILE,
    PATH_SETTINGS,
    BackendConfig,
    Config,
    config_directory,
    flatten,
    from_settings,
    iter_settings,
    workload_id,
)
from harness.environment import check_working_directory
from harness.errors import ConfigError, config_error
from harness.huggingface import read_model
from harness.overrides import (
    as_type,
    duplicates,
    name_or_null,
    parse_override,
    sweep_jobs,
    swept_values,
    typed_text,
    typed_value,
)
from harness.suggestions import setting_hint
from harness.text import did_you_mean, override_key, shortened
from harness.validation import limit_problems, validate

T = TypeVar("T")
GROUPS = ("backend", "model", "data", "workload", "parallel", "track", "experiment")
# Groups whose names in records are those of presets.
LABELED = ("model", "workload")
MODIFIED = "-modified"


def load(overrides: list[str]) -> Config:
    """Compose, type and validate one run's settings.

    Args:
        overrides: settings in Hydra's override grammar, such as `model=tiny` or `workload.steps=5`.

    Raises:
        ConfigError: an override is misspelled or of the wrong type, or settings contradict each other. The message
            lists everything that is wrong.
    """
    check_working_directory()
    overrides = _quote_home(overrides)
    with _hydra() as loader:
        parsed, values = _read(overrides, loader, sweeps_allowed=False)
        options = {key: name_or_null(override) for key, override in parsed.items() if key in GROUPS}
        # In quotes, because Hydra reads 2024_11 as a number. It has no null, which is `experiment`'s default.
        choices = [f"{key}='{option}'" for key, option in options.items() if option is not None]
        try:
            composed = compose("config", overrides=choices)
            # Only model=hf asks for one.
            from_file = OmegaConf.is_missing(composed["model"], "path")
            given = _values_of_files(composed, values)
            if from_file:
                _read_model(given["model"], values)
            elif values.get("model.path") is not None:
                raise ConfigError("model.path: only model=hf reads it; add that, or leave it out")
            config = _to_typed(Config, given)
            if config.autotuned:
                if "workload.micro_batch_size" in values:
                    raise ConfigError("workload.micro_batch_size: autotuned=true sets it; leave one of them out")
                # Until the device is known, and with it the search.
                config.workload.micro_batch_size = 1
            _label_modified(config, values)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_one_line(error)) from error
    _expand_home(config)
    validate(config)
    return config


def expand_sweep(overrides: list[str]) -> list[list[str]]:
    """Return the override list of each job of a `--multirun`: the product of all swept values."""
    with _hydra() as loader:
        parsed, _ = _read(_quote_home(overrides), loader, sweeps_allowed=True)
        return sweep_jobs(list(parsed.values()))


def _quote_home(overrides: list[str]) -> list[str]:
    """Return overrides with quotes around a path that begins with ~: a shell leaves it as it is after an equal sign."""
    return [_quoted(override) if _starts_at_home(override) else override for override in overrides]


def _starts_at_home(override: str) -> bool:
    value = override.partition("=")[2]
    return override_key(override) in PATH_SETTINGS and value.startswith("~") and not set(value) & set(",'\\")


def _quoted(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key}='{value}'"


def _expand_home(config: Config) -> None:
    for setting in PATH_SETTINGS:
        group, _, name = setting.rpartition(".")
        node = getattr(config, group) if group else config
        value = getattr(node, name)
        if value is not None:
            setattr(node, name, home_expanded(setting, value))


def home_expanded(setting: str, value: str) -> str:
    """Return a path with a home folder in place of a leading ~."""
    if not value.startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{setting}: found {value!r}, but no home folder of that user; write out the path") from error


def group_options() -> dict[str, list[str]]:
    """Return the options of each config group."""
    with _hydra() as loader:
        return {group: _options(loader, group) for group in GROUPS}


class PluginConfigs(SearchPathPlugin):
    """Adds the configs/backend/*.yaml of out-of-tree backends, after ours: none can redefine `model=tiny`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the packages' folders."""
        for package in plugin_config_packages():
            search_path.append(provider=package, path=f"pkg://{package}")


@contextmanager
def _hydra() -> Iterator[Any]:
    """Yield Hydra's loader of our config files."""
    Plugins.instance().register(PluginConfigs)
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def _options(loader: Any, group: str) -> list[str]:
    """Return the options of a group, with the files of its folders as FOLDER/NAME."""
    own = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
    folders = loader.get_group_options(group, results_filter=ObjectType.GROUP)
    return sorted([*own, *(f"{folder}/{name}" for folder in folders for name in _options(loader, f"{group}/{folder}"))])


def _read(overrides: list[str], loader: Any, *, sweeps_allowed: bool) -> tuple[dict[str, Override], dict[str, Any]]:
    """Return the settings of a command line by key, and the values of those that are not groups, of their types.

    Raises:
        ConfigError: settings cannot be read, do not exist, are of the wrong type, are given twice, or have several
            values where they cannot.
    """
    kinds = {key: str(item.type) for key, item, _ in iter_settings(Config)}
    problems, parsed, values = duplicates(overrides), {}, {}
    for text in overrides:
        try:
            override = parse_override(text, loader)
            key = override.key_or_group
            _check_override(override, loader, sweeps_allowed=sweeps_allowed)
            parsed[key] = override
            if key not in GROUPS and not override.is_sweep_override():
                values[key] = typed_value(key, kinds[key], override)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise config_error([*problems, *limit_problems(values)])
    return parsed, values


def _check_override(override: Override, loader: Any, *, sweeps_allowed: bool) -> None:
    """Check key and group option. Hydra itself would accept `+typo=1`.

    Raises:
        ConfigError: the key or option does not exist, or several values are given where one is expected.
    """
    key = override.key_or_group
    if override.is_sweep_override() and not sweeps_allowed:
        text = shortened(override.input_line or "")
        hint = "" if re.search(r"[^\d,.\s+-]", typed_text(override)) else "; a number has no comma: 0.001, 1000"
        raise ConfigError(f"{text!r}: found several values, expected one; add -m to run each, or quote the value{hint}")
    if key in GROUPS and override.package is None:
        _check_options(key, _choices(override), _options(loader, key))
        return
    leaves = [leaf for leaf, _, _ in iter_settings(Config)]
    if key not in leaves or override.package is not None:
        near = setting_hint(key, [*leaves, *GROUPS])
        found = shortened(override_key(override.input_line or ""))
        raise ConfigError(f"{found}: no such setting{near}; python -m harness --settings lists all")


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


def _choices(override: Override) -> list[Any]:
    if not override.is_sweep_override():
        return [name_or_null(override)]
    key = override.key_or_group
    return [name_or_null(parse_override(f"{key}={value}", None)) for value in swept_values(override)]


def _values_of_files(composed: DictConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Return the files' values with those of the command line over them, and with references (${key}) resolved."""
    OmegaConf.set_struct(composed, False)
    for key, value in values.items():
        OmegaConf.update(composed, key, value)
    given = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(given, dict)
    return {str(key): value for key, value in given.items()}


def _read_model(model: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Add the settings that a config.json states, but for those of the command line.

    Raises:
        ConfigError: it cannot be read, or describes a model that the harness cannot compute.
    """
    if model["path"] in (None, "", MISSING):
        raise ConfigError(
            "model.path: missing; model=hf needs a Hugging Face config.json or its folder: add model.path=DIR"
        )
    model["path"] = home_expanded("model.path", model["path"])
    for key, value in flatten(read_model(model["path"])).items():
        if f"model.{key}" not in values:
            section, _, name = key.rpartition(".")
            (model.setdefault(section, {}) if section else model)[name] = value


def _to_typed(config_class: type[T], given: dict[str, Any]) -> T:
    """Return nested values of YAML files as a config.

    Raises:
        ConfigError: a key is unknown, or a value is missing or of the wrong type.
    """
    kinds = {key: str(item.type) for key, item, _ in iter_settings(config_class)}
    problems, values = [], {}
    for key, value in flatten(given).items():
        if key not in kinds:
            problems.append(f"{key}: no such setting{setting_hint(key, list(kinds))}")
            continue
        try:
            remedy = "; put it in quotes in its YAML file" if kinds[key].startswith("str") else " in its YAML file"
            values[key] = as_type(key, kinds[key], value, remedy=remedy)
        except ConfigError as error:
            problems.append(str(error))
    config = from_settings(config_class, values)
    problems += [
        f"{key}: found no value; set it on the command line or in its YAML file"
        for key, _, value in iter_settings(config)
        if value == MISSING
    ]
    if problems:
        raise config_error(problems)
    return config


def _label_modified(config: Config, values: dict[str, Any]) -> None:
    """Mark the names of presets whose values were changed: records and folders name what was run.

    Raises:
        ConfigError: the command line gives other values the name of a preset.
    """
    for group in LABELED:
        part = getattr(config, group)
        presets = {file.stem: file for file in (config_directory() / group).glob("*.yaml")}
        presets.pop(MODEL_OF_A_FILE, None)
        if part.name not in presets:
            continue
        given = OmegaConf.to_container(OmegaConf.load(presets[part.name]))
        assert isinstance(given, dict)
        preset = _to_typed(type(part), {str(key): value for key, value in given.items()})
        if workload_id(replace(config, **{group: preset})) == workload_id(config):
            continue
        if f"{group}.name" in values:
            raise ConfigError(
                f"{group}.name: found {part.name!r}, a preset whose values differ from these settings; choose another "
                f"name, or {group}={part.name} without changes"
            )
        part.name += MODIFIED


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
    return f"{key.group(1)}: {message}" if key else message
