"""From a command line to one run, to repeats of it, or to the jobs of a sweep; and the help texts."""

from __future__ import annotations

import sys
from pathlib import Path

import harness
from harness import log
from harness.commands import VERBS
from harness.commands.child_process import hydra_quote, run_job, run_process
from harness.commands.help import print_config, print_help, print_settings
from harness.commands.preflight import ready_backend, refuse_missing_backend, report_once_per_host
from harness.composition import expand_sweep, load
from harness.config import Config
from harness.errors import EndedWithAll, ExitCode, UserError
from harness.records.run_folder import create_run_folder, refuse_existing_run
from harness.validation import check_batch_divides
from harness.world import World, from_environment

OPTIONS = ("-h", "--help", "--version", "--settings", "--cfg", "-m", "--multirun")


def main(words: list[str]) -> int:
    """Train and time one run, or several in fresh processes, and return the exit code."""
    flags = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if not word.startswith("-")]
    for flag in flags:
        if flag not in OPTIONS:
            raise UserError(f"{flag}: no such option, expected one of: {', '.join(sorted(OPTIONS))}")
    if {"-h", "--help"} & set(flags):
        return print_help()
    if "--version" in flags:
        print(f"harness {harness.__version__}")
        return ExitCode.OK
    if "--settings" in flags:
        return print_settings()
    if overrides and "=" not in overrides[0] and not overrides[0].startswith(("+", "~")):
        raise UserError(
            f"{overrides[0]!r}: no such command, expected one of: {', '.join(VERBS)}, or settings as key=value; "
            "python -m harness --help"
        )
    if "--cfg" in flags:
        return print_config(overrides)
    if {"-m", "--multirun"} & set(flags):
        return run_sweep(overrides)
    return run_once_or_repeat(overrides)


def run_once_or_repeat(overrides: list[str]) -> int:
    with report_once_per_host():
        config = load(overrides)
        # However they were set: by words in another form, or by an experiment's file.
        log.set_up([f"log={config.log}", f"log_level={config.log_level}"])
        world = from_environment(config.parallel.name)
        if not config.autotune:
            check_batch_divides(config, world.size)
            check_loggers(config, world)
    if config.autotune:
        from harness.commands.autotune import run_autotune

        refuse_missing_backend(config)
        return run_autotune(config, overrides, run_job)
    return run_once(config, world) if config.repeats == 1 else run_repeats(config, overrides)


def run_once(config: Config, world: World) -> int:
    """Run in this process: preflight first, torch only if the backend is there."""
    backend = ready_backend(config, world)
    from harness.report.summary import key_figures, print_summary
    from harness.training.run import run

    outcome = run(config, backend, world)
    if not world.is_main:
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


def check_loggers(config: Config, world: World) -> None:
    """Refuse what somebody was to be told by, and cannot, before anything is begun. Torch is not imported.

    Packages are the same on every rank; the file is written by the first.

    Raises:
        ConfigError: the metrics file cannot be written, or a package is missing.
    """
    if config.metrics_file is not None:
        from harness.training.monitoring.prometheus import check_prometheus_file

        check_prometheus_file(Path(config.metrics_file).expanduser() if world.is_main else None)
    if config.tensorboard:
        from harness.training.monitoring.tensorboard import check_tensorboard

        check_tensorboard()


def run_repeats(config: Config, overrides: list[str]) -> int:
    """Run the same settings `repeats` times, each in a fresh process, into out/1, out/2, ..."""
    refuse_missing_backend(config)
    folder = create_run_folder(config.out, f"{config.backend.name}-{config.model.name}")
    own = [word for word in overrides if word.lstrip("+").split("=", 1)[0] not in ("repeats", "out")]
    jobs = [[*own, "repeats=1", f"out={hydra_quote(folder / str(number))}"] for number in range(1, config.repeats + 1)]
    return _run_jobs(jobs, "repeat")


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
                f"out={hydra_quote(folder / str(number))}",
            ]
            for number, job in enumerate(jobs, 1)
        ]
    return _run_jobs(jobs, "job")


def _run_jobs(jobs: list[list[str]], noun: str) -> int:
    for number, job in enumerate(jobs, 1):
        log.info(f"{noun} {number} of {len(jobs)}: {' '.join(job)}")
        code = run_process([sys.executable, "-m", "harness", *job])
        if code != ExitCode.OK:
            log.error(f"{noun} {number} of {len(jobs)} ended with exit code {code}; the rest is not run")
            return code
    return ExitCode.OK
