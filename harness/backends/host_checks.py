"""Checks of the host that need no torch: packages, builds, device nodes, environment variables."""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """A reason why this backend cannot run here, and the command or change that fixes it."""

    what: str
    remedy: str


def installed_version(distribution: str) -> str | None:
    """Return an installed package's version without importing it, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def torch_build() -> dict[str, str | None]:
    """Return the platforms of the installed torch build. Keys `version`, `cuda`, `hip`, ...; empty without torch."""
    return version_file("torch", "torch/version.py")


def version_file(distribution: str, file_name: str) -> dict[str, str | None]:
    """Return the constants of a package's version.py, read without importing it; empty if there is none."""
    try:
        path = metadata.distribution(distribution).locate_file(file_name)
        with open(os.fspath(str(path)), encoding="utf-8") as file:
            text = file.read()
    except (metadata.PackageNotFoundError, OSError):
        return {}
    found = re.findall(r"^(\w+)\s*(?::[^=]+)?=\s*(None|'[^']*'|\"[^\"]*\")\s*$", text, re.MULTILINE)
    return {name.strip("_"): None if value == "None" else value[1:-1] for name, value in found}


def unsafe_env_vars(
    unsafe: Mapping[str, tuple[tuple[str, ...], str]], variables: Mapping[str, str] = os.environ
) -> list[Problem]:
    """Return a problem for every variable whose value would falsify a run.

    Args:
        unsafe: by name, the safe values, and the effect of all others.
    """
    return [
        Problem(f"{name}={variables[name]} {effect}", f"unset {name}")
        for name, (safe, effect) in unsafe.items()
        if variables.get(name, "").strip() not in safe
    ]


def torch_problems() -> list[Problem]:
    """Return the problem that torch is not installed, if so."""
    if installed_version("torch") is None:
        return [Problem("the package torch is not installed", "pip install torch")]
    return []


def build_problems(build: Mapping[str, str | None], platform: str, keys: Sequence[str]) -> list[Problem]:
    """Return the problem that the installed torch was built for none of the platforms in `keys`, if so."""
    if not build or any(build.get(key) is not None for key in keys):
        return []
    return [
        Problem(
            f"the installed torch {build.get('version')} was built without {platform}",
            f"install a build of torch with {platform} in an environment of its own (pytorch.org, Get Started)",
        )
    ]


def node_problems(nodes: Sequence[str], *, kind: str, expected: str, install: str, permit: str) -> list[Problem]:
    """Return what is wrong with the device nodes: absent, or closed to this user.

    Args:
        nodes: those that exist.
        kind: of the devices, such as GPU.
        expected: the path or pattern that was searched.
        install, permit: the remedy of either problem.
    """
    if not nodes:
        what = f"no {kind} driver is loaded, or it is not passed into this container ({expected} is missing)"
        return [Problem(what, install)]
    if not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
        return [Problem(f"{nodes[0]} may not be opened by this user", permit)]
    return []


def compiled_code_problems(variables: Mapping[str, str] = os.environ) -> list[Problem]:
    """Return why torch.compile cannot load its programs from the folder to which it writes them: a mount may forbid it.

    torch.compile's cache is TORCHINDUCTOR_CACHE_DIR, or a folder in the temporary one (TMPDIR, /tmp).
    """
    remedy = (
        "set TORCHINDUCTOR_CACHE_DIR or TMPDIR to a writable folder on a file system without noexec (in a container: "
        "--tmpfs /tmp:exec), or set track.compile=no"
    )
    try:
        folder = Path(variables.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()).absolute()
    except OSError as error:
        return [Problem(f"torch.compile needs a temporary folder: {error.strerror}", remedy)]
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    doing = "written"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            doing = "executed"
            mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError as error:
        found = f"torch.compile keeps its programs in {folder}, where nothing can be {doing}: {error.strerror}"
        return [Problem(found, remedy)]
    return []
