"""Results of `experiment=autotune`, and the settings that a run takes from them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import log
from harness.config import Config, flatten, to_dict, workload_settings
from harness.errors import ConfigError, RecordError
from harness.records.files import has_valid_seal
from harness.records.peak import identity
from harness.records.record import SCHEMA_VERSION
from harness.records.run_folder import AUTOTUNE_FILE
from harness.regular_files import load_json, strict_json
from harness.text import shortened

MICRO_BATCH_SIZE = "workload.micro_batch_size"
# Settings that the fastest ones depend on, besides those of the model that are part of the work.
DECISIVE = ("precision", "workload.seq_len", "workload.global_batch_size", "track.", "model.activation_checkpointing")
FIELDS = ("backend", "device", "effective_settings", "work", "settings", "finished_at")


def tuned_work(config: Config) -> dict[str, Any]:
    """Return the settings that the fastest ones depend on, besides device and software; of the track, as given."""
    given = to_dict(config)
    model = {key: value for key, value in workload_settings(given).items() if key.startswith("model.")}
    return {**model, **{key: value for key, value in flatten(given).items() if key.startswith(DECISIVE)}}


def apply_search(config: Config, run: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Return the config with the answers of the newest search of its device, software and work (`autotuned`).

    The search is of the same given settings of the track: its answers are those to the settings that are left open.

    Args:
        run: the sections `backend`, `device` and `effective_settings` of the run's record.

    Returns:
        the config, and the search as the run's record has it.

    Raises:
        ConfigError: there is none.
        RecordError: a search's file cannot be used.
    """
    folder = Path(config.autotune_dir).expanduser()
    files = sorted([*folder.glob(AUTOTUNE_FILE), *folder.glob(f"*/{AUTOTUNE_FILE}")])
    searches = [(path, search) for path in files if (search := _read(path)) is not None]
    searches.sort(key=lambda found: found[1]["finished_at"])
    wanted = {**identity(run), **tuned_work(config)}
    differing = [(path, _differences(search, wanted)) for path, search in searches]
    fitting = [found for found, (_, differences) in zip(searches, differing, strict=True) if not differences]
    if not fitting:
        found = f"found no search in {folder}"
        if differing:
            path, differences = differing[-1]
            found = f"found no search of this device, software and work in {folder}; the newest, {path.parent.name}, "
            found += f"has {', '.join(differences[:3])}{', ...' if len(differences) > 3 else ''}"
        raise ConfigError(
            f"autotuned: {found}; search first: put autotune=true repeats=3 in place of autotuned=true, without out=DIR"
        )
    path, search = fitting[-1]
    answers = search["settings"]
    track = {key.removeprefix("track."): value for key, value in answers.items() if key.startswith("track.")}
    tuned = replace(
        config,
        track=replace(config.track, **track),
        workload=replace(config.workload, micro_batch_size=answers[MICRO_BATCH_SIZE]),
    )
    return tuned, {"path": str(path), **{key: search[key] for key in ("finished_at", "content_sha256")}}


def _differences(search: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the settings in which a search is another one, as `precision fp32 (here bf16)`."""
    known = {**identity(search), **search["work"]}
    return [
        f"{key} {shortened(str(known.get(key)))} (here {shortened(str(value))})"
        for key, value in wanted.items()
        if known.get(key) != value
    ]


def _read(path: Path) -> dict[str, Any] | None:
    """Return a complete search of this schema version, or None for any other one.

    Raises:
        RecordError: the file cannot be read, or was edited.
    """
    try:
        search = load_json(path, strict_json)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read: {error}; delete it, and search again") from error
    if not isinstance(search, dict) or search.get("kind") != "autotune":
        raise RecordError(f"{path}: not a search of this harness; move it elsewhere")
    if search.get("schema_version") != SCHEMA_VERSION or not search.get("complete"):
        log.warning(f"{path}: unfinished, or of another version of the harness; it is not used")
        return None
    if not has_valid_seal(search) or any(key not in search for key in FIELDS):
        raise RecordError(
            f"{path}: was changed after it was written (content_sha256 differs); delete it, and search again"
        )
    return search
