"""Registry of backends: the entry points of the group `harness.backends`, built-in ones included.

It does not import torch, and a plug-in that cannot be imported breaks only itself.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from harness.backends.base import Backend
from harness.config import BackendConfig
from harness.errors import BackendUnavailable, ConfigError

ENTRY_POINT_GROUP = "harness.backends"


def registered() -> dict[str, list[EntryPoint]]:
    """Return the entry points of every backend by name, without importing any. Several of one name conflict."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        others = found.setdefault(point.name, [])
        # The same distribution can appear twice, as a checkout and as its installation.
        if point.value not in [other.value for other in others]:
            others.append(point)
    if not found:
        raise ConfigError(
            "no backend is registered: the harness is not installed in this environment; "
            "run pip install -e . in its folder"
        )
    return dict(sorted(found.items()))


def create(settings: BackendConfig) -> Backend:
    """Return the backend named in `settings`. It has touched neither torch nor the device yet.

    Raises:
        ConfigError: no backend of that name is registered.
        BackendUnavailable: its module cannot be imported, it is not a Backend, or two packages claim the name.
    """
    name, points = settings.name, registered()
    if name not in points:
        raise ConfigError(f"backend.name: found {name!r}, expected one of: {', '.join(points)}")
    point = points[name][0]
    if len(points[name]) > 1:
        claimants = " and by ".join(claimant.value for claimant in points[name])
        raise BackendUnavailable(f"backend {name} is registered by {claimants}; remove all but one of these packages")
    try:
        backend_class = point.load()
        if not (isinstance(backend_class, type) and issubclass(backend_class, Backend)):
            raise TypeError(f"{point.attr} is not a subclass of harness.backends.base.Backend")
        return backend_class(settings)
    except Exception as error:
        raise BackendUnavailable(
            f"backend {name} is registered by {point.value} but cannot be used: "
            f"{type(error).__name__}: {error}; reinstall or remove that package"
        ) from error


def plugin_config_packages() -> list[str]:
    """Return the `configs` packages of out-of-tree backends."""
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
