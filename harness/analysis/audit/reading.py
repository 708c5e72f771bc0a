"""Reader of tables of published rows in YAML or CSV, which names row and column of every mistake."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.analysis.audit.rows import COLUMNS, SIDES, TEXTS, Row
from harness.analysis.chips import PRECISIONS
from harness.errors import UserError
from harness.file_formats import foreign_format, read_head, special_file
from harness.text import scaled_number

PERCENT = ("mfu", "accuracy")
# Other names of precisions in tables.
PRECISION_NAMES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
# No printed figure of a training lies outside.
MIN_NUMBER, MAX_NUMBER = 1e-12, 1e18
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
WHOLE = ("layers", "width", "seq_len", "global_batch_size", "micro_batch_size", "accumulation", "devices", "tensor",
         "pipeline", "evaluation_samples")  # fmt: skip
# Fewer parameters are a forgotten unit.
MIN_PARAMETERS = 1e5
# A larger MFU without a per cent sign is a forgotten one.
MAX_BARE_MFU = 10.0


def read_rows(file: Path) -> list[Row]:
    """Read a table.

    Args:
        file: *.csv with a header line, or YAML: a list of mappings, or a mapping with that list under `rows`.

    Raises:
        UserError: it cannot be read, or a column or a value is invalid.
    """
    expected = "a YAML or CSV file of published rows"
    try:
        if (kind := special_file(file)) is not None:
            raise UserError(f"{file}: is {kind}, expected {expected}")
        if (foreign := foreign_format(read_head(file), file.name)) is not None:
            raise UserError(f"{file}: is {foreign[0]}, expected {expected}; {foreign[1]}")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: cannot be read: {reason}; give {expected}") from error
    ending = file.suffix.lower()
    if ending not in (".csv", ".yaml", ".yml"):
        raise UserError(f"{file}: found a name that ends in {ending or 'nothing'!r}, expected .yaml, .yml or .csv")
    entries = list(_csv(file, text) if ending == ".csv" else _yaml(file, text))
    if not entries:
        raise UserError(f"{file}: found no rows, expected at least one; python -m harness audit --help")
    rows = [_row(file, number, entry) for number, entry in enumerate(entries, 1)]
    if twice := next((name for name, count in Counter(row.name for row in rows).items() if count > 1), None):
        raise UserError(f"{file}: two rows have the id {twice!r}; an id names one row")
    return rows


class _Loader(yaml.SafeLoader):
    """A loader that rejects a duplicate key, of which PyYAML would use the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice!r}", node.start_mark)
        for key, value in node.value:
            # YAML 1.1 reads 1:30 as ninety.
            if isinstance(value, yaml.ScalarNode) and value.tag in NUMBER_TAGS and ":" in value.value:
                what = f"{key.value}: found {value.value}, expected a number of seconds, or a quoted text"
                raise yaml.constructor.ConstructorError(None, None, what, value.start_mark)
        return super().construct_mapping(node, deep)


def _csv(file: Path, text: str) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text.lstrip(), newline=""), strict=True)
    try:
        heads = [head.strip() for head in reader.fieldnames or ()]
        if len(heads) < 2 and any(";" in head for head in heads):
            raise UserError(f"{file}: found semicolons between columns, expected commas; save the file with commas")
        if twice := next((head for head in heads if heads.count(head) > 1), None):
            raise UserError(f"{file}: found the column {twice!r} twice, expected it once; delete one of them")
        for entry in reader:
            if None in entry or None in entry.values():
                raise UserError(f"{file}: line {reader.line_num}: expected {len(heads)} cells, as in the header line")
            yield {(key or "").strip(): value.strip() or None for key, value in entry.items()}
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.line_num} cannot be read as CSV: {error}") from error


def _yaml(file: Path, text: str) -> Iterator[Mapping[str, Any]]:
    try:
        content = yaml.load(text, _Loader)
    # Invalid dates and numbers, and endless nesting, raise Python's own errors.
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file}: found no list of rows, expected one, each row a mapping of columns to values")
    yield from rows


def _row(file: Path, number: int, entry: Mapping[str, Any]) -> Row:
    where = f"{file}: row {number}"
    values: dict[str, Any] = {}
    for head, value in entry.items():
        column = str(head).strip().lower().replace(" ", "_")
        if column not in COLUMNS:
            near = difflib.get_close_matches(column, COLUMNS, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; python -m harness audit --help lists the columns"
            raise UserError(f"{where}: {head}: unknown column{hint}")
        if column in values:
            raise UserError(f"{where}: {column}: found twice, also as {head!r}, expected once")
        if value is None or value == "":
            continue
        if isinstance(value, (dict, list)):
            raise UserError(f"{where}: {column}: found a list or a mapping, expected one value")
        values[column] = str(value) if column in TEXTS else _number(where, column, value)
    if values.get("ratio_of") not in (None, "time", "speed"):
        raise UserError(f"{where}: ratio_of: found {values['ratio_of']!r}, expected time or speed")
    if "ratio" in values and "ratio_of" not in values:
        raise UserError(f"{where}: ratio: found no ratio_of, expected time or speed beside it")
    row = Row(values.get("id", f"row {number}"), values)
    if odd := next((column for column in row.assumed if column not in values), None):
        raise UserError(f"{where}: assumed: found {odd!r}, expected columns of this row, such as reference")
    if "precision" in values:
        values["precision"] = _precision(where, values["precision"])
    if not any(row.has(side) for side in SIDES) and row.number("ratio") is None:
        raise UserError(f"{where}: found no measurement, expected a column such as subject_tokens_per_second, or ratio")
    return row


def _precision(where: str, name: str) -> str:
    found = PRECISION_NAMES.get(name.casefold(), name.casefold())
    if found not in PRECISIONS:
        raise UserError(f"{where}: precision: found {name!r}, expected one of: {', '.join(PRECISIONS)}")
    return found


def _number(where: str, column: str, value: Any) -> float:
    text = str(value).strip().replace("_", "")
    try:
        if column == "parameters":
            number = scaled_number(text)
        elif column.endswith(PERCENT) and text.endswith("%"):
            number = float(text[:-1]) / 100
        else:
            number = float(text)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not MIN_NUMBER <= number <= MAX_NUMBER:
        raise UserError(
            f"{where}: {column}: found {value!r}, expected a number above 0 and of a possible size, without thousands "
            "separators"
        )
    # An MFU above one occurs in print; an accuracy above one is a forgotten per cent sign.
    most = MAX_BARE_MFU if column.endswith("mfu") else 1.0
    if column.endswith("mfu") and not text.endswith("%") and number > most:
        raise UserError(f"{where}: {column}: found {value!r}, expected a fraction, or a percentage such as 38.5%")
    if column.endswith("accuracy") and number > most:
        raise UserError(
            f"{where}: {column}: found {value!r}, expected a fraction of at most 1, or a percentage such as 77.7%"
        )
    if column in WHOLE and not number.is_integer():
        raise UserError(f"{where}: {column}: found {value!r}, expected a whole number")
    if column == "parameters" and number < MIN_PARAMETERS:
        raise UserError(f"{where}: parameters: found {value!r}, expected a number of parameters, such as 7B")
    return number
