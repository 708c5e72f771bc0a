"""Shapes of the models of configs/model/, for arithmetic that needs neither Hydra nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from harness.paths import config_directory

DEFAULTS = {"kv_heads": None, "hidden": None, "activation": "gelu_tanh"}


@cache
def named_model(name: str | None) -> Mapping[str, Any] | None:
    """Return the shape of a model by its name, or None if there is none of that name."""
    if name is None or not all(letter.isalnum() or letter in "-._" for letter in name):
        return None
    file = config_directory() / "model" / f"{name}.yaml"
    return {**DEFAULTS, **yaml.safe_load(file.read_text(encoding="utf-8"))} if file.is_file() else None


def model_names() -> list[str]:
    """Return the names of all of them."""
    return sorted(file.stem for file in (config_directory() / "model").glob("*.yaml"))
