"""What a backend checks of its host before torch is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Problem:
    """One thing that stands between the user and this backend, and the command or change that mends it."""

    what: str
    remedy: str


def installed_version(distribution: str) -> str | None:
    """Return an installed package's version without importing it, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def torch_build() -> dict[str, str | None]:
    """Return what the installed torch was built for. Keys `version`, `cuda`, `hip`, ...; empty without torch."""
    return version_file("torch", "torch/version.py")


def version_file(distribution: str, file_name: str) -> dict[str, str | None]:
    """Return the names that a package's version.py sets, read without importing it; empty if there is none."""
    try:
        path = metadata.distribution(distribution).locate_file(file_name)
        with open(os.fspath(str(path)), encoding="utf-8") as file:
            text = file.read()
    except (metadata.PackageNotFoundError, OSError):
        return {}
    found = re.findall(r"^(\w+)\s*(?::[^=]+)?=\s*(None|'[^']*'|\"[^\"]*\")\s*$", text, re.MULTILINE)
    return {name.strip("_"): None if value == "None" else value[1:-1] for name, value in found}


def unsafe_env_vars(
    hostile: Mapping[str, tuple[tuple[str, ...], str]], variables: Mapping[str, str] = os.environ
) -> list[Problem]:
    """Return the variables that would make a run something else than it says.

    Args:
        hostile: by name, the values that do no harm, and why the others do.
    """
    return [
        Problem(f"{name}={variables[name]} {why}", f"unset {name}")
        for name, (harmless, why) in hostile.items()
        if variables.get(name, "").strip() not in harmless
    ]


def torch_problems() -> list[Problem]:
    """Return the problem that torch is not installed, if so."""
    if installed_version("torch") is None:
        return [Problem("the package torch is not installed", "pip install torch")]
    return []
