"""`python -m harness suite`: runs the workloads of a suite in fresh processes, in turn, and goes on where it was."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from harness import log
from harness.commands.arguments import Parser
from harness.commands.child_process import KILLED, hydra_quote
from harness.commands.interleaved_runs import balanced_order
from harness.commands.kept_runs import EndedRun, run_into, status_of
from harness.config import config_directory, flatten
from harness.errors import ConfigError, ExitCode, UserError
from harness.records.folder_lock import locked
from harness.records.load import shown_speed
from harness.records.record import read_record
from harness.records.run_folder import AUTOTUNE_FILE
from harness.records.suite_folder import (
    FAILED,
    OUT_OF_MEMORY,
    REFUSED,
    UNAVAILABLE,
    NotRun,
    SuiteFolder,
    begin_or_resume,
)
from harness.regular_files import load_json
from harness.suites import Suite, find_suite, suite_names
from harness.text import counted, layered_settings, override_key, utc_stamp

AUTOTUNE_FOLDER = "autotune"
DEFAULT_REPEATS = 3
STATUS_OF_EXIT: Mapping[int, str] = {ExitCode.USAGE: REFUSED, ExitCode.BACKEND_UNAVAILABLE: UNAVAILABLE}
# Name, seconds and decimals.
TIME_UNITS = (("s", 1, 0), ("min", 60, 0), ("h", 3600, 1))
# Settings that are the suite's own.
OWN_KEYS = ("out", "repeats", "autotune", "launcher")


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "suite",
        "Runs every workload of a suite several times, each time in a fresh process, in a balanced random order, so "
        "that a drifting machine favors none. After an interruption the same command goes on. A workload that does not "
        "fit or is refused is an entry with its reason, and the others run. python -m harness compare "
        "judges two such folders. Without NAME: every suite and its workloads.",
        "0 every workload ran, or could not run here; 2 bad usage, settings or file, 3 backend unavailable, 5 a run "
        "failed, or none could run",
        usage="%(prog)s [NAME [SETTING ...]]",
        notes=f"settings: as of a run, for every workload; out=DIR (default: runs/<UTC time>-suite-NAME), repeats=N "
        f"(default: {DEFAULT_REPEATS}), autotune=true (search the fastest micro-batch size of each workload first, and "
        "with track=tuned the other settings), launcher='torchrun --standalone --nproc-per-node=8' (start each run on "
        "several devices; or any command that starts another, such as srun)",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a suite of configs/suite, or a path ending in .yaml")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="settings for every workload, as key=value")
    return parser


def main(argv: list[str]) -> int:
    """Run a suite, or list all, and return the exit code."""
    # Imported here: only the screen needs rich.
    from harness.report.suite_table import print_suite_folder, print_suites

    options = build_parser().parse(argv)
    if options.name is None:
        print_suites([find_suite(name) for name in suite_names()])
        return ExitCode.OK
    runner = _runner(options)
    with locked(runner.folder.path, "out"):
        runner.run_all()
    print_suite_folder(runner.folder)
    return runner.exit_code()


def _runner(options: argparse.Namespace) -> SuiteRunner:
    for word in options.settings:
        if "=" not in word:
            raise UserError(f"suite: found {word!r}, expected a setting as key=value")
    own = {override_key(word): word.partition("=")[2] for word in options.settings if override_key(word) in OWN_KEYS}
    settings = [word for word in options.settings if override_key(word) not in OWN_KEYS]
    suite = find_suite(options.name)
    repeats = _repeats(own.get("repeats", str(DEFAULT_REPEATS)))
    if own.get("autotune", "false") not in ("true", "false"):
        raise ConfigError(f"autotune: found {own['autotune']!r}, expected true or false")
    autotunes = own.get("autotune") == "true"
    if autotunes and own.get("launcher"):
        raise ConfigError("autotune: searches on one device, found launcher too; leave one of them out")
    jobs, refused = _jobs(suite, settings)
    path = Path(own["out"]).expanduser() if "out" in own else Path("runs") / f"{utc_stamp()}-suite-{suite.name}"
    order = list(balanced_order(len(suite.workloads), repeats, random.Random()))
    given = (*settings, *(["autotune=true"] if autotunes else []))
    wanted = SuiteFolder(path, suite, given, repeats, tuple(order), tuple(_launcher(own.get("launcher", ""))))
    return SuiteRunner(begin_or_resume(wanted), jobs, refused, autotunes=autotunes)


def _launcher(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"launcher: found {text!r}: {error}; close the quotes") from error


def _repeats(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"repeats: found {text!r}, expected a number of at least 1")
    return int(text)


def _jobs(suite: Suite, settings: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, NotRun]]:
    """Return the settings of each workload, and those of the workloads that are refused with them.

    Raises:
        ConfigError: all are refused; the message is that of the first.
        BackendUnavailable: the backend cannot run here.
    """
    # Imported here: listing suites needs no Hydra.
    from harness.commands.preflight import check_backend
    from harness.composition import load

    jobs = {each.name: layered_settings(each.settings, settings) for each in suite.workloads}
    refused: dict[str, NotRun] = {}
    errors = []
    for name, job in jobs.items():
        try:
            config = load([*job, "repeats=1"])
        except ConfigError as error:
            refused[name] = NotRun(REFUSED, str(error))
            errors.append(error)
        else:
            check_backend(config)
    if len(errors) == len(jobs):
        raise errors[0]
    return jobs, refused


class SuiteRunner:
    """Makes the runs of a suite that are missing."""

    def __init__(
        self, folder: SuiteFolder, jobs: Mapping[str, list[str]], refused: Mapping[str, NotRun], *, autotunes: bool
    ) -> None:
        """
        Args:
            jobs: settings of each workload.
            refused: workloads whose settings contradict each other.
        """
        self.folder, self._jobs, self._autotunes = folder, dict(jobs), autotunes
        # Failed workloads are run again; what was refused or unavailable is not.
        kept = {name: found for name, found in folder.not_run.items() if found.status != FAILED}
        folder.not_run = {**kept, **refused}
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    def run_all(self) -> None:
        """Make every run that is missing, and write after each failure what could not run.

        Raises:
            Interrupted: a signal came.
        """
        self.folder.complete = False
        self.folder.save()
        runs = self.folder.runs()
        for number, (name, repeat) in enumerate(runs, 1):
            target = self.folder.path / name / str(repeat)
            if name in self.folder.not_run or status_of(target) == "ok":
                continue
            began = time.monotonic()
            ended = self._run(name, target)
            self._seconds[name].append(time.monotonic() - began)
            if ended.exit_code != ExitCode.OK:
                self.folder.not_run[name] = _not_run(ended, target)
                self.folder.save()
            self._log(number, name, repeat, target, runs[number:])
        self.folder.complete = True
        self.folder.save()

    def exit_code(self) -> int:
        """Return the exit code of the command."""
        outcomes = [self.folder.not_run.get(each.name) for each in self.folder.suite.workloads]
        failed = any(found is not None and found.status == FAILED for found in outcomes)
        return ExitCode.RUN_FAILED if failed or None not in outcomes else ExitCode.OK

    def _run(self, name: str, target: Path) -> EndedRun:
        job = self._jobs[name]
        if self._autotunes:
            search = self.folder.path / AUTOTUNE_FOLDER / name
            ended = self._search(job, search)
            if ended.exit_code != ExitCode.OK:
                return ended
            size = "workload.micro_batch_size"
            job = [word for word in job if override_key(word) != size]
            job = layered_settings(job, ["autotuned=true", f"autotune_dir={hydra_quote(search)}"])
        return run_into(target, [*job, "repeats=1"], self.folder.launcher)

    def _search(self, job: Sequence[str], search: Path) -> EndedRun:
        """Search the fastest settings of a workload, unless an earlier search has ended."""
        file = search / AUTOTUNE_FILE
        if file.is_file() and load_json(file).get("complete"):
            return EndedRun(ExitCode.OK, "")
        return run_into(search, layered_settings(job, search_settings()))

    def _log(self, number: int, name: str, repeat: int, target: Path, left: Sequence[tuple[str, int]]) -> None:
        found = self.folder.not_run.get(name)
        if found is None:
            speed = shown_speed(read_record(target))
            result = "no speed" if speed is None else f"{speed:,.0f} tokens/s"
        else:
            result = f"{found.status}: {found.reason}"
        missing = [each for each, again in left if each not in self.folder.not_run
                   and status_of(self.folder.path / each / str(again)) != "ok"]  # fmt: skip
        log.info(
            f"run {number} of {number + len(left)}, {name}, repeat {repeat}: {result}; "
            f"{counted(len(missing), 'run')} left, {time_left(missing, self._seconds)}"
        )


def search_settings() -> list[str]:
    """Return what configs/experiment/autotune.yaml sets, for a workload that has an experiment of its own."""
    content = yaml.safe_load((config_directory() / "experiment" / "autotune.yaml").read_text(encoding="utf-8"))
    return [f"{key}={json.dumps(value)}" for key, value in flatten(content).items() if key != "experiment"]


def time_left(runs: Sequence[str], seconds: Mapping[str, Sequence[float]]) -> str:
    """Return about how long some runs take, in words.

    Args:
        runs: name of the workload of each.
        seconds: of the runs so far, by workload; one without any is taken to last as long as the mean of the others.
    """
    means = {name: statistics.fmean(found) for name, found in seconds.items() if found}
    typical = statistics.fmean(means.values()) if means else 0.0
    left = sum(means.get(name, typical) for name in runs)
    unit, size, digits = next(each for each in TIME_UNITS if left < 120 * each[1] or each is TIME_UNITS[-1])
    return f"about {left / size:.{digits}f} {unit}"


def _not_run(ended: EndedRun, target: Path) -> NotRun:
    """Return why a run has no result, from its record and its exit code."""
    reason = ended.message.removeprefix("error: ")
    if status_of(target) == "oom" or (status_of(target) is None and ended.exit_code == KILLED):
        return NotRun(OUT_OF_MEMORY, reason)
    status = STATUS_OF_EXIT.get(ended.exit_code, FAILED)
    return NotRun(status, f"exit code {ended.exit_code}: {reason}" if status == FAILED else reason)
