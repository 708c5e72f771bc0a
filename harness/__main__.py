"""The door: which verb, which exit code. Torch is imported only once a backend has said that it can run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from harness import log
from harness.commands import VERBS
from harness.errors import EndedWithAll, ExitCode, Interrupted, UserError
from harness.signals import stop_on_signals


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
        verb = words.pop(0) if words and words[0] in VERBS else "train"
        command = import_module(f"harness.commands.{verb}")
        # A command that starts one process after another can be told to stop between two of them.
        with stop_on_signals():
            return command.main(words)
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
        from harness.commands.child_process import hydra_quote

        found.append(f"metrics_file={hydra_quote(path)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
