"""Results of `experiment=autotune`, and the settings that a run takes from them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.config import Config
from harness.errors import ConfigError, RecordError
from harness.records.files import has_valid_seal
from harness.records.peak import identity
from harness.records.record import check_schema_version
from harness.records.run_folder import AUTOTUNE_FILE
from harness.regular_files import load_json, strict_json

MICRO_BATCH_SIZE = "workload.micro_batch_size"
# Of the model's settings, those without effect on its speed.
LABELS = ("name", "path")


def tuned_work(config: Config) -> dict[str, Any]:
    """Return the settings that the fastest ones depend on, besides device and software."""
    model = {key: value for key, value in asdict(config.model).items() if key not in LABELS}
    return {
        "model": model,
        "precision": config.precision,
        "seq_len": config.workload.seq_len,
        "global_batch_size": config.workload.global_batch_size,
        "track": config.track.name,
    }


def apply_search(config: Config, run: Mapping[str, Any]) -> Config:
    """Return the config with the answers of the newest search of its device, software and work (`autotuned`).

    Settings of the track that are given stay as they are.

    Args:
        run: the sections `backend`, `device` and `effective_settings` of the run's record.

    Raises:
        ConfigError: there is none.
        RecordError: a search's file cannot be used.
    """
    folder = Path(config.autotune_dir).expanduser()
    files = sorted([*folder.glob(AUTOTUNE_FILE), *folder.glob(f"*/{AUTOTUNE_FILE}")])
    searches = [(path, _read(path)) for path in files]
    wanted = {**identity(run), **tuned_work(config)}
    differing = {path: _differences(search, wanted) for path, search in searches}
    fitting = [search for path, search in searches if not differing[path]]
    if not fitting:
        found = f"found no search in {folder}"
        if searches:
            path = searches[-1][0]
            found = f"found no search of this device, software and work in {folder} ({path.parent.name} has another "
            found += f"{', '.join(differing[path])})"
        raise ConfigError(f"autotuned: {found}; search first: the same command with experiment=autotune added")
    settings = fitting[-1]["settings"]
    chosen = {key.removeprefix("track."): value for key, value in settings.items() if key.startswith("track.")}
    track = replace(
        config.track, **{key: value for key, value in chosen.items() if getattr(config.track, key, "") is None}
    )
    workload = replace(config.workload, micro_batch_size=settings[MICRO_BATCH_SIZE])
    return replace(config, track=track, workload=workload)


def _differences(search: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    known = {**identity(search), **search["work"]}
    return [key for key, value in wanted.items() if known.get(key) != value]


def _read(path: Path) -> dict[str, Any]:
    try:
        search = load_json(path, strict_json)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read: {error}; delete it, and search again") from error
    if not isinstance(search, dict) or search.get("kind") != "autotune":
        raise RecordError(f"{path}: not a search of this harness; move it elsewhere")
    version = search.get("schema_version")
    check_schema_version(path, version if isinstance(version, int) else 0)
    if not has_valid_seal(search) or "settings" not in search:
        raise RecordError(f"{path}: was changed after it was written, or is of an earlier version; search again")
    return search
