"""Runs of the sides of a comparison in fresh processes, interleaved so that a drifting machine favors no side."""

from __future__ import annotations

import json
import random
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness import log
from harness.commands.kept_runs import run_into, status_of
from harness.commands.preflight import check_backend
from harness.composition import load
from harness.config import Config, to_dict, work_differences
from harness.errors import ConfigError, ExitCode, RunFailed
from harness.records.files import has_valid_seal, seal, write_atomically
from harness.records.folder_lock import locked
from harness.regular_files import load_json
from harness.text import counted, override_key, utc_stamp

PLAN_FILE = "plan.json"


def run_side_by_side(settings: Sequence[str], repeats: int, out: Path | None) -> Path:
    """Run every side `repeats` times and return the folder of the comparison.

    The order is random and balanced: in each round every side runs once, and over the rounds every side has each
    position equally often, as far as the numbers allow. The folder holds the plan, so the same command resumes after an
    interruption or failure; finished runs are kept, the run that ended so is repeated.

    Args:
        settings: the overrides of each side in one string, split as a shell does.
        out: the folder, or None for runs/<UTC time>-comparison.

    Raises:
        ConfigError: settings are wrong, set `out` or `repeats`, or the folder belongs to another comparison.
        BackendUnavailable: a side cannot run here.
        RunFailed: a run failed; its record holds the reason.
    """
    overrides = [_split(text) for text in settings]
    # An experiment's file may set repeats; here each run is one of the comparison's own.
    configs = [load([*own, "repeats=1"]) for own in overrides]
    for text, config in zip(settings, configs, strict=True):
        _check(text, config)
    _check_same_work(settings, configs)
    folder = _folder(out)
    with locked(folder, "--out"):
        _run_all(folder, settings, overrides, _plan(folder, settings, repeats)["order"])
    return folder


def _run_all(folder: Path, settings: Sequence[str], overrides: Sequence[Sequence[str]], order: Sequence[int]) -> None:
    """Run each side in its turn, but for the runs that are done."""
    done = {side: 0 for side in range(len(settings))}
    durations: list[float] = []
    with tqdm(total=len(order), unit="run", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        for place, side in enumerate(order):
            done[side] += 1
            target = folder / side_folders(len(settings))[side] / str(done[side])
            bar.set_description(f"run {place + 1} of {len(order)}: {settings[side]}")
            if status_of(target) != "ok":
                began = time.monotonic()
                _run(overrides[side], target, settings[side])
                durations.append(time.monotonic() - began)
                _log_progress(bar, place + 1, len(order), settings[side], durations)
            bar.update()


def side_folders(count: int) -> list[str]:
    """Return the names of the sides' folders in the comparison's folder."""
    return ["reference", *(f"other-{number}" for number in range(1, count))] if count > 2 else ["reference", "other"]


def _split(text: str) -> list[str]:
    try:
        overrides = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--run {text!r}: cannot be split as a command line: {error}; close the quotes") from error
    for key in ("out", "repeats"):
        if key in map(override_key, overrides):
            raise _decided_here(text, key)
    return overrides


def _decided_here(text: str, key: str) -> ConfigError:
    return ConfigError(f"--run {text!r}: sets {key}, which compare decides; use --{key}")


def _check(text: str, config: Config) -> None:
    if config.out is not None:
        raise _decided_here(text, "out")
    if config.autotune:
        raise ConfigError(
            f"--run {text!r}: autotune tries several settings; run it separately, and compare with those that it finds"
        )
    check_backend(config)


def _check_same_work(settings: Sequence[str], configs: Sequence[Config]) -> None:
    """Raise ConfigError before the first run if the sides are not the same work."""
    for text, config in zip(settings[1:], configs[1:], strict=True):
        differences = work_differences(to_dict(configs[0]), to_dict(config))
        if differences:
            named = ", ".join(f"{key} is {own}, not {first}" for key, (first, own) in differences.items())
            raise ConfigError(
                f"--run {text!r} is not the same work as --run {settings[0]!r}: {named}; change only settings outside "
                "the work, such as backend"
            )


def _folder(out: Path | None) -> Path:
    folder = out or Path("runs") / f"{utc_stamp()}-comparison"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [child.name for child in folder.iterdir() if not child.name.startswith(".")]
    except OSError as error:
        raise ConfigError(
            f"--out: cannot create the folder {folder}: {error.strerror}; choose another --out"
        ) from error
    if foreign and not (folder / PLAN_FILE).is_file():
        raise ConfigError(f"--out: {folder} holds {sorted(foreign)[0]} but no comparison; choose another --out")
    return folder


def _plan(folder: Path, settings: Sequence[str], repeats: int) -> dict[str, list[int]]:
    """Return the plan in the folder, or write a new one there."""
    file = folder / PLAN_FILE
    if file.is_file():
        try:
            plan = load_json(file)
            if not has_valid_seal(plan):
                raise ValueError("it was changed after it was written")
            same = plan["settings"] == list(settings) and plan["repeats"] == repeats
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file}: cannot be read ({error}); choose another --out") from error
        if not same:
            raise ConfigError(
                f"--out: {folder} holds another comparison ({counted(plan['repeats'], 'repeat')} of "
                f"{' and '.join(map(repr, plan['settings']))}); choose another --out"
            )
        return plan
    order = list(balanced_order(len(settings), repeats, random.Random()))
    plan = seal({"settings": list(settings), "repeats": repeats, "order": order})
    write_atomically(file, json.dumps(plan, indent=1) + "\n")
    return plan


def balanced_order(sides: int, repeats: int, source: random.Random) -> Iterator[int]:
    """Yield the side of each run: rounds in which each side runs once, and has each position equally often.

    Every `sides` rounds are a randomized Latin square, the rotations of one random order in random order, so that no
    side is favored by its position.
    """
    rounds: list[list[int]] = []
    while len(rounds) < repeats:
        first = source.sample(range(sides), sides)
        square = [first[shift:] + first[:shift] for shift in range(sides)]
        source.shuffle(square)
        rounds += square
    for order in rounds[:repeats]:
        yield from order


def _run(overrides: Sequence[str], target: Path, text: str) -> None:
    ended = run_into(target, [*overrides, "repeats=1"])
    if ended.exit_code != ExitCode.OK:
        raise RunFailed(f"a run of {text!r} ended with exit code {ended.exit_code}: {ended.message}")


def _log_progress(bar: tqdm[Any], number: int, total: int, text: str, durations: Sequence[float]) -> None:
    """Without a terminal, log a line for each run."""
    if bar.disable:
        left = sum(durations) / len(durations) * (total - number)
        log.info(f"run {number} of {total} done: {text}  {left:.0f} s left")
