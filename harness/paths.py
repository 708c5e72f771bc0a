"""Where the project's own data files lie, in a checkout, an editable install and a wheel alike."""

from __future__ import annotations

from pathlib import Path

from harness.errors import ConfigError


def config_directory() -> Path:
    """Return the folder of YAML files: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"the configs folder is missing beside {package}; install the package again")
