"""The registry of backends: entry points of the group `harness.backends`, the built-in ones included.

Nothing here imports torch, and a plug-in that cannot be imported breaks only itself.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from harness.backends.base import Backend
from harness.config import BackendConfig
from harness.errors import BackendUnavailable, ConfigError

ENTRY_POINT_GROUP = "harness.backends"


def registered() -> dict[str, EntryPoint]:
    """Return every registered backend's entry point by name, without importing any."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if not found:
        raise ConfigError(
            "no backend is registered: the harness is not installed in this environment; "
            "run pip install -e . in its folder"
        )
    return dict(sorted(found.items()))


def create(settings: BackendConfig) -> Backend:
    """Return a new object of the backend that `settings` name. It has not touched torch or the device yet.

    Raises:
        ConfigError: no backend of that name is registered.
        BackendUnavailable: its module cannot be imported.
    """
    name, points = settings.name, registered()
    if name not in points:
        raise ConfigError(f"backend.name: found {name!r}, expected one of: {', '.join(points)}")
    try:
        backend_class = points[name].load()
    except Exception as error:
        raise BackendUnavailable(
            f"backend {name} is registered by {points[name].value} but cannot be imported: "
            f"{type(error).__name__}: {error}; reinstall or remove that package"
        ) from error
    return backend_class(settings)


def plugin_config_packages() -> list[str]:
    """Return the `configs` packages that out-of-tree backends ship beside their code."""
    packages = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        root = point.module.split(".")[0]
        if root == "harness" or f"{root}.configs" in packages:
            continue
        try:
            has_configs = find_spec(f"{root}.configs") is not None
        except Exception:  # noqa: BLE001 (find_spec imports the parent; a broken plug-in breaks only itself)
            continue
        if has_configs:
            packages.append(f"{root}.configs")
    return packages
