"""attempts.json: every process that worked on a run with checkpoints, from its first step to its last."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.layout import Layout
from harness.records.files import has_valid_seal, seal, write_atomically
from harness.regular_files import load_json
from harness.text import utc_now

ATTEMPTS_FILE = "attempts.json"
_ATTEMPT_KEYS = {"started_at", "finished_at", "status", "from_step", "to_step", "world_size", "layout", "host"}


def begin_attempt(folder: Path, *, from_step: int, layout: Layout, host: str | None) -> list[dict[str, Any]]:
    """Append an attempt to attempts.json, and return all attempts so far, this one included."""
    attempts = read_attempts(folder)
    attempts.append(
        {
            "started_at": utc_now(),
            "finished_at": None,
            "status": None,
            "from_step": from_step,
            "to_step": None,
            "world_size": layout.size,
            "layout": asdict(layout),
            "host": host,
        }
    )
    _write_attempts(folder, attempts)
    return attempts


def end_attempt(folder: Path, attempts: list[dict[str, Any]], *, status: str, to_step: int) -> list[dict[str, Any]]:
    """Write the outcome of the last of `attempts`, and return all. One that was killed has no outcome."""
    ended = [*attempts[:-1], attempts[-1] | {"finished_at": utc_now(), "status": status, "to_step": to_step}]
    _write_attempts(folder, ended)
    return ended


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """Return the attempts of the run in a folder, oldest first.

    Raises:
        ConfigError: attempts.json is damaged.
    """
    file = folder / ATTEMPTS_FILE
    try:
        content = load_json(file)
        if not isinstance(content, dict) or not has_valid_seal(content):
            raise ValueError("was changed after it was written (content_sha256 differs)")
        attempts = content.get("attempts")
        if not isinstance(attempts, list) or any(set(attempt) != _ATTEMPT_KEYS for attempt in attempts):
            raise ValueError("holds no list of attempts as this harness writes it")
        return attempts
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}; move it elsewhere to resume without it") from error


def _write_attempts(folder: Path, attempts: list[dict[str, Any]]) -> None:
    write_atomically(folder / ATTEMPTS_FILE, json.dumps(seal({"attempts": attempts}), indent=1) + "\n")
