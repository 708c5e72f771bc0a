"""Runs the sides of a comparison here, in fresh processes, interleaved so that a drifting machine favours none."""

from __future__ import annotations

import json
import os
import random
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness import backends, log
from harness.commands.child_process import hydra_quote, run_process
from harness.composition import load
from harness.config import Config, workload_id
from harness.errors import ConfigError, ExitCode, RunFailed
from harness.records.files import write_atomically
from harness.records.record import RECORD_FILE, read_record

PLAN_FILE = "plan.json"
LOG_FILE = "output.log"
INTERRUPTED_FOLDER = "interrupted"


def run_side_by_side(settings: Sequence[str], repeats: int, out: Path | None) -> Path:
    """Run every side `repeats` times and return the folder of the comparison.

    The order is drawn round by round: in each round every side runs once, and over the rounds every side comes
    equally often at each place, as far as the numbers allow. The folder holds the plan, so that the same command
    goes on after an interruption; finished runs are kept, a run that was cut off is made again.

    Args:
        settings: a side's overrides in one string, as a shell would read them.
        out: the folder, or None for runs/<UTC time>-comparison.

    Raises:
        ConfigError: settings are wrong, set `out` or `repeats`, or the folder belongs to another comparison.
        BackendUnavailable: a side cannot run here.
        RunFailed: a run ended badly; its record says why.
    """
    words = [_words(text) for text in settings]
    # An experiment's file may ask for repeats of its own; here each run is one of ours.
    configs = [load([*own, "repeats=1"]) for own in words]
    for text, own, config in zip(settings, words, configs, strict=True):
        _check(text, own, config)
    _refuse_different_work(settings, configs)
    folder = _folder(out)
    plan = _plan(folder, settings, repeats)
    runs = [(place, side) for place, side in enumerate(plan["order"])]
    done = {side: 0 for side in range(len(settings))}
    durations: list[float] = []
    with tqdm(total=len(runs), unit="run", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        for place, side in runs:
            done[side] += 1
            target = folder / side_folders(len(settings))[side] / str(done[side])
            bar.set_description(f"run {place + 1} of {len(runs)}: {settings[side]}")
            if _is_to_run(target):
                began = time.monotonic()
                _run(words[side], target, settings[side])
                durations.append(time.monotonic() - began)
                _log_progress(bar, place + 1, len(runs), settings[side], durations)
            bar.update()
    return folder


def side_folders(count: int) -> list[str]:
    """Return the names of the sides' folders below a comparison's own."""
    return ["reference", *(f"other-{number}" for number in range(1, count))] if count > 2 else ["reference", "other"]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--run {text!r}: cannot be read as words of a command line: {error}") from error


def _check(text: str, words: Sequence[str], config: Config) -> None:
    own = {word.lstrip("+").split("=", 1)[0] for word in words}
    for key in ("out", "repeats"):
        if key in own or (key == "out" and config.out is not None):
            raise ConfigError(f"--run {text!r}: sets {key}, which compare decides; use --{key}")
    if config.autotune:
        raise ConfigError(
            f"--run {text!r}: autotune tries several micro-batch sizes; run it by itself, and compare with the size "
            "that it names"
        )
    backend = backends.create(config.backend)
    problems = backend.preflight()
    if problems:
        raise backend.unavailable_error(problems)


def _refuse_different_work(settings: Sequence[str], configs: Sequence[Config]) -> None:
    """Say at once, not after an hour of runs, that the sides are not the same work."""
    for text, config in zip(settings[1:], configs[1:], strict=True):
        if workload_id(config) != workload_id(configs[0]):
            raise ConfigError(
                f"--run {text!r} is not the same work as --run {settings[0]!r} (workload_id {workload_id(config)} "
                f"against {workload_id(configs[0])}); change only backend, parallel, micro_batch_size and the like"
            )


def _folder(out: Path | None) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    folder = out or Path("runs") / f"{stamp}-comparison"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [child.name for child in folder.iterdir() if not child.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"--out: cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    if foreign and not (folder / PLAN_FILE).is_file():
        raise ConfigError(f"--out: {folder} holds {sorted(foreign)[0]} and no comparison; choose another --out")
    return folder


def _plan(folder: Path, settings: Sequence[str], repeats: int) -> dict[str, list[int]]:
    """Return the plan in the folder, or draw one and put it there."""
    file = folder / PLAN_FILE
    if file.is_file():
        try:
            plan = json.loads(file.read_text(encoding="utf-8"))
            same = plan["settings"] == list(settings) and plan["repeats"] == repeats
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: cannot be read ({error}); choose another --out") from error
        if not same:
            raise ConfigError(
                f"--out: {folder} holds another comparison ({plan['repeats']} repeats of "
                f"{' and '.join(map(repr, plan['settings']))}); choose another --out"
            )
        return plan
    order = list(balanced_order(len(settings), repeats, random.Random()))
    plan = {"settings": list(settings), "repeats": repeats, "order": order}
    write_atomically(file, json.dumps(plan, indent=1) + "\n")
    return plan


def balanced_order(sides: int, repeats: int, source: random.Random) -> Iterator[int]:
    """Yield the side of each run: rounds in which each side runs once, and each comes equally often at each place.

    Of every `sides` rounds the orders are the rotations of one random order, themselves in random order (a
    randomised Latin square), so that over them no side is favoured by coming first.
    """
    rounds: list[list[int]] = []
    while len(rounds) < repeats:
        first = source.sample(range(sides), sides)
        square = [first[shift:] + first[:shift] for shift in range(sides)]
        source.shuffle(square)
        rounds += square
    for order in rounds[:repeats]:
        yield from order


def _is_to_run(target: Path) -> bool:
    """Return whether a run has yet to be made: there is none, or it was cut off or interrupted."""
    if not (target / RECORD_FILE).is_file():
        return True
    return read_record(target)["status"] == "interrupted"


def _run(words: Sequence[str], target: Path, text: str) -> None:
    log = target.parent / f"{target.name}.{LOG_FILE}"
    for path in (target, log):
        _keep_interrupted(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "harness", *words, "repeats=1", f"out={hydra_quote(target)}"]
    with open(log, "x", encoding="utf-8") as output:
        code = run_process(command, output)
    if code != ExitCode.OK:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RunFailed(f"a run of {text!r} ended with exit code {code}: {said[-1] if said else 'no message'}")
    log.unlink()


def _keep_interrupted(path: Path) -> None:
    """Move what a run that was cut off or failed left to where no comparison reads it: it is no evidence, but data."""
    if os.path.lexists(path):
        kept = path.parent.parent / INTERRUPTED_FOLDER
        kept.mkdir(exist_ok=True)
        number = 1
        while os.path.lexists(moved := kept / f"{path.parent.name}-{path.name}-{number}"):
            number += 1
        os.rename(path, moved)


def _log_progress(bar: tqdm[Any], number: int, total: int, text: str, durations: Sequence[float]) -> None:
    """Off a terminal, a plain line a run."""
    if bar.disable:
        left = sum(durations) / len(durations) * (total - number)
        log.info(f"run {number} of {total} done: {text}  {left:.0f} s left")
