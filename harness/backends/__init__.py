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


def registered() -> dict[str, list[EntryPoint]]:
    """Return every registered backend's entry points by name, without importing any. More than one is a conflict."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        others = found.setdefault(point.name, [])
        # One distribution may be found twice, as a checkout and as its installation.
        if point.value not in [other.value for other in others]:
            others.append(point)
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
        BackendUnavailable: its module cannot be imported, it is no whole backend, or two packages claim the name.
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
