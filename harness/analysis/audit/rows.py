"""Rows of a published comparison: what somebody printed, as data, and what follows from it by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.analysis.flops import flops_per_token_of_size, matrix_weights, parameters_of, training_flops_per_token
from harness.analysis.named_models import model_preset

TEXTS = {
    "id": "name of the row in what is said of it (default: its number)",
    "source": "where it is printed",
    "subject": "chip that is looked at, or a family of chips",
    "reference": "chip that it is held against",
    "stack": "software, if rows differ by it",
    "model": "name; one of configs/model/ brings its shape along",
    "precision": "fp32, tf32, bf16, fp16 or fp8",
    "ratio_of": "time or speed: what `ratio` is of",
    "states": "claim that the row is the source of, and so no evidence of (default: the one that its id names)",
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
# In order of preference. What a whole training took may have more in it than steps.
RATIO_COLUMNS = ("tokens_per_second", "tokens_per_second_per_device", "samples_per_second",
                 "samples_per_second_per_device", "step_seconds", "total_seconds")  # fmt: skip


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
        shape = model_preset(self.text("model"))
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
        shape = model_preset(self.text("model"))
        return self.number("parameters") if shape is None else float(parameters_of(shape))

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


def _times(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else one * two


def _over(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else one / two


IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN = "impossible", "inconsistent", "suspicious", "unproven"


GRADES = (IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN)


@dataclass(frozen=True)
class AuditFinding:
    """One thing found."""

    sure: str
    """One of GRADES: how sure it is that the row is wrong."""
    check: str
    what: str
    why: str
