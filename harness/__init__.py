"""A backend-agnostic training harness. Importing the package imports neither torch nor a vendor's plug-in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import Records, compare, load_all_records, load_records, table

__version__ = "0.1.0"
__all__ = ["Records", "compare", "load_all_records", "load_records", "table"]


def __getattr__(name: str) -> Any:
    """Return a part of the API. It is imported when it is first used, since a run needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("harness.api"), name)
