"""Entry point: dispatch to a verb's module, and exit codes. Torch is imported only once a backend can run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from harness import log, streams
from harness.commands import VERBS
from harness.errors import EndedWithAll, ExitCode, Interrupted, UserError
from harness.process_end import end_process
from harness.signals import stop_on_signals
from harness.world import has_reporter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. User errors become one line on standard error."""
    # A broken device plug-in must not break the import of torch for another backend; each backend imports its own.
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    streams.prepare()
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    lost = streams.lost_output()
    if lost is not None:
        log.error(f"standard output: cannot be written: {lost.strerror}; free some space, or redirect it elsewhere")
    return code if lost is None else code or ExitCode.RUN_FAILED


def _run(argv: list[str]) -> int:
    try:
        log.set_up(argv)
        return _dispatch(argv)
    except UserError as error:
        # Of processes that end together, another one reports it.
        if not isinstance(error, EndedWithAll):
            log.error(str(error), exit_code=int(error.exit_code), **error.fields)
        return error.exit_code
    except (Interrupted, KeyboardInterrupt) as interrupted:
        code = int(getattr(interrupted, "exit_code", ExitCode.SIGINT))
        # torchrun stops all processes of a host, and one of them reports it.
        if not ("TORCHELASTIC_RUN_ID" in os.environ and has_reporter()):
            log.info("interrupted", exit_code=code)
        return code
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "harness":
            raise
        # `compare` needs only some of the packages; every other command names the one that is missing.
        log.error(f"the package {error.name} is not installed; run `pip install -e .` in the project's folder")
        return ExitCode.USAGE


def _dispatch(argv: list[str]) -> int:
    for word in argv:
        if word.endswith("\r"):
            raise UserError(
                f"{word!r}: ends with a carriage return, so the script that runs this command has Windows line "
                r"endings (CRLF); convert it: sed -i 's/\r$//' SCRIPT"
            )
    argv = _with_metrics_file(argv)
    verb = argv.pop(0) if argv and argv[0] in VERBS else "train"
    command = import_module(f"harness.commands.{verb}")
    # A command that starts several processes can be interrupted between two of them.
    with stop_on_signals():
        try:
            return command.main(argv)
        except SystemExit as ended:
            # argparse, after --help.
            if ended.code:
                raise
            return ExitCode.OK


def _with_metrics_file(argv: list[str]) -> list[str]:
    """Return the command line with `--metrics-file PATH`, as node_exporter's users write it, as the setting it is."""
    found: list[str] = []
    rest = iter(argv)
    for word in rest:
        name, equals, path = word.partition("=")
        if name != "--metrics-file":
            found.append(word)
            continue
        path = path if equals else next(rest, "")
        if not path or path.startswith("-"):
            raise UserError("--metrics-file: found no path, expected --metrics-file PATH.prom")
        from harness.commands.child_process import hydra_quote

        found.append(f"metrics_file={hydra_quote(path)}")
    return found


def run_as_process() -> NoReturn:
    """Run this process's command line and end the process; a bug shows its traceback."""
    try:
        code = main()
    except Exception:  # noqa: BLE001 (the interpreter would print it too, and then finalize)
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
        code = 1
    end_process(code)


if __name__ == "__main__":
    run_as_process()
