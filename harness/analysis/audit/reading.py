"""Reader of tables of published rows in YAML or CSV, which names row and column of every mistake.

A mistake in a row costs that row, not the file.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from harness.analysis.audit.rows import COLUMNS, SIDES, TEXTS, Row
from harness.analysis.chips import PRECISIONS
from harness.errors import UserError
from harness.file_formats import foreign_format, read_head, special_file
from harness.text import did_you_mean, scaled_number, shortened

SIZES = ("parameters", "active_parameters")
PERCENT = ("mfu", "accuracy")
# Other names of precisions in tables.
PRECISION_NAMES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
# No printed figure of a training lies outside.
MIN_NUMBER, MAX_NUMBER = 1e-12, 1e18
KEPT_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
# What tables print in place of a figure.
EMPTY = ("", "-", "\u2013", "\u2014", "n/a", "N/A")
WHOLE = ("layers", "width", "seq_len", "global_batch_size", "micro_batch_size", "accumulation", "devices", "tensor",
         "pipeline", "evaluation_samples")  # fmt: skip
# Fewer parameters are a forgotten unit.
MIN_PARAMETERS = 1e5
# A larger MFU without a per cent sign is a forgotten one.
MAX_BARE_MFU = 10.0


def read_rows(file: Path) -> tuple[list[Row], list[str]]:
    """Read a table.

    Args:
        file: *.csv with a header line, or YAML: a list of mappings, or a mapping with that list under `rows`.

    Returns:
        The rows, and a line about each row that was left out because of a mistake in it.

    Raises:
        UserError: the file cannot be read as a table, or no row of it can.
    """
    expected = "a YAML or CSV file of published rows"
    try:
        if (kind := special_file(file)) is not None:
            raise UserError(f"{file}: is {kind}, expected {expected}")
        if (foreign := foreign_format(read_head(file), file.name)) is not None:
            raise UserError(f"{file}: is {foreign[0]}, expected {expected}; {foreign[1]}")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}; give {expected}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text at byte {error.start}, expected {expected}; convert it") from error
    ending = file.suffix.lower()
    if ending not in (".csv", ".yaml", ".yml"):
        raise UserError(f"{file}: found a name that ends in {ending or 'nothing'!r}, expected .yaml, .yml or .csv")
    rows: dict[str, Row] = {}
    mistakes: list[str] = []
    for number, entry in enumerate(_csv(file, text) if ending == ".csv" else _yaml(file, text), 1):
        try:
            row = _row(f"row {number}", entry)
            if row.name in rows:
                raise UserError(f"row {number}: two rows have the id {row.name!r}; an id names one row")
        except UserError as error:
            mistakes.append(str(error))
        else:
            rows[row.name] = row
    if not rows:
        raise UserError(f"{file}: {_why_no_rows(mistakes)}")
    return list(rows.values()), mistakes


def _why_no_rows(mistakes: Sequence[str]) -> str:
    if not mistakes:
        return "found no rows, expected at least one; python -m harness audit --help"
    others = len(mistakes) - 1
    more = f" (and {others} more row{'s' * (others > 1)} cannot be read)" if others else ""
    return f"{mistakes[0]}{more}"


class _Loader(yaml.SafeLoader):
    """A loader of texts, as printed, that rejects a duplicate key, of which PyYAML would use the last one.

    YAML 1.1 would read 1:30 as ninety, 2023-13-45 as an invalid date, and no as false.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice!r}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [resolver for resolver in resolvers if resolver[0] in KEPT_TAGS]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def _csv(file: Path, text: str) -> Iterator[Mapping[str, Any] | UserError]:
    """Yield each row, or the mistake in its line."""
    reader = csv.DictReader(io.StringIO(text.lstrip(), newline=""), strict=True)
    try:
        heads = [head.strip() for head in reader.fieldnames or ()]
        other = next((name for mark, name in _OTHER_SEPARATORS.items() if len(heads) == 1 and mark in heads[0]), None)
        if other is not None:
            raise UserError(f"{file}: found {other} between columns, expected commas; save the file with commas")
        if twice := next((head for head in heads if heads.count(head) > 1), None):
            raise UserError(f"{file}: found the column {twice!r} twice, expected it once; delete one of them")
        for entry in reader:
            if None in entry or None in entry.values():
                yield UserError(f"line {reader.line_num}: expected {len(heads)} cells, as in the header line")
            else:
                yield {key.strip(): value.strip() for key, value in entry.items()}
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.line_num} cannot be read as CSV: {error}") from error


def _yaml(file: Path, text: str) -> Iterator[Mapping[str, Any] | UserError]:
    """Yield each row, or what stands in its place."""
    try:
        content = yaml.load(text, _Loader)
    # Invalid dates and numbers, and endless nesting, raise Python's own errors.
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not any(isinstance(row, dict) for row in rows or [{}]):
        raise UserError(f"{file}: found no list of rows, expected one, each row a mapping of columns to values")
    for number, row in enumerate(rows, 1):
        mistake = f"row {number}: found {shortened(repr(row))}, expected a mapping of columns to values"
        yield row if isinstance(row, dict) else UserError(mistake)


def _row(where: str, entry: Mapping[str, Any] | UserError) -> Row:
    """Return a row.

    Raises:
        UserError: a column or a value is invalid.
    """
    if isinstance(entry, UserError):
        raise entry
    values, exponents = dict[str, Any](), dict[str, int]()
    for head, value in entry.items():
        column = str(head).strip().lower().replace(" ", "_")
        if column not in COLUMNS:
            hint = did_you_mean(column, COLUMNS) or "; python -m harness audit --help lists the columns"
            raise UserError(f"{where}: {head}: unknown column{hint}")
        if column in values:
            raise UserError(f"{where}: {column}: found twice, also as {head!r}, expected once")
        if value is None or value in EMPTY:
            continue
        if isinstance(value, (dict, list)):
            raise UserError(f"{where}: {column}: found a list or a mapping, expected one value")
        values[column] = str(value) if column in TEXTS else _number(where, column, str(value))
        if column not in (*TEXTS, *SIZES) and (exponent := _exponent(str(value))) is not None:
            exponents[column] = exponent
    if "precision" in values:
        values["precision"] = _precision(where, values["precision"])
    row = Row(values.get("id", where), values, exponents)
    _check_row(where, row)
    return row


def _check_row(where: str, row: Row) -> None:
    """Raise UserError if columns of a row contradict each other, or none is a measurement."""
    stated = row.text("ratio_of")
    if stated not in (None, "time", "speed"):
        raise UserError(f"{where}: ratio_of: found {stated!r}, expected time or speed")
    if row.number("ratio") is not None and stated is None:
        raise UserError(f"{where}: ratio: found no ratio_of, expected time or speed beside it")
    if odd := next((column for column in row.assumed if column not in row.values), None):
        raise UserError(f"{where}: assumed: found {odd!r}, expected columns of this row, such as reference")
    if not any(row.has(side) for side in SIDES) and row.number("ratio") is None:
        raise UserError(f"{where}: found no measurement, expected a column such as subject_tokens_per_second, or ratio")


def _precision(where: str, name: str) -> str:
    found = PRECISION_NAMES.get(name.casefold(), name.casefold())
    if found not in PRECISIONS:
        raise UserError(f"{where}: precision: found {name!r}, expected one of: {', '.join(PRECISIONS)}")
    return found


def _exponent(printed: str) -> int | None:
    """Return the exponent of ten of a number's last printed digit; None for one with a unit, such as 7B."""
    text = printed.strip().replace("_", "")
    try:
        exponent = Decimal(text.removesuffix("%")).as_tuple().exponent
    except InvalidOperation:
        return None
    # Of what is printed with an exponent, as 1.5e6, nobody knows which zeros were digits.
    if not isinstance(exponent, int) or exponent > 0:
        return None
    return exponent - 2 if text.endswith("%") else exponent


def _number(where: str, column: str, printed: str) -> float:
    number, problem = math.nan, None
    text = printed.strip().replace("_", "")
    try:
        if column in SIZES:
            number = scaled_number(text)
        elif column.endswith(PERCENT) and text.endswith("%"):
            number = float(text[:-1]) / 100
        else:
            number = float(text)
    except ValueError:
        pass
    # An MFU above one occurs in print; an accuracy above one is a forgotten per cent sign.
    if not MIN_NUMBER <= number <= MAX_NUMBER:
        problem = "a number above 0 and of a possible size, without thousands separators"
        if column.endswith("_seconds") and ":" in text:
            problem = "a number of seconds"
    elif column.endswith("mfu") and not text.endswith("%") and number > MAX_BARE_MFU:
        problem = "a fraction, or a percentage such as 38.5%"
    elif column.endswith("accuracy") and number > 1:
        problem = "a fraction of at most 1, or a percentage such as 77.7%"
    elif column in WHOLE and not number.is_integer():
        problem = "a whole number"
    elif column in SIZES and number < MIN_PARAMETERS:
        problem = "a number of parameters, such as 7B"
    if problem is not None:
        raise UserError(f"{where}: {column}: found {printed!r}, expected {problem}")
    return number
