"""Catalogue of chips (configs/chips.yaml): peaks, memory, links and power, with their sources.

A run's device is found by its exact reported name only: a peak is never guessed from part of a name. A name in a table
or a claim ("A100", "910B") can mean several chips, and `match_chips` returns all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.config import config_directory
from harness.errors import ConfigError
from harness.text import normalized_name

GRADES = ("A", "B", "C")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8")
# Key of a figure in the file, and the factor to its unit in `Chip`.
FIGURES = {"memory_gb": 1e9, "memory_tb_per_s": 1e12, "link_gb_per_s": 1e9, "power_watts": 1.0}
WITH_SOURCE = ("dense_tflops", "label_tflops", "reported_names", "lacks", *FIGURES)


@dataclass(frozen=True)
class Source:
    """Source of a figure, and its grade."""

    text: str
    grade: str
    """A: the vendor's data sheet. B: several independent sources agree. C: one source, or sources that disagree."""


@dataclass(frozen=True)
class Chip:
    """One accelerator. Figures are the vendor's; None where no trustworthy one is known."""

    name: str
    vendor: str
    reported_names: tuple[str, ...]
    """Names that drivers report, exactly."""
    also_called: tuple[str, ...]
    peak_flops: Mapping[str, float | None]
    """Dense FLOP/s of the matrix units by precision: fp32 (no TF32 or HF32), tf32, bf16, fp16, fp8."""
    label_flops: Mapping[str, float]
    """FLOP/s of the vendor's label by precision, where it adds the vector units to the matrix units."""
    lacks: tuple[str, ...]
    """Precisions that the chip does not support."""
    memory_bytes: float | None
    memory_bytes_per_second: float | None
    link_bytes_per_second: float | None
    """To the other devices of its node, one direction, all links together."""
    link_devices: int | None
    """Number of devices that the link joins; None for all of a node."""
    devices_per_package: int
    """Devices, as PyTorch counts them, in one package: more than one where each of its dies is a device."""
    power_watts: float | None
    measured_flops: Mapping[str, float]
    """Best published measurements of matrix products, FLOP/s by precision."""
    measured_source: str | None
    sources: Mapping[str, Source]
    """Source of every figure, by its key in the file."""

    def peaks(self, precision: str) -> list[tuple[float, str]]:
        """Return (FLOP/s, kind) of the figures that are called the chip's peak: of the matrix units, and the label."""
        peak, label = self.peak_flops.get(precision), self.label_flops.get(precision)
        if label is None:
            return [] if peak is None else [(peak, "peak")]
        return [*([] if peak is None else [(peak, "peak of the matrix units")]), (label, "label")]

    def ceiling_flops(self, precision: str) -> float | None:
        """Return the largest figure that is called the chip's peak: a speed above it is impossible."""
        return max((value for value, _ in self.peaks(precision)), default=None)

    @property
    def confidence(self) -> str:
        """The grade of the chip's peaks."""
        return self.sources["dense_tflops"].grade

    @property
    def source(self) -> str:
        """The source of the chip's peaks."""
        return self.sources["dense_tflops"].text


@dataclass(frozen=True)
class Catalogue:
    """All chips, by reported name and by the names in tables and claims."""

    chips: tuple[Chip, ...]
    reported: Mapping[str, Chip]
    by_name: Mapping[str, tuple[Chip, ...]]
    """By normalized name, alias or family: the chips that the name can mean."""
    backends: Mapping[str, str]
    """By vendor, the name of the backend that drives its chips."""


@cache
def catalogue(path: Path | None = None) -> Catalogue:
    """Read the catalogue.

    Raises:
        ConfigError: the file is malformed, or a name is ambiguous in it.
    """
    file = path or config_directory() / "chips.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        chips = {name: _chip(name, entry) for name, entry in content["chips"].items()}
        families = {
            name: (tuple(chips[member] for member in entry["members"]), tuple(entry.get("also_called", ())))
            for name, entry in (content.get("families") or {}).items()
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{file}: is no valid catalogue of chips: {error!r}") from error
    reported: dict[str, Chip] = {}
    by_name: dict[str, tuple[Chip, ...]] = {}
    for chip in chips.values():
        for name in chip.reported_names:
            if name in reported:
                raise ConfigError(f"{file}: {name!r} is a reported name of {reported[name].name} and of {chip.name}")
            reported[name] = chip
        for name in (chip.name, *chip.also_called):
            _add_name(file, by_name, name, (chip,))
    for name, (members, aliases) in families.items():
        for alias in (name, *aliases):
            _add_name(file, by_name, alias, members)
    for name, chip in reported.items():
        # A reported name can also be the name of a family: GAUDI.
        by_name.setdefault(normalized_name(name), (chip,))
    return Catalogue(tuple(chips.values()), reported, by_name, content.get("backends", {}))


def find_chip(reported_name: str | None) -> Chip | None:
    """Return the chip with exactly this reported name, or None: a peak is never guessed from part of a name."""
    return None if reported_name is None else catalogue().reported.get(reported_name)


def match_chips(name: str | None) -> tuple[Chip, ...]:
    """Return the chips that a name in a table or a claim can mean: one, all of a family, or none.

    The whole name counts; only case, spaces and hyphens do not.
    """
    return () if name is None else catalogue().by_name.get(normalized_name(name), ())


def largest_peak(chips: Sequence[Chip], precision: str) -> float | None:
    """Return the largest peak FLOP/s of the chips, labels included, or None where that of one of them is unknown."""
    peaks = [chip.ceiling_flops(precision) for chip in chips if precision not in chip.lacks]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known and len(known) == len(peaks) else None


def ambiguity(name: str | None) -> str | None:
    """Return a text that lists the chips which a name can mean, or None if there are fewer than two."""
    chips = match_chips(name)
    return None if len(chips) < 2 else f"{name!r} may be {', '.join(chip.name for chip in chips)}"


def _add_name(file: Path, by_name: dict[str, tuple[Chip, ...]], name: str, chips: tuple[Chip, ...]) -> None:
    key = normalized_name(name)
    if by_name.get(key, chips) != chips:
        others = ", ".join(chip.name for chip in by_name[key])
        raise ConfigError(f"{file}: {name!r} means {others} and {', '.join(chip.name for chip in chips)}")
    by_name[key] = chips


def _chip(name: str, entry: dict[str, Any]) -> Chip:
    exceptions = entry.get("but", {})
    if unknown := sorted(exceptions.keys() - set(WITH_SOURCE)):
        raise ValueError(f"{name}: but: {unknown[0]!r} is not one of {', '.join(WITH_SOURCE)}")
    sources = {key: _source(name, exceptions.get(key, entry)) for key in WITH_SOURCE}
    peaks = {precision: _scaled(entry["dense_tflops"][precision], 1e12) for precision in PRECISIONS}
    lacks = tuple(entry.get("lacks", ()))
    for precision in lacks:
        if peaks[precision] is not None:
            raise ValueError(f"{name}: lacks {precision}, but has a peak of it")
    measured = dict(entry.get("measured", {}))
    measured_source = measured.pop("source") if measured else None
    figures = {key: _scaled(entry[key], factor) for key, factor in FIGURES.items()}
    return Chip(
        name=name,
        vendor=entry["vendor"],
        reported_names=tuple(entry["reported_names"]),
        also_called=tuple(entry.get("also_called", ())),
        peak_flops=peaks,
        label_flops={precision: value * 1e12 for precision, value in entry.get("label_tflops", {}).items()},
        lacks=lacks,
        memory_bytes=figures["memory_gb"],
        memory_bytes_per_second=figures["memory_tb_per_s"],
        link_bytes_per_second=figures["link_gb_per_s"],
        link_devices=entry.get("link_devices"),
        devices_per_package=entry.get("devices_per_package", 1),
        power_watts=figures["power_watts"],
        measured_flops={precision: value * 1e12 for precision, value in measured.items()},
        measured_source=measured_source,
        sources=sources,
    )


def _source(name: str, entry: Mapping[str, Any]) -> Source:
    if entry["grade"] not in GRADES:
        raise ValueError(f"{name}: grade {entry['grade']!r} is not one of {', '.join(GRADES)}")
    return Source(entry["source"], entry["grade"])


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
