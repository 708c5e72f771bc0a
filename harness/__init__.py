"""A backend-agnostic training harness. Importing the package imports neither torch nor a vendor's plug-in."""

__version__ = "0.1.0"
