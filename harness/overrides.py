"""The grammar of settings on a command line: reading one, the values of a sweep, and the type of a value.

The grammar is Hydra's, with one difference: what a value means is decided by the type of its setting, not by its
spelling. 1e3 is a folder's name for `out` and a number for `workload.learning_rate`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException

from harness.errors import ConfigError
from harness.text import override_key, shortened

# Each job is a process of its own that trains: more of them are a mistake in the values.
MAX_JOBS = 1000
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
EXPECTED = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
# Letters that Hydra's grammar takes in quotes only.
NEEDS_QUOTES = re.compile(r"[^\x00-\x7f]|[#=&;<>!~^`]")
# A quoted text, an escaped character, or any other one.
TOKEN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\\.|.""", re.DOTALL)


def parse_override(text: str, loader: Any) -> Override:
    """Return a setting as typed, such as `seed=1`, as Hydra reads it.

    Args:
        loader: Hydra's loader of config files, for values such as glob(llama*).

    Raises:
        ConfigError: the grammar refuses it, it refers to another value, or it deletes a setting.
    """
    try:
        [override] = OverridesParser.create(config_loader=loader).parse_overrides([text])
    except (HydraException, RecursionError, ValueError, ArithmeticError, TypeError) as error:
        raise ConfigError(_unreadable(text)) from error
    if override.is_delete():
        raise ConfigError(f"{shortened(text)!r}: settings cannot be deleted; set the key to a value")
    if "${" in text:
        # It could read the environment, and the record, which people publish, holds every value.
        raise ConfigError(
            f"{override.key_or_group}: found {shortened(typed_text(override))!r}, which refers to another value with "
            "${...}; expected the value itself; the shell fills in $VARIABLE without quotes or in double quotes"
        )
    return override


def _unreadable(override: str) -> str:
    """Return the message for an override that Hydra's grammar refuses."""
    key, equals, value = override.partition("=")
    cause = ""
    if not equals:
        cause = "found no equals sign; "
    elif key != key.rstrip():
        cause = "found a space before the equals sign; "
    elif value.lstrip()[:1] in ("'", '"') and value.count(value.lstrip()[0]) % 2:
        cause = "found a quote that is not closed; "
    elif not value.startswith(("'", '"')) and (foreign := NEEDS_QUOTES.search(value)):
        cause = f"found {foreign[0]!r}{'' if foreign[0].isascii() else ', which is not ASCII,'} outside quotes; "
    return (
        f"cannot read {shortened(override)!r}: {cause}expected key=value, with quotes around a value with spaces, "
        "commas, brackets, equal signs or letters beyond ASCII, such as 'data.path=\"my texts (1)\"'; "
        "python -m harness --help"
    )


def duplicates(overrides: Sequence[str]) -> list[str]:
    """Return a message for each setting that is given more than once."""
    counts = Counter(override_key(text) for text in overrides)
    return [
        f"{shortened(key)}: given {count} times "
        f"({shortened(', '.join(text for text in overrides if override_key(text) == key))}), expected once; leave one"
        for key, count in counts.items()
        if count > 1
    ]


def typed_text(override: Override) -> str:
    """Return the value of a setting as it was typed, quotes included."""
    return (override.input_line or "").partition("=")[2].strip()


def typed_value(key: str, kind: str, override: Override) -> Any:
    """Return the value of a setting on the command line as its setting's type.

    Raises:
        ConfigError: the value is not of that type.
    """
    if kind.startswith("str"):
        return as_type(key, kind, name_or_null(override), typed_text(override))
    value = override.value()
    return as_type(key, kind, value, typed_text(override) if isinstance(value, int | float | list | dict) else value)


def name_or_null(override: Override) -> Any:
    """Return the value of a setting that is text or null, without its quotes.

    Where Hydra reads a number or a truth value, it is the text as typed: 2024_11, not 202411, and TRUE, not True. Only
    `null` is nothing, NULL is text.
    """
    value, typed = override.value(), typed_text(override)
    is_other = isinstance(value, int | float) or (value is None and typed != "null")
    return typed if is_other else value


def as_type(key: str, kind: str, value: Any, found: Any = None, remedy: str = "") -> Any:
    """Return a value as the type of its setting.

    Args:
        kind: the annotation of the setting's field: bool, int, float or str, with or without `| None`.
        found: the value as typed, for the message; None for the value itself.
        remedy: the end of the message.

    Raises:
        ConfigError: the value is not of that type.
    """
    name, _, nothing = kind.partition(" | ")
    if value is None and nothing:
        return None
    try:
        if name == "bool" and isinstance(value, bool | int | str):
            return BOOLEANS[str(value).lower()]
        if name == "str" and isinstance(value, str):
            return value
        if name == "int" and isinstance(value, int | str) and not isinstance(value, bool):
            return int(value)
        if name == "float" and isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except (KeyError, ValueError, OverflowError):
        pass
    shown = value if found is None else found
    quoted = "null" if shown is None else shortened(repr(shown))
    raise ConfigError(f"{key}: found {quoted}, expected {EXPECTED[name]}{remedy}")


def swept_values(override: Override) -> list[str]:
    """Return the values of a sweep as they were typed, for a command line; of a single value, that one.

    Raises:
        ConfigError: there is none, or more than MAX_JOBS, or the values cannot be counted.
    """
    shown, sweep = shortened(repr(override.input_line)), override.value()
    if not override.is_sweep_override():
        return [typed_text(override)]
    if override.is_interval_sweep():
        raise ConfigError(f"{shown}: found an interval, expected values, such as 1,2,3 or range(1,4)")
    try:
        pieces = _choices(typed_text(override)) if isinstance(sweep, ChoiceSweep) and not sweep.shuffle else []
        if isinstance(sweep, ChoiceSweep) and len(pieces) == len(sweep.list):
            return pieces
        # Counted before they are listed: to shuffle them, Hydra lists them all.
        many = sweep.range() if isinstance(sweep, RangeSweep) else override.sweep_string_iterator()
        count = sum(1 for _ in itertools.islice(many, MAX_JOBS + 1))
        if 0 < count <= MAX_JOBS:
            return list(override.sweep_string_iterator())
    except (HydraException, ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(f"{shown}: {error}; expected values, such as 1,2,3 or range(1,4)") from error
    raise ConfigError(f"{shown}: found {f'over {MAX_JOBS}' if count else 'no'} values, expected 1 to {MAX_JOBS}")


def _choices(text: str) -> list[str]:
    """Return the values of `a,b` or `choice(a,b)` as they were typed."""
    explicit = re.fullmatch(r"choice\s*\((.*)\)", text, re.DOTALL)
    pieces, depth = [""], 0
    for token in TOKEN.findall(explicit[1] if explicit else text):
        depth += (token in "([{") - (token in ")]}")
        if token == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += token
    return [piece.strip() for piece in pieces]


def sweep_jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the command line of each job of a sweep: the product of all values.

    Raises:
        ConfigError: there are more than MAX_JOBS.
    """
    lists = [[f"{override.key_or_group}={value}" for value in swept_values(override)] for override in overrides]
    jobs = [list(job) for job in itertools.islice(itertools.product(*lists), MAX_JOBS + 1)]
    if len(jobs) > MAX_JOBS:
        raise ConfigError(f"-m: found over {MAX_JOBS} combinations of values, expected at most that; give fewer values")
    return jobs
