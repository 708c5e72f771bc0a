"""Requirements of an image, and a check that every installed package is pinned.

    python check_pins.py requirements PYPROJECT EXTRA          prints the requirements, extras included
    python check_pins.py installed VENV CONSTRAINTS EXTRA      fails and names each package without a pin

A package is pinned by constraints.txt, or by another package that requires one exact version of it, as torch does with
CUDA's libraries.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    from setuptools._vendor import tomli as tomllib  # type: ignore[no-redef]

OWN = "training-harness"


def requirements(pyproject: Path, extras: str) -> list[str]:
    """Return the project's requirements with some of its extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    asked = [extra for extra in extras.split(",") if extra]
    unknown = [extra for extra in asked if extra not in known]
    if unknown:
        sys.exit(f"EXTRA: found {unknown[0]!r}, expected some of: {', '.join(known)}, separated by commas")
    return [*project["dependencies"], *(line for extra in asked for line in known[extra])]


def pins(constraints: Path) -> dict[str, str]:
    """Return the versions that a constraints file pins, by package."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"([\w.-]+)==([\w.+!-]+)", line.split("#")[0].strip()) for line in lines)
    return {canonicalize_name(line[1]): line[2] for line in found if line}


def unpinned(site_packages: Path, named: dict[str, str]) -> list[str]:
    """Return the installed packages that neither the constraints nor another package pins."""
    packages = list(metadata.distributions(path=[str(site_packages)]))
    exact = {
        canonicalize_name(asked.name)
        for package in packages
        for asked in map(Requirement, package.requires or ())
        if any(part.operator in ("==", "===") for part in asked.specifier)
    }
    names = {canonicalize_name(package.metadata["Name"]): package.version for package in packages}
    return sorted(
        f"{name}=={version}" for name, version in names.items() if name != OWN and name not in {*named, *exact}
    )


def main(argv: list[str]) -> None:
    if argv[0] == "requirements":
        print("\n".join(requirements(Path(argv[1]), argv[2])))
        return
    [site_packages] = Path(argv[1]).glob("lib/python3*/site-packages")
    built = (site_packages / "torch" / "version.py").read_text() if (site_packages / "torch").is_dir() else ""
    if "cuda" not in argv[3].split(",") and re.search(r"^cuda\b.*= '", built, re.MULTILINE):
        sys.exit(
            f"EXTRA={argv[3]}: pip installed a torch built for CUDA, with gigabytes that this image does not use; "
            "name an index with CPU builds in the secret pip.conf"
        )
    loose = unpinned(site_packages, pins(Path(argv[2])))
    if loose:
        sys.exit(f"no pin for {', '.join(loose)}; run scripts/container/lock.sh and commit constraints.txt")


if __name__ == "__main__":
    main(sys.argv[1:])
