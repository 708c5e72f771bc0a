"""Suites (configs/suite/*.yaml): named sets of workloads that are run and judged as one."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.config import config_directory
from harness.errors import ConfigError
from harness.regular_files import read_file
from harness.text import did_you_mean

FILE_KEYS = ("description", "workloads")
WORKLOAD_KEYS = ("name", "settings", "reason", "weight")
# The name of a workload is that of its folder, beside the suite's own files and folders.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
RESERVED = ("autotune", "interrupted", "suite.json")


@dataclass(frozen=True)
class Workload:
    """One workload of a suite."""

    name: str
    settings: tuple[str, ...]
    """As on the command line of a run."""
    reason: str
    """Reason for which the suite has it."""
    weight: float = 1.0
    """Its share in the mean, relative to those of the other workloads."""


@dataclass(frozen=True)
class Suite:
    """A named set of workloads."""

    name: str
    description: str
    workloads: tuple[Workload, ...]

    @property
    def digest(self) -> str:
        """Identity of what is run and how it is weighed: 16 hexadecimal digits of a SHA-256. Texts do not count."""
        content = [[each.name, each.settings, each.weight] for each in self.workloads]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the suite as JSON values."""
        return json.loads(json.dumps(asdict(self)))


def suite_names() -> list[str]:
    """Return the names of the suites in configs/suite."""
    return sorted(file.stem for file in (config_directory() / "suite").glob("*.yaml"))


def find_suite(name: str) -> Suite:
    """Return the suite of a name, or of a YAML file of the user's.

    Raises:
        ConfigError: there is none, or its file is malformed.
    """
    if name.endswith((".yaml", ".yml")):
        return read_suite(Path(name).expanduser())
    known = suite_names()
    if name not in known:
        raise ConfigError(
            f"suite: found {name!r}, expected one of: {', '.join(known)}, or a path that ends in .yaml"
            f"{did_you_mean(name, known)}"
        )
    return read_suite(config_directory() / "suite" / f"{name}.yaml")


def read_suite(file: Path) -> Suite:
    """Return the suite in a YAML file.

    Raises:
        ConfigError: it cannot be read, or is no suite.
    """
    try:
        entry = yaml.safe_load(read_file(file).decode("utf-8"))
        return suite_of({"name": file.stem, **_mapping("the file", entry, FILE_KEYS)})
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read as a suite: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a suite: {' '.join(str(error).split())}") from error


def suite_of(entry: Any) -> Suite:
    """Return the suite that JSON or YAML values describe, as `Suite.to_dict` returns them.

    Raises:
        ValueError: they describe none.
    """
    found = _mapping("the suite", entry, ("name", *FILE_KEYS))
    workloads = found["workloads"]
    if not isinstance(workloads, list) or not workloads:
        raise ValueError(f"workloads: found {workloads!r}, expected a list of one or more")
    read = tuple(_workload(f"workloads, number {number}", each) for number, each in enumerate(workloads, 1))
    for each, count in Counter(workload.name for workload in read).items():
        if count > 1:
            raise ValueError(f"workloads: found {count} of the name {each}, expected names of their own")
    return Suite(_text("name", found["name"]), _text("description", found["description"]), read)


def _workload(where: str, entry: Any) -> Workload:
    found = {"weight": 1.0, **_mapping(where, entry, WORKLOAD_KEYS, optional=("weight",))}
    name, weight = _text(f"{where}: name", found["name"]), found["weight"]
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: name: found {name!r}, expected lower-case letters, digits, dots and hyphens")
    if name in RESERVED:
        raise ValueError(f"{where}: name: found {name}, which is a name of the suite's own; choose another one")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ValueError(f"{where}: weight: found {weight!r}, expected a number above 0")
    return Workload(
        name,
        _settings(f"{where}: settings", found["settings"]),
        _text(f"{where}: reason", found["reason"]),
        float(weight),
    )


def _settings(where: str, value: Any) -> tuple[str, ...]:
    """Return settings, which a file of the user's has in one text as a shell would read it."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    try:
        return tuple(shlex.split(_text(where, value)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _mapping(where: str, entry: Any, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: found {entry!r}, expected the keys {', '.join(keys)}")
    if missing := [key for key in keys if key not in entry and key not in optional]:
        raise ValueError(f"{where}: {missing[0]} is missing")
    if unknown := [key for key in entry if key not in keys]:
        raise ValueError(
            f"{where}: {unknown[0]}: unknown key, expected one of: {', '.join(keys)}"
            f"{did_you_mean(str(unknown[0]), keys)}"
        )
    return entry


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: found {value!r}, expected a text")
    return " ".join(value.split())
