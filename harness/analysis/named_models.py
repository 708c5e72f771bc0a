"""Shapes of the models of configs/model/, for arithmetic that needs neither Hydra nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.config import config_directory
from harness.text import normalized_name

DEFAULTS = {"num_key_value_heads": None, "intermediate_size": None, "activation": "gelu_tanh"}


@cache
def model_preset(name: str | None) -> Mapping[str, Any] | None:
    """Return the shape of a model by its name, or None if there is none of that name.

    Tables write LLaMA2-70B or Llama 2 70B: upper case, spaces and hyphens are taken loosely.
    """
    file = _files().get(normalized_name(name)) if name is not None else None
    return None if file is None else {**DEFAULTS, **yaml.safe_load(file.read_text(encoding="utf-8"))}


@cache
def _files() -> dict[str, Path]:
    return {normalized_name(file.stem): file for file in (config_directory() / "model").glob("*.yaml")}


def model_names() -> list[str]:
    """Return the names of all of them."""
    return sorted(file.stem for file in (config_directory() / "model").glob("*.yaml"))
