"""From a command line to one run, to repeats of it, or to the jobs of a sweep; and the help texts."""

from __future__ import annotations

import ast
import inspect
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from harness import backends, log
from harness import config as config_module
from harness.backends.base import Backend, Problem
from harness.checks import check_shares
from harness.composition import expand_sweep, group_options, load
from harness.config import Config, settings, to_yaml
from harness.errors import BackendUnavailable, EndedWithAll, ExitCode, Interrupted, UserError
from harness.record import claim_folder, refuse_existing_run
from harness.world import RankError, World, from_environment

# How long the processes of a host that say nothing wait for the one that speaks for them.
SECONDS_FOR_THE_FIRST_TO_SPEAK = 5.0
HELP = """\
usage: python -m harness [key=value ...]          train and time one run
       python -m harness -m key=value1,value2     a run for each combination, one after another
       python -m harness compare REF OTHER ...    what the records of two or more runs allow to be said
       python -m harness claim [NAME]             what was claimed of chips, and what would test it
       python -m harness audit FILE               is a published table of training speeds possible?
       python -m harness project ...              a training that does not fit here: days, device-hours, energy
       python -m harness doctor [BACKEND] [--json]   what can run here, and what is missing
       python -m harness peak backend=...         what this device can do at most, measured
       python -m harness health                   does what runs here still get further? (for health checks)
       python -m harness torchrun [--option ...] [key=value ...]   one run on several devices

Every setting has a default: a bare `python -m harness` trains a small model on the CPU. Often set:
  backend=cuda  precision=fp32|bf16|fp16  seed=1  repeats=5  out=DIR  target_loss=1.5
  profile=true  experiment=autotune  track=tuned  log=json  --metrics-file PATH.prom
  data=text data.path=DIR  workload.steps=500  workload.global_batch_size=64  backend.threads=8
  checkpoint.every=500 resume=auto out=DIR; several devices: python -m harness torchrun --nproc-per-node=N parallel=ddp

Groups, each a set of values chosen by name:
{groups}

options:
  --cfg             print the composed settings and stop
  --settings        list every setting with its type, meaning and default
  -m, --multirun    run each combination of comma-separated values in a fresh process
  --version, -h, --help

exit codes: 0 ok, 2 bad usage or settings, 3 backend unavailable, 4 not comparable, 5 the run failed,
            130 or 143 interrupted (SIGINT, SIGTERM)\
"""


def print_help() -> int:
    """Print usage, groups and exit codes: one screen."""
    groups = [
        textwrap.fill(
            f"{group}=" + " | ".join(options),
            width=96,
            initial_indent="  ",
            subsequent_indent=" " * (len(group) + 3),
            break_on_hyphens=False,
        )
        for group, options in group_options().items()
    ]
    print(HELP.format(groups="\n".join(groups)))
    return ExitCode.OK


def print_settings() -> int:
    """Print every setting with its type, default and the meaning that stands beside it in config.py."""
    meanings = setting_meanings()
    defaults = {key: value for key, _, value in settings(load([]))}
    for key, item, _ in settings(Config):
        kind = item.type if isinstance(item.type, str) else getattr(item.type, "__name__", str(item.type))
        default = "null" if defaults[key] is None else defaults[key]
        print(f"{key}={default}  ({kind})")
        print(textwrap.fill(meanings[key], width=96, initial_indent="    ", subsequent_indent="    "))
    return ExitCode.OK


def setting_meanings() -> dict[str, str]:
    """Return the docstring under each field of the config classes, by dotted key."""
    tree = ast.parse(inspect.getsource(config_module))
    by_class: dict[str, dict[str, tuple[str, str]]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            by_class[node.name] = documented = {}
            for item, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    text = ""
                    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                        text = inspect.cleandoc(str(following.value.value))
                    documented[item.target.id] = (ast.unparse(item.annotation), text)
    meanings: dict[str, str] = {}

    def walk(class_name: str, prefix: str) -> None:
        for name, (kind, text) in by_class[class_name].items():
            if kind in by_class:
                walk(kind, f"{prefix}{name}.")
            else:
                meanings[prefix + name] = text

    walk("Config", "")
    return meanings


def print_config(overrides: list[str]) -> int:
    print(to_yaml(load(overrides)), end="")
    return ExitCode.OK


def run_once_or_repeat(overrides: list[str]) -> int:
    with said_once():
        config = load(overrides)
        # However they were set: by words in another form, or by an experiment's file.
        log.set_up([f"log={config.log}", f"log_level={config.log_level}"])
        world = from_environment(config.parallel.name)
        if not config.autotune:
            check_shares(config, world.size)
            check_listeners(config, world)
    if config.autotune:
        from harness.autotune import run_autotune

        refuse_missing_backend(config)
        return run_autotune(config, overrides, run_job)
    return run_once(config, world) if config.repeats == 1 else run_repeats(config, overrides)


@contextmanager
def said_once() -> Iterator[None]:
    """Have one process of a host say what is wrong with the words that all of them were given."""
    try:
        yield
    except RankError:
        raise
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "").strip() in ("", "0"):
            raise
        # The launcher stops all others as soon as one has gone: the one that says it is to come first.
        with suppress(Interrupted, KeyboardInterrupt):
            time.sleep(SECONDS_FOR_THE_FIRST_TO_SPEAK)
        raise EndedWithAll(str(error), error.exit_code) from error


def ready_backend(config: Config, world: World) -> Backend:
    """Return this process's backend, which has said that it can run. Torch is not imported.

    Raises:
        BackendUnavailable: it cannot.
    """
    backend = backends.create(config.backend)
    if world.grouped:
        backend.join(world)
    problems = backend.preflight()
    if problems:
        raise _refusal(backend, problems, config, world)
    return backend


def run_once(config: Config, world: World) -> int:
    """Run in this process: preflight first, torch only if the backend is there."""
    backend = ready_backend(config, world)
    from harness.report.summary import key_figures, print_summary
    from harness.training.run import run

    outcome = run(config, backend, world)
    if not world.leads:
        # Rank 0 speaks for all.
        ended = outcome.failure or outcome.interrupted
        if ended is not None:
            raise EndedWithAll(str(ended), ended.exit_code)
        return ExitCode.OK
    if outcome.record["status"] not in ("ok", "interrupted") and outcome.failure is not None:
        raise outcome.failure
    if log.is_json():
        log.info("run ended", **key_figures(outcome.record, outcome.folder))
    else:
        print_summary(outcome.record, outcome.folder)
    if outcome.failure is not None:
        # What came after the run.
        raise outcome.failure
    if outcome.interrupted is not None:
        raise outcome.interrupted
    return ExitCode.OK


def _refusal(backend: Backend, problems: list[Problem], config: Config, world: World) -> UserError:
    """Return the refusal of a backend that is not there, which of the processes of a host one has to say."""
    refusal = backend.refuse(problems)
    if not world.grouped:
        return refusal
    if world.local_rank > 0:
        first = backends.create(config.backend)
        first.join(replace(world, local_rank=0))
        if first.preflight() == problems:
            return EndedWithAll(str(refusal), refusal.exit_code)
    return BackendUnavailable(f"rank {world.rank}: {refusal}")


def check_listeners(config: Config, world: World) -> None:
    """Refuse what somebody was to be told by, and cannot, before anything is begun. Torch is not imported.

    Packages are the same on every rank; the file is written by the first.

    Raises:
        ConfigError: the metrics file cannot be written, or a package is missing.
    """
    if config.metrics_file is not None:
        from harness.training.metrics_file import check_metrics_file

        check_metrics_file(Path(config.metrics_file).expanduser() if world.leads else None)
    if config.tensorboard:
        from harness.training.tensorboard import check_tensorboard

        check_tensorboard()


def run_repeats(config: Config, overrides: list[str]) -> int:
    """Run the same settings `repeats` times, each in a fresh process, into out/1, out/2, ..."""
    refuse_missing_backend(config)
    folder = claim_folder(config.out, f"{config.backend.name}-{config.model.name}")
    own = [word for word in overrides if word.lstrip("+").split("=", 1)[0] not in ("repeats", "out")]
    jobs = [[*own, "repeats=1", f"out={quoted(folder / str(number))}"] for number in range(1, config.repeats + 1)]
    return _run_jobs(jobs, "repeat")


def refuse_missing_backend(config: Config) -> None:
    """Raise BackendUnavailable, before anything is begun, if the backend cannot run here."""
    backend = backends.create(config.backend)
    problems = backend.preflight()
    if problems:
        raise backend.refuse(problems)


def run_job(words: list[str], folder: Path) -> int:
    """Run one training in a fresh process, its words on standard error, and return its exit code."""
    return run_process([sys.executable, "-m", "harness", *words, f"out={quoted(folder)}"], sys.stderr)


def run_sweep(overrides: list[str]) -> int:
    """Run each combination of a sweep in a fresh process; with out=DIR into DIR/1, DIR/2, ..."""
    jobs = expand_sweep(overrides)
    configs = [load(job) for job in jobs]  # every job's settings are checked before the first one runs
    if len({config.out for config in configs}) < len(jobs) and configs[0].out is not None:
        folder = Path(configs[0].out).expanduser()
        refuse_existing_run(folder)
        jobs = [
            [
                *(word for word in job if word.lstrip("+").split("=", 1)[0] != "out"),
                f"out={quoted(folder / str(number))}",
            ]
            for number, job in enumerate(jobs, 1)
        ]
    return _run_jobs(jobs, "job")


def quoted(path: Path | str) -> str:
    """Return a path as a value in Hydra's override grammar."""
    # In quotes a backslash stands for itself, except before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(path))
    return f"'{escaped}'"


def _run_jobs(jobs: list[list[str]], noun: str) -> int:
    for number, job in enumerate(jobs, 1):
        log.info(f"{noun} {number} of {len(jobs)}: {' '.join(job)}")
        code = run_process([sys.executable, "-m", "harness", *job])
        if code != ExitCode.OK:
            log.error(f"{noun} {number} of {len(jobs)} ended with exit code {code}; the rest is not run")
            return code
    return ExitCode.OK


def run_process(command: list[str], output: IO[str] | None = None) -> int:
    """Run a child, pass SIGTERM and SIGINT on to it, and return its exit code; its words go to `output`, if given.

    Raises:
        Interrupted: such a signal came; the child has ended.
    """
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: Any) -> None:
        received.append(number)
        # A terminal's Ctrl-C reaches the whole process group by itself.
        if child is not None and (number == signal.SIGTERM or not sys.stdin.isatty()):
            child.send_signal(number)

    # Before the child is there: a signal that comes while it is being started must not leave it behind.
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(command, stdout=output, stderr=output)
        if received:
            child.terminate()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
    return code if code >= 0 else 128 - code
