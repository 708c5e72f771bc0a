"""Completion scripts for shells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.page import template

SHELLS = ("bash", "zsh", "fish")


def render_completion(shell: str, verbs: Mapping[str, Any], candidates: Sequence[str], paths: Sequence[str]) -> str:
    """Return the script.

    Args:
        shell: one of SHELLS.
        verbs: by name, each with `candidates` and `choices`, the values of some options.
        candidates: for a command line without a verb.
        paths: words that are followed by a path.
    """
    return template(f"completion.{shell}.j2").render(verbs=verbs, candidates=candidates, paths=paths)
