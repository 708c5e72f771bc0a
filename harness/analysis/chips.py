"""The catalogue of chips (configs/chips.yaml): peaks with their sources, found by exact reported name only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError
from harness.paths import config_directory

CONFIDENCE_GRADES = ("A", "B", "C")


@dataclass(frozen=True)
class Chip:
    """One accelerator. Figures are the vendor's dense peaks; None where nothing trustworthy is known."""

    name: str
    reported_names: tuple[str, ...]
    """What drivers call it, letter by letter."""
    peak_flops: Mapping[str, float | None]
    """FLOP/s by precision: fp32 (no TF32 or HF32), tf32, bf16, fp16."""
    lacks: tuple[str, ...]
    """Precisions that the chip does not have."""
    memory_bytes: float | None
    source: str
    confidence: str
    """A: the vendor's data sheet. B: several independent sources agree. C: one source, or sources disagree."""


@cache
def catalogue(path: Path | None = None) -> dict[str, Chip]:
    """Return every chip by each of its reported names.

    Raises:
        ConfigError: the file is malformed, or two chips claim one name.
    """
    file = path or config_directory() / "chips.yaml"
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))["chips"]
        chips = [_chip(name, entry) for name, entry in entries.items()]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a catalogue of chips: {error!r}") from error
    found: dict[str, Chip] = {}
    for chip in chips:
        for name in chip.reported_names:
            if name in found:
                raise ConfigError(f"{file}: {name!r} is a reported name of {found[name].name} and of {chip.name}")
            found[name] = chip
    return found


def find_chip(reported_name: str | None) -> Chip | None:
    """Return the chip with exactly this reported name, or None: a peak is never guessed from part of a name."""
    return None if reported_name is None else catalogue().get(reported_name)


def _chip(name: str, entry: dict[str, Any]) -> Chip:
    if entry["confidence"] not in CONFIDENCE_GRADES:
        raise ValueError(f"{name}: confidence {entry['confidence']!r} is not one of {CONFIDENCE_GRADES}")
    peaks = {key: None if value is None else value * 1e12 for key, value in entry["dense_tflops"].items()}
    memory = entry["memory_gb"]
    return Chip(
        name=name,
        reported_names=tuple(entry["reported_names"]),
        peak_flops=peaks,
        lacks=tuple(entry.get("lacks", ())),
        memory_bytes=None if memory is None else memory * 1e9,
        source=entry["source"],
        confidence=entry["confidence"],
    )
