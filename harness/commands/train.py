"""A command line without a verb: one run, its repeats, or the jobs of a sweep; and the help texts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import harness
from harness import log
from harness.commands import VERBS
from harness.commands.child_process import harness_command, hydra_quote, run_job, run_process
from harness.commands.help import print_config, print_help, print_settings
from harness.commands.preflight import check_backend, ready_backend, report_once_per_host
from harness.composition import GROUPS, expand_sweep, load
from harness.config import Config, iter_settings
from harness.errors import EndedWithAll, ExitCode, UserError
from harness.layout import layout_of
from harness.records.run_folder import check_no_existing_run, checkpoint_steps, create_run_folder
from harness.text import did_you_mean, nearest, override_key, shortened
from harness.validation import check_layout
from harness.world import World, from_environment, lone_tasks

OPTIONS = ("-h", "--help", "--version", "--settings", "--cfg", "-m", "--multirun")
# What text programs and web pages make of hyphens: en and em dash, minus sign and others.
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"


def main(argv: list[str]) -> int:
    """Train and time one run, or several in fresh processes, and return the exit code."""
    flags = [word for word in argv if word.startswith("-")]
    overrides = [word for word in argv if not word.startswith("-")]
    for flag in flags:
        if flag not in OPTIONS:
            raise UserError(f"{flag}: no such option{_remedy(flag)}")
    for word in overrides:
        if word and word[0] in DASHES:
            hyphens = f"--{word.lstrip('-' + DASHES)}"
            raise UserError(f"{shortened(word)!r}: found {word[0]!r}, a dash as texts have it; type {hyphens}")
    if {"-h", "--help"} & set(flags):
        return print_help()
    if "--version" in flags:
        print(f"harness {harness.__version__}")
        return ExitCode.OK
    if "--settings" in flags:
        return print_settings()
    if overrides and "=" not in overrides[0] and not overrides[0].startswith(("+", "~")):
        raise UserError(_not_a_command(overrides[0]))
    if "--cfg" in flags:
        return print_config(overrides)
    if {"-m", "--multirun"} & set(flags):
        return run_sweep(overrides)
    return run_once_or_repeat(overrides)


def _not_a_command(word: str) -> str:
    """Return the message for a first word that is neither a command nor a setting with a value."""
    key = word.split(":", maxsplit=1)[0]
    if _is_setting(key):
        return f"{shortened(word)!r}: found no equals sign after {key}, expected {key}=VALUE without spaces"
    if word in ("train", "run"):
        return f"{word!r}: no such command: to train, give the settings alone, as key=value; python -m harness --help"
    hint = f"; did you mean --{word}?" if f"--{word}" in OPTIONS else did_you_mean(word, VERBS)
    return (
        f"{shortened(word)!r}: no such command, expected one of: {', '.join(sorted(VERBS))}, or settings as "
        f"key=value{hint}; python -m harness --help"
    )


def _is_setting(key: str) -> bool:
    return key in GROUPS or key in (known for known, _, _ in iter_settings(Config))


def _remedy(flag: str) -> str:
    """Return what to do about an option that a run does not have, for its error message."""
    name = flag.split("=", 1)[0]
    if name in ("--local-rank", "--local_rank"):
        return ": torch.distributed.launch passes it; launch with python -m harness torchrun, or with torchrun"
    key = name.lstrip("-")
    if _is_setting(key):
        return f", but a setting; write it without dashes: {flag.lstrip('-') if '=' in flag else key + '=VALUE'}"
    near = nearest(name, OPTIONS, cutoff=0.75)
    hint = "a setting is written key=value, without dashes" if near is None else f"did you mean {near}?"
    return f", expected one of: {', '.join(sorted(OPTIONS))}; {hint}"


def run_once_or_repeat(overrides: list[str]) -> int:
    with report_once_per_host():
        config = load(overrides)
        # Again, because an experiment's file may set them too.
        log.set_up([f"log={config.log}", f"log_level={config.log_level}"])
        world = from_environment(config.parallel.name)
        if not world.is_distributed and (caution := lone_tasks()) is not None:
            log.warning(caution)
        if not config.autotune:
            check_layout(config, layout_of(config.parallel, world.size))
            check_loggers(config, world)
    if config.autotune:
        from harness.commands.autotune import run_autotune

        return run_autotune(config, check_backend(config), overrides, run_job)
    return run_once(config, world) if config.repeats == 1 else run_repeats(config, overrides)


def run_once(config: Config, world: World) -> int:
    """Run in this process: preflight first, torch only if the backend can run."""
    backend = ready_backend(config, world)
    from harness.report.summary import key_figures, print_summary
    from harness.training.run import run

    outcome = run(config, backend, world)
    if not world.is_main:
        # Rank 0 reports for all.
        ended = outcome.failure or outcome.interrupted
        if ended is not None:
            raise EndedWithAll(str(ended), ended.exit_code)
        return ExitCode.OK
    try:
        if log.is_json():
            log.info("run ended", **key_figures(outcome.record, outcome.folder))
        else:
            print_summary(outcome.record, outcome.folder)
        # Before the error also where both go into one file.
        sys.stdout.flush()
    except OSError:
        if outcome.failure is None:
            raise
        # The failure matters more than its summary, and Python's own flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if config.tracker is not None and outcome.is_new and outcome.interrupted is None:
        from harness.report.trackers import write_tracker

        write_tracker(config.tracker, outcome.folder, outcome.record)
    if outcome.failure is not None:
        # The record of a run that ended well before a later failure, such as that of its profile, is named already.
        raise outcome.failure if outcome.record["status"] == "ok" else outcome.failure.in_run(outcome.folder)
    if outcome.interrupted is not None:
        if outcome.record["status"] == "interrupted":
            log.info(_how_to_go_on(config, outcome.folder))
        raise outcome.interrupted
    return ExitCode.OK


def _how_to_go_on(config: Config, folder: Path) -> str:
    """Return how to resume an interrupted run."""
    steps = checkpoint_steps(folder)
    if not steps:
        return f"the record is in {folder}; without checkpoints (checkpoint.every) the run cannot be resumed"
    added = [] if config.out is not None else [f"out={folder}"]
    added += [] if config.resume is not None else ["resume=auto"]
    remedy = "run the same command again" + (f" with {' '.join(added)}" if added else "")
    return f"the checkpoint of step {steps[-1]} is in {folder}; {remedy} to go on from there"


def check_loggers(config: Config, world: World) -> None:
    """Check the loggers that the settings ask for, before anything starts. Torch is not imported.

    Every rank checks for the packages; rank 0 alone writes the metrics file.

    Raises:
        ConfigError: the metrics file cannot be written, or a package is missing.
    """
    if config.metrics_file is not None:
        from harness.training.monitoring.prometheus import check_prometheus_file

        check_prometheus_file(Path(config.metrics_file).expanduser() if world.is_main else None)
    if config.tensorboard:
        from harness.training.monitoring.tensorboard import check_tensorboard

        check_tensorboard()
    if config.tracker is not None:
        from harness.report.trackers import check_tracker

        check_tracker(config.tracker)


def run_repeats(config: Config, overrides: list[str]) -> int:
    """Run the same settings `repeats` times, each in a fresh process, into out/1, out/2, ..."""
    check_backend(config)
    folder = create_run_folder(config.out, f"{config.backend.name}-{config.model.name}")
    own = [override for override in overrides if override_key(override) not in ("repeats", "out")]
    jobs = [[*own, "repeats=1", f"out={hydra_quote(folder / str(number))}"] for number in range(1, config.repeats + 1)]
    return _run_jobs(jobs, "repeat")


def run_sweep(overrides: list[str]) -> int:
    """Run each combination of a sweep in a fresh process; with out=DIR into DIR/1, DIR/2, ..."""
    jobs = expand_sweep(overrides)
    configs = [load(job) for job in jobs]  # checks the settings of every job before the first one runs
    folders = [config.out for config in configs]
    for number, folder in enumerate(folders):
        if folder is not None and folders.count(folder) > 1:
            parent = Path(folder).expanduser()
            check_no_existing_run(parent)
            own = parent / str(folders[: number + 1].count(folder))
            kept = [override for override in jobs[number] if override_key(override) != "out"]
            jobs[number] = [*kept, f"out={hydra_quote(own)}"]
    return _run_jobs(jobs, "job")


def _run_jobs(jobs: list[list[str]], noun: str) -> int:
    for number, job in enumerate(jobs, 1):
        log.info(f"{noun} {number} of {len(jobs)}: {' '.join(job)}")
        code = run_process(harness_command(job))
        if code != ExitCode.OK:
            log.error(f"{noun} {number} of {len(jobs)} ended with exit code {code}; the rest is not run")
            return code
    return ExitCode.OK
