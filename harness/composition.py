"""Hydra glue: command-line overrides to one typed Config, or to one line that says what is wrong with them.

Hydra's own `hydra.main` is not used: it writes files, runs a sweep's jobs in one process, and answers mistakes
with several lines. Composition, override grammar and sweep expansion are Hydra's.
"""

from __future__ import annotations

import difflib
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
from harness.errors import ConfigError
from harness.validation import validate

GROUPS = ("backend", "model", "data", "workload", "parallel", "track", "experiment")


def load(overrides: list[str]) -> Config:
    """Compose, type and validate one run's settings.

    Args:
        overrides: command-line words in Hydra's grammar, such as `model=tiny` or `workload.steps=5`.

    Raises:
        ConfigError: a word is misspelt, of the wrong type, or the settings contradict each other.
    """
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
    """Return what each config group can be set to."""
    with _hydra() as loader:
        return {group: _options(loader, group) for group in GROUPS}


@contextmanager
def _hydra() -> Iterator[ConfigLoaderImpl]:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        # Out-of-tree backends bring their own configs/backend/*.yaml. They come after ours, so that none can redefine
        # what `model=tiny` means, and before Hydra's schema source, which has to be the last.
        elements = loader.get_search_path().get_path()
        for package in plugin_config_packages():
            elements.insert(len(elements) - 1, SearchPathElement(provider=package, search_path=f"pkg://{package}"))
        loader.repository.initialize_sources(loader.get_search_path())
        yield loader


def _options(loader: Any, group: str) -> list[str]:
    """Return what a group can be set to, folders' files included as FOLDER/NAME."""
    own = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
    folders = loader.get_group_options(group, results_filter=ObjectType.GROUP)
    return sorted([*own, *(f"{folder}/{name}" for folder in folders for name in _options(loader, f"{group}/{folder}"))])


def _parse(overrides: list[str], loader: Any = None) -> list[Override]:
    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for word in overrides:
        try:
            parsed += parser.parse_overrides([word])
        except HydraException as error:
            raise ConfigError(
                f"cannot read {word!r}: expected key=value, and a value with spaces, commas, brackets or "
                f"equal signs in quotes, such as 'data.path=\"my texts (1)\"'; python -m harness --help"
            ) from error
    return parsed


def _check_overrides(overrides: list[Override], loader: Any, *, sweeps_allowed: bool) -> None:
    """Refuse unknown keys and group options in words of our own; Hydra would take `+typo=1` silently."""
    leaves = [key for key, _, _ in iter_settings(Config)]
    nodes = {key.rsplit(".", 1)[0] for key in leaves if "." in key}
    for override in overrides:
        key, word = override.key_or_group, override.input_line or ""
        if override.is_delete():
            raise ConfigError(f"{word!r}: settings cannot be deleted; set the key to the value that you want")
        if override.is_sweep_override() and not sweeps_allowed:
            raise ConfigError(f"{word!r} names several values; add -m to run each in turn, or quote the value")
        if key in GROUPS:
            choices = _options(loader, key)
            values = _swept_values(override)
            for value in values:
                if value in choices or (key == "experiment" and value is None):
                    continue
                if key == "backend" and value in registered():
                    # Its package brings no YAML file, or is broken, in which case this says how.
                    create(BackendConfig(name=value))
                    raise ConfigError(
                        f"backend: {value} is registered, but its package brings no configs/backend/{value}.yaml; "
                        f"use backend.name={value}"
                    )
                raise ConfigError(
                    f"{key}: found {value!r}, expected one of: {', '.join(choices)}{_nearest(value, choices)}"
                )
        elif key not in leaves and key not in nodes:
            everything = [*leaves, *GROUPS]
            raise ConfigError(
                f"{key}: no such setting{_nearest(key, everything)}; python -m harness --settings lists all"
            )


def _swept_values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return [text for text in override.sweep_string_iterator()]
    return [override.value()]


def _nearest(found: Any, known: list[str]) -> str:
    tails = {key.rsplit(".", 1)[-1]: key for key in known}
    matches = difflib.get_close_matches(str(found), known, n=1, cutoff=0.6)
    if not matches:
        matches = [tails[tail] for tail in difflib.get_close_matches(str(found).rsplit(".", 1)[-1], tails, n=1)]
    return f"; did you mean {matches[0]}?" if matches else ""


def _to_typed(composed: DictConfig) -> Config:
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{missing[0]}: has no value; set it on the command line or in its YAML file")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    given = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(given, dict)
    # to_object drops keys that the schema lacks: a typo in a YAML file must not pass as a setting.
    unknown = _unknown_keys(given, asdict(config))
    if unknown:
        leaves = [key for key, _, _ in iter_settings(Config)]
        raise ConfigError(f"{unknown[0]}: no such setting{_nearest(unknown[0], leaves)}")
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
    """Make one line of Hydra's or OmegaConf's several, with the key in front where they name it."""
    cause = error
    while isinstance(cause.__cause__, (HydraException, OmegaConfBaseException)):
        cause = cause.__cause__
    text = str(cause)
    key = re.search(r"full_key: (\S+)", text)
    said = " ".join(
        line.strip()
        for line in text.splitlines()
        if not re.match(r"\s*(full_key|object_type|reference_type)[:=]", line)
    )
    said = re.sub(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", _expected_type, said)
    said = re.sub(r"Value '(.*)' is not a valid bool.*", r"found '\1', expected true or false", said)
    return f"{key.group(1)}: {said}" if key else said


def _expected_type(match: re.Match[str]) -> str:
    names = {"Integer": "a whole number", "Float": "a number", "String": "text"}
    return f"found {match.group(1)!r}, expected {names.get(match.group(2), match.group(2))}"
