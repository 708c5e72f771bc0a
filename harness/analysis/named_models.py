"""Shapes of the model presets in configs/model/, read without Hydra or torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.config import MODEL_OF_A_FILE, config_directory
from harness.text import normalized_name

DEFAULTS = {"num_key_value_heads": None, "intermediate_size": None, "activation": "gelu_tanh", "num_experts": None}


@cache
def model_preset(name: str | None) -> Mapping[str, Any] | None:
    """Return the shape of a model preset, or None if there is none of that name.

    Case, spaces and hyphens do not count: LLaMA2-70B and Llama 2 70B name the same model.
    """
    file = _files().get(normalized_name(name)) if name is not None else None
    return None if file is None else {**DEFAULTS, **yaml.safe_load(file.read_text(encoding="utf-8"))}


@cache
def _files() -> dict[str, Path]:
    return {normalized_name(name): config_directory() / "model" / f"{name}.yaml" for name in model_names()}


def model_names() -> list[str]:
    """Return the names of all model presets."""
    return sorted(file.stem for file in (config_directory() / "model").glob("*.yaml") if file.stem != MODEL_OF_A_FILE)
