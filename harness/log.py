"""Log lines on standard error: plain lines for people, or one JSON object per line for machines. No torch.

Requested results (a summary, a table, a verdict) are not logged; they go to standard output. Lines that C++ libraries
write to the descriptor directly are not converted.
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

from harness.text import override_key, printable

LEVELS = ("info", "warning", "error")
FORMS = ("human", "json")
_LOGGER = logging.getLogger("harness")
_form = "human"


def set_up(argv: Sequence[str], variables: Mapping[str, str] = os.environ) -> None:
    """Set form and level from the settings `log=` and `log_level=` of a command line.

    The command line is read before the settings are composed, so that errors in them are logged in the right form too.
    Unknown values are ignored here; the validation of the settings refuses them.
    """
    global _form  # noqa: PLW0603 (standard error is one for the whole process)
    chosen = {"log": "human", "log_level": "info"}
    for override in argv:
        key = override_key(override)
        if key in chosen:
            chosen[key] = override.partition("=")[2]
    _form = chosen["log"] if chosen["log"] in FORMS else "human"
    level = chosen["log_level"] if chosen["log_level"] in LEVELS else "info"
    handler = _StandardError()
    _LOGGER.handlers, _LOGGER.propagate = [handler], False
    _LOGGER.setLevel(level.upper())
    if _form == "json":
        handler.setFormatter(_JsonLines(rank(variables)))
        # Warnings and log lines of libraries as well: a log collector can only read JSON lines.
        root = _StandardError()
        root.setFormatter(_JsonLines(rank(variables)))
        # Loggers of libraries have levels of their own.
        root.setLevel(level.upper())
        logging.getLogger().handlers = [root]
        logging.captureWarnings(True)
        logging.getLogger().setLevel(level.upper())
        sys.excepthook = _log_fault
        threading.excepthook = lambda fault: _log_fault(fault.exc_type, fault.exc_value, fault.exc_traceback)
        sys.unraisablehook = lambda fault: _log_fault(fault.exc_type, fault.exc_value, fault.exc_traceback)
    else:
        handler.setFormatter(_HumanLines())


def adopt_libraries() -> None:
    """With log=json, route the log lines of imported libraries that have their own handlers through this module."""
    if not is_json():
        return
    for name, logger in logging.root.manager.loggerDict.items():
        if not isinstance(logger, logging.Logger) or name == _LOGGER.name:
            continue
        # A logger with only null handlers is meant to be silent.
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            logger.handlers, logger.propagate = [], True


def is_json() -> bool:
    """Return whether lines are JSON objects."""
    return _form == "json"


def shows(level: str) -> bool:
    """Return whether lines of a level are written."""
    return _LOGGER.isEnabledFor(getattr(logging, level.upper()))


def info(message: str, **fields: Any) -> None:
    """Log progress. `fields` appear in JSON lines only; the message holds them for people."""
    _LOGGER.info(message, extra={"fields": fields})


def warning(message: str, **fields: Any) -> None:
    """Log a problem that does not end the run."""
    _LOGGER.warning(message, extra={"fields": fields})


def error(message: str, **fields: Any) -> None:
    """Log the reason of a failure."""
    _LOGGER.error(message, extra={"fields": fields})


def rank(variables: Mapping[str, str] = os.environ) -> int | None:
    """Return this process's rank from torchrun's variables, or None outside torchrun."""
    text = variables.get("RANK", "")
    return int(text) if text.isdecimal() and variables.get("WORLD_SIZE") else None


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the current sys.stderr. When its reader is gone, logging stops and the run goes on."""

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
        # Names from foreign files may hold control characters, which a terminal would obey.
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
        # NaN and infinity as text: JSON has no such numbers.
        return json.dumps({key: _plain(value) for key, value in line.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value if isinstance(value, (str, int, float, bool, dict, list)) or value is None else str(value)


def _log_fault(kind: type[BaseException], fault: BaseException | None, trace: TracebackType | None) -> None:
    """Log an unexpected exception as one JSON line with its traceback."""
    shown = "".join(traceback.format_exception(kind, fault, trace))
    error(f"{kind.__name__}: {fault}", traceback=shown)
