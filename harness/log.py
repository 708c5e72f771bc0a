"""What the harness says on standard error: plain lines for people, or one JSON object a line for machines. No torch.

Results that were asked for (a summary, a table, a verdict) are no log and go to standard output. What C++ libraries
write to the descriptor themselves is passed on as it is.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

from harness.text import printable

LEVELS = ("info", "warning", "error")
FORMS = ("human", "json")
_LOGGER = logging.getLogger("harness")
_form = "human"


def set_up(words: Sequence[str], variables: Mapping[str, str] = os.environ) -> None:
    """Choose form and level by a command line's own words, `log=` and `log_level=`.

    By the words, since mistakes in the settings have to be told in the right form too. Values that are no choice are
    left for the check of the settings to refuse.
    """
    global _form  # noqa: PLW0603 (standard error is one for the whole process)
    chosen = {"log": "human", "log_level": "info"}
    for word in words:
        key, _, value = word.partition("=")
        if key in chosen:
            chosen[key] = value
    _form = chosen["log"] if chosen["log"] in FORMS else "human"
    level = chosen["log_level"] if chosen["log_level"] in LEVELS else "info"
    handler = _StandardError()
    _LOGGER.handlers, _LOGGER.propagate = [handler], False
    _LOGGER.setLevel(level.upper())
    if _form == "json":
        handler.setFormatter(_JsonLines(rank(variables)))
        # Libraries' own warnings and log lines as well: a collector reads no line that is not JSON.
        root = _StandardError()
        root.setFormatter(_JsonLines(rank(variables)))
        logging.getLogger().handlers = [root]
        logging.captureWarnings(True)
        logging.getLogger().setLevel(level.upper())
        sys.excepthook = _log_fault
        threading.excepthook = lambda fault: _log_fault(fault.exc_type, fault.exc_value, fault.exc_traceback)
        sys.unraisablehook = lambda fault: _log_fault(fault.exc_type, fault.exc_value, fault.exc_traceback)
    else:
        handler.setFormatter(_HumanLines())


def adopt_libraries() -> None:
    """Take over the lines of libraries that have been imported and write lines of their own form. Only with JSON."""
    if not is_json():
        return
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name != _LOGGER.name and logger.handlers:
            logger.handlers, logger.propagate = [], True


def is_json() -> bool:
    """Return whether lines are JSON objects."""
    return _form == "json"


def shows(level: str) -> bool:
    """Return whether lines of a level are written."""
    return _LOGGER.isEnabledFor(getattr(logging, level.upper()))


def info(message: str, **fields: Any) -> None:
    """Say what goes on. `fields` are in JSON lines alone, which people read in the message."""
    _LOGGER.info(message, extra={"fields": fields})


def warning(message: str, **fields: Any) -> None:
    """Say what the user should know, though the run goes on."""
    _LOGGER.warning(message, extra={"fields": fields})


def error(message: str, **fields: Any) -> None:
    """Say why nothing came of it."""
    _LOGGER.error(message, extra={"fields": fields})


def rank(variables: Mapping[str, str] = os.environ) -> int | None:
    """Return this process's rank as torchrun tells it, or None outside it."""
    text = variables.get("RANK", "")
    return int(text) if text.isdecimal() and variables.get("WORLD_SIZE") else None


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what sys.stderr is at the time. A reader that has gone away ends the lines, never the run."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except OSError:
            self.setLevel(logging.CRITICAL + 1)
        except Exception:  # noqa: BLE001 (a library's line that cannot be formatted is the library's fault)
            self.handleError(record)


class _HumanLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        before = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        # Names of files and keys are quoted from strangers' files, whose control characters a terminal would obey.
        return before + "\n".join(printable(line) for line in record.getMessage().split("\n"))


class _JsonLines(logging.Formatter):
    def __init__(self, own_rank: int | None) -> None:
        super().__init__()
        self._rank = own_rank

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower()}
        if self._rank is not None:
            line["rank"] = self._rank
        if record.name != _LOGGER.name:
            line["logger"] = record.name
        line["message"] = " ".join(record.getMessage().split())
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # NaN and infinity, which JSON lacks, as their names.
        return json.dumps({key: _plain(value) for key, value in line.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value if isinstance(value, (str, int, float, bool, dict, list)) or value is None else str(value)


def _log_fault(kind: type[BaseException], fault: BaseException | None, trace: TracebackType | None) -> None:
    """Tell a fault of our own as one JSON line, traceback included."""
    shown = "".join(traceback.format_exception(kind, fault, trace))
    error(f"{kind.__name__}: {fault}", traceback=shown)
