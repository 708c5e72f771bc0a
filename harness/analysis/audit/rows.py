"""Rows of a published comparison: what somebody printed, as data. Read from YAML or CSV, most columns optional."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.analysis.chips import PRECISIONS
from harness.analysis.flops import flops_per_token_of_size, matrix_weights, training_flops_per_token
from harness.analysis.named_models import named_model
from harness.errors import UserError

SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}

TEXTS = {
    "id": "name of the row in what is said of it (default: its number)",
    "source": "where it is printed",
    "subject": "chip that is looked at, or a family of chips",
    "reference": "chip that it is held against",
    "stack": "software, if rows differ by it",
    "model": "name; one of configs/model/ brings its shape along",
    "precision": "fp32, tf32, bf16, fp16 or fp8",
    "ratio_of": "time or speed: what `ratio` is of",
    "assumed": "columns that the source does not print and the table's author filled in, such as: reference, devices",
    "note": "anything else",
}
NUMBERS = {
    "parameters": "of the model, such as 7B",
    "layers": "of the model; with width and seq_len its attention is counted too",
    "width": "of the model",
    "seq_len": "tokens in a sequence",
    "global_batch_size": "sequences a step, over all devices",
    "micro_batch_size": "sequences a device takes at once",
    "accumulation": "micro-batches a step",
    "devices": "how many, on each side",
    "tensor": "devices that share a layer",
    "pipeline": "stages that the layers are spread over",
    "ratio": "that is stated, subject over reference",
    "evaluation_samples": "that accuracies are means over",
}
MEASURED = {
    "tokens_per_second": "over all devices",
    "tokens_per_second_per_device": "",
    "samples_per_second": "over all devices; a sample is a sequence",
    "samples_per_second_per_device": "",
    "step_seconds": "of one optimizer step",
    "total_seconds": "of the whole training",
    "mfu": "share of the chip's peak, as a fraction or in %",
    "final_loss": "",
    "accuracy": "as a fraction or in %",
}
SIDES = ("subject", "reference")
COLUMNS = {
    **TEXTS,
    **NUMBERS,
    **{f"{side}_{name}": text for side in SIDES for name, text in MEASURED.items()},
}
PERCENT = ("mfu", "accuracy")
# In order of preference. What a whole training took may have more in it than steps.
RATIO_COLUMNS = ("tokens_per_second", "tokens_per_second_per_device", "samples_per_second",
                 "samples_per_second_per_device", "step_seconds", "total_seconds")  # fmt: skip
# Names of precisions that tables print, and ours.
PRECISION_NAMES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
# Nothing that is printed of a training lies beyond.
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-12, 1e18
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
WHOLE = ("layers", "width", "seq_len", "global_batch_size", "micro_batch_size", "accumulation", "devices", "tensor",
         "pipeline", "evaluation_samples")  # fmt: skip
# Below this the unit was forgotten.
SMALLEST_MODEL = 1e5
# A share of the peak beyond this was meant in percent.
LARGEST_BARE_MFU = 10.0


@dataclass(frozen=True)
class Row:
    """One row. Numbers are floats in the column's unit, None where nothing is printed."""

    name: str
    values: Mapping[str, Any]

    def text(self, column: str) -> str | None:
        return self.values.get(column)

    def number(self, column: str) -> float | None:
        return self.values.get(column)

    def of(self, side: str, what: str) -> float | None:
        """Return what one side measured."""
        return self.values.get(f"{side}_{what}")

    def has(self, side: str) -> bool:
        """Return whether anything was measured on a side."""
        return any(self.of(side, what) is not None for what in MEASURED)

    @property
    def sequences_per_step(self) -> float | None:
        """The global batch size, as printed or from its parts."""
        return self.number("global_batch_size") or self.batch_from_parts

    @property
    def largest_batch_from_parts(self) -> float | None:
        """The global batch size if every device, or every group that the row tells of, has a copy of the model."""
        parts = [self.number(name) for name in ("micro_batch_size", "accumulation", "devices")]
        if any(part is None for part in parts):
            return None
        shared = (self.number("tensor") or 1) * (self.number("pipeline") or 1)
        return math.prod(part for part in parts if part is not None) / shared

    @property
    def copies_are_known(self) -> bool:
        """Whether the row tells how many devices share one copy of the model."""
        return self.number("devices") == 1 or any(self.number(name) is not None for name in ("tensor", "pipeline"))

    @property
    def batch_from_parts(self) -> float | None:
        return self.largest_batch_from_parts if self.copies_are_known else None

    @property
    def assumed(self) -> tuple[str, ...]:
        """Columns that the source does not print."""
        return tuple(part.strip() for part in (self.text("assumed") or "").split(",") if part.strip())

    def speeds(self, side: str) -> dict[str, float]:
        """Return every way in which the row tells a side's tokens/s over all devices, by the column it comes from."""
        told = self.speeds_by_what_is_unknown(side)
        return told.get(frozenset(), {})

    def speeds_by_what_is_unknown(self, side: str) -> dict[frozenset[str], dict[str, float]]:
        """Return a side's speeds by column, in tokens/s over all devices but for factors that the row does not print.

        Those with the same unknown factors can be compared with one another, those without any are tokens/s.
        """
        batch, step = self.sequences_per_step, self.of(side, "step_seconds")
        given = {
            "tokens_per_second": (self.of(side, "tokens_per_second"), ()),
            "tokens_per_second_per_device": (self.of(side, "tokens_per_second_per_device"), ("devices",)),
            "samples_per_second": (self.of(side, "samples_per_second"), ("seq_len",)),
            "samples_per_second_per_device": (self.of(side, "samples_per_second_per_device"), ("seq_len", "devices")),
            "step_seconds": (_over(batch, step), ("seq_len",)),
        }
        found: dict[frozenset[str], dict[str, float]] = {}
        for column, (value, factors) in given.items():
            if value is None:
                continue
            known = [number for factor in factors if (number := self.number(factor)) is not None]
            unknown = frozenset(factor for factor in factors if self.number(factor) is None)
            found.setdefault(unknown, {})[column] = value * math.prod(known)
        return found

    def speed_per_device(self, side: str) -> float | None:
        """Return tokens/s of one device, the smallest of what the row tells: an excess that it shows is one by any."""
        seq_len, devices = self.number("seq_len"), self.number("devices")
        told = [
            self.of(side, "tokens_per_second_per_device"),
            _times(self.of(side, "samples_per_second_per_device"), seq_len),
            *(_over(speed, devices) for speed in self.speeds(side).values()),
        ]
        return min((value for value in told if value is not None), default=None)

    @property
    def flops_per_token(self) -> float | None:
        """Model FLOPs of a token, forward and backward, causal attention counted as far as the row tells the shape.

        Six times the parameters (Kaplan et al. 2020) where no shape is known, which leaves attention out.
        """
        seq_len = self.number("seq_len")
        shape = named_model(self.text("model"))
        if shape is not None:
            return 6 * matrix_weights(shape) if seq_len is None else training_flops_per_token(shape, int(seq_len))
        parameters = self.number("parameters")
        if parameters is None:
            return None
        if seq_len is None:
            return 6 * parameters
        return flops_per_token_of_size(parameters, self.number("layers"), self.number("width"), seq_len)

    @property
    def size(self) -> float | None:
        """The model's parameters, as printed or of the named model."""
        shape = named_model(self.text("model"))
        return self.number("parameters") if shape is None else matrix_weights(shape)

    def flops_per_device(self, side: str) -> float | None:
        """Return the model FLOP/s of one device that the row implies."""
        return _times(self.flops_per_token, self.speed_per_device(side))

    @property
    def time_ratios(self) -> dict[str, float]:
        """The subject's time over the reference's for the same work, by the column that both sides print alike."""
        found = {}
        for column in RATIO_COLUMNS:
            subject, reference = (self.of(side, column) for side in SIDES)
            if subject is not None and reference is not None:
                found[column] = subject / reference if column.endswith("_seconds") else reference / subject
        return found

    @property
    def time_ratio(self) -> float | None:
        """The subject's time over the reference's, by the first of the columns that tell it."""
        return next(iter(self.time_ratios.values()), None)


def read_rows(file: Path) -> list[Row]:
    """Read a table.

    Args:
        file: *.csv with a head line, or YAML: a list of mappings, or a mapping with that list under `rows`.

    Raises:
        UserError: it cannot be read, or holds a column or a value that is not understood.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: cannot be read: {reason}; give a YAML or CSV file of published rows") from error
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
    """Refuses a key that is there twice, of which PyYAML would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is there twice", node.start_mark)
        for key, value in node.value:
            # YAML 1.1 reads 1:30 as ninety.
            if isinstance(value, yaml.ScalarNode) and value.tag in NUMBER_TAGS and ":" in value.value:
                what = f"{key.value}: found {value.value}, expected seconds as a number, or quotes around a text"
                raise yaml.constructor.ConstructorError(None, None, what, value.start_mark)
        return super().construct_mapping(node, deep)


def _csv(file: Path, text: str) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text.lstrip(), newline=""), strict=True)
    try:
        heads = [head.strip() for head in reader.fieldnames or ()]
        if len(heads) < 2 and any(";" in head for head in heads):
            raise UserError(f"{file}: its columns are separated by semicolons, expected commas; save it again so")
        if twice := next((head for head in heads if heads.count(head) > 1), None):
            raise UserError(f"{file}: the column {twice!r} is there twice; which one counts?")
        for entry in reader:
            if None in entry or None in entry.values():
                raise UserError(f"{file}: line {reader.line_num} has not as many cells as the head line's {len(heads)}")
            yield {(key or "").strip(): value.strip() or None for key, value in entry.items()}
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.line_num} cannot be read as CSV: {error}") from error


def _yaml(file: Path, text: str) -> Iterator[Mapping[str, Any]]:
    try:
        content = yaml.load(text, _Loader)
    # What is no date or number after all, and nesting without end, come as errors of Python's own.
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
            raise UserError(f"{where}: {head}: no such column{hint}")
        if column in values:
            raise UserError(f"{where}: {column}: is there twice, as {head!r} too")
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
        raise UserError(f"{where}: nothing was measured; expected a column such as subject_tokens_per_second, or ratio")
    return row


def _precision(where: str, written: str) -> str:
    folded = written.casefold()
    found = PRECISION_NAMES.get(folded, folded)
    if found not in PRECISIONS:
        raise UserError(f"{where}: precision: found {written!r}, expected one of: {', '.join(PRECISIONS)}")
    return found


def _number(where: str, column: str, value: Any) -> float:
    text = str(value).strip().replace("_", "")
    try:
        if column == "parameters" and (scale := SUFFIXES.get(text[-1:].upper())):
            number = float(text[:-1]) * scale
        elif column.endswith(PERCENT) and text.endswith("%"):
            number = float(text[:-1]) / 100
        else:
            number = float(text)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not SMALLEST_NUMBER <= number <= LARGEST_NUMBER:
        raise UserError(
            f"{where}: {column}: found {value!r}, expected a number above 0 and of a possible size, without thousands "
            "separators"
        )
    # An MFU above one is what somebody printed, an accuracy above one is what nobody means.
    most = LARGEST_BARE_MFU if column.endswith("mfu") else 1.0
    if column.endswith("mfu") and not text.endswith("%") and number > most:
        raise UserError(f"{where}: {column}: found {value!r}, expected a fraction, or a percentage such as 38.5%")
    if column.endswith("accuracy") and number > most:
        raise UserError(
            f"{where}: {column}: found {value!r}, expected a fraction of at most 1, or a percentage such as 77.7%"
        )
    if column in WHOLE and not number.is_integer():
        raise UserError(f"{where}: {column}: found {value!r}, expected a whole number")
    if column == "parameters" and number < SMALLEST_MODEL:
        raise UserError(f"{where}: parameters: found {value!r}, expected a number of parameters, such as 7B")
    return number


def _times(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else one * two


def _over(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else one / two
