"""The door: which verb, which exit code. Torch is imported only once a backend has said that it can run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence

import harness
from harness import log
from harness.errors import EndedWithAll, ExitCode, Interrupted, UserError
from harness.training.signals import stop_on_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. User errors become one line on standard error."""
    # A broken device plug-in must not break the import of torch for another backend; each backend imports its own.
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A letter that the terminal's encoding lacks is shown as an escape, as on standard error; it ends no command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        log.set_up(words)
        words = _with_metrics_file(words)
        verb: Callable[[list[str]], int] = train
        if words and words[0] in VERBS:
            verb = VERBS[words.pop(0)]
        # A command that starts one process after another can be told to stop between two of them.
        with stop_on_signals():
            return verb(words)
    except EndedWithAll as ended:
        return ended.exit_code
    except UserError as error:
        log.error(str(error), exit_code=int(error.exit_code))
        return error.exit_code
    except (Interrupted, KeyboardInterrupt) as interrupted:
        code = int(getattr(interrupted, "exit_code", ExitCode.SIGINT))
        if os.environ.get("LOCAL_RANK", "").strip() in ("", "0"):
            # Of the processes of a host, one speaks.
            log.info("interrupted", exit_code=code)
        return code
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "harness":
            raise
        # `compare` runs where only the packages that it needs are installed; everything else says what it lacks.
        log.error(f"the package {error.name} is not installed; pip install -e . in the project's folder")
        return ExitCode.USAGE
    except BrokenPipeError:
        # The reader of our output has seen enough (| head). Point the stream elsewhere, or Python's own flush at
        # exit would complain; what was asked for is done, records included.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def train(words: list[str]) -> int:
    """The default verb: train and time one run, or several in fresh processes."""
    from harness import launch

    flags = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if not word.startswith("-")]
    known = {"-h", "--help", "--version", "--settings", "--cfg", "-m", "--multirun"}
    for flag in flags:
        if flag not in known:
            raise UserError(f"{flag}: no such option, expected one of: {', '.join(sorted(known))}")
    if {"-h", "--help"} & set(flags):
        return launch.print_help()
    if "--version" in flags:
        print(f"harness {harness.__version__}")
        return ExitCode.OK
    if "--settings" in flags:
        return launch.print_settings()
    if overrides and "=" not in overrides[0] and not overrides[0].startswith(("+", "~")):
        raise UserError(
            f"{overrides[0]!r}: no such command, expected one of: {', '.join(VERBS)}, or settings as key=value; "
            "python -m harness --help"
        )
    if "--cfg" in flags:
        return launch.print_config(overrides)
    if {"-m", "--multirun"} & set(flags):
        return launch.run_sweep(overrides)
    return launch.run_once_or_repeat(overrides)


def _with_metrics_file(words: list[str]) -> list[str]:
    """Return the words with `--metrics-file PATH`, as node_exporter's users write it, as the setting that it is."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, path = word.partition("=")
        if name != "--metrics-file":
            found.append(word)
            continue
        path = path if equals else next(rest, "")
        if not path or path.startswith("-"):
            raise UserError("--metrics-file: found no path, expected --metrics-file PATH.prom")
        from harness.launch import quoted

        found.append(f"metrics_file={quoted(path)}")
    return found


def health(words: list[str]) -> int:
    """Say whether the runs that go on here still get further."""
    from harness.health import main as health_main

    return health_main(words)


def doctor(words: list[str]) -> int:
    """Say of every registered backend whether it can run here, and why not."""
    from harness.doctor import main as doctor_main

    return doctor_main(words)


def compare(words: list[str]) -> int:
    """Say what the records of two or more runs allow to be said."""
    from harness.compare import main as compare_main

    return compare_main(words)


def claim(words: list[str]) -> int:
    """Show published claims, what would test them, and what the published evidence says."""
    from harness.claim import main as claim_main

    return claim_main(words)


def audit(words: list[str]) -> int:
    """Check a published table of training speeds."""
    from harness.audit import main as audit_main

    return audit_main(words)


def project(words: list[str]) -> int:
    """Reckon a training that does not fit here."""
    from harness.project import main as project_main

    return project_main(words)


def torchrun(words: list[str]) -> int:
    """Start the processes of one run with PyTorch's launcher."""
    from harness.torchrun import main as torchrun_main

    return torchrun_main(words)


def peak(words: list[str]) -> int:
    """Measure what the device can do at most."""
    from harness.peak import main as peak_main

    return peak_main(words)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "audit": audit,
    "claim": claim,
    "compare": compare,
    "doctor": doctor,
    "health": health,
    "peak": peak,
    "project": project,
    "torchrun": torchrun,
}

if __name__ == "__main__":
    sys.exit(main())
