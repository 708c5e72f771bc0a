"""Rows of a published comparison: the printed figures, and what follows from them by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.analysis.chips import Chip, match_chips
from harness.analysis.flops import flops_per_token_of_size, matrix_weights, parameters_of, training_flops_per_token
from harness.analysis.named_models import model_preset

TEXTS = {
    "id": "name of the row in findings (default: its number)",
    "source": "where it is printed",
    "subject": "chip that is compared, or a family of chips",
    "reference": "chip that it is compared with",
    "stack": "software, if rows differ by it",
    "model": "name; a model of configs/model/ has its shape from there",
    "precision": "fp32, tf32, bf16, fp16 or fp8",
    "ratio_of": "time or speed: the quantity of `ratio`",
    "states": "claim whose source the row is, so that it is no evidence for it (default: the claim that its id names)",
    "assumed": "columns that the source does not print but the table's author filled in, such as: reference, devices",
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
    "devices": "number on each side",
    "tensor": "devices that share a layer",
    "pipeline": "stages of layers",
    "ratio": "the stated ratio, subject over reference",
    "evaluation_samples": "samples behind each accuracy",
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
# In order of preference; last, since a whole training takes more than its steps.
RATIO_COLUMNS = ("tokens_per_second", "tokens_per_second_per_device", "samples_per_second",
                 "samples_per_second_per_device", "step_seconds", "total_seconds")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row: texts and floats by column, in the column's unit; an empty cell has no entry."""

    name: str
    values: Mapping[str, Any]

    def text(self, column: str) -> str | None:
        return self.values.get(column)

    def number(self, column: str) -> float | None:
        return self.values.get(column)

    def of(self, side: str, quantity: str) -> float | None:
        """Return a measured quantity of one side."""
        return self.values.get(f"{side}_{quantity}")

    def has(self, side: str) -> bool:
        """Return whether any quantity of a side was measured."""
        return any(self.of(side, quantity) is not None for quantity in MEASURED)

    def chips(self, side: str) -> tuple[Chip, ...]:
        """Return the chips that a side's name can mean."""
        return match_chips(self.text(side))

    @property
    def sequences_per_step(self) -> float | None:
        """The global batch size, as printed or as the product of its parts."""
        return self.number("global_batch_size") or self.batch_from_parts

    @property
    def largest_batch_from_parts(self) -> float | None:
        """The product of the parts, one model copy for each device or printed model-parallel group."""
        parts = [self.number(name) for name in ("micro_batch_size", "accumulation", "devices")]
        if any(part is None for part in parts):
            return None
        shared = (self.number("tensor") or 1) * (self.number("pipeline") or 1)
        return math.prod(part for part in parts if part is not None) / shared

    @property
    def copies_are_known(self) -> bool:
        """True if the row prints how many devices share one copy of the model."""
        return self.number("devices") == 1 or any(self.number(name) is not None for name in ("tensor", "pipeline"))

    @property
    def batch_from_parts(self) -> float | None:
        return self.largest_batch_from_parts if self.copies_are_known else None

    @property
    def assumed(self) -> tuple[str, ...]:
        """Columns that the source does not print."""
        return tuple(part.strip() for part in (self.text("assumed") or "").split(",") if part.strip())

    def speeds(self, side: str) -> dict[str, float]:
        """Return a side's tokens/s over all devices, by each column that they follow from."""
        return self.speeds_by_unknown_factors(side).get(frozenset(), {})

    def speeds_by_unknown_factors(self, side: str) -> dict[frozenset[str], dict[str, float]]:
        """Return a side's speeds by column, in tokens/s over all devices up to factors that the row does not print.

        Speeds with the same unknown factors are comparable; those without any are tokens/s.
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
        """Return tokens/s of one device, the smallest that any column gives: if it exceeds a peak, all do."""
        seq_len, devices = self.number("seq_len"), self.number("devices")
        found = [
            self.of(side, "tokens_per_second_per_device"),
            _times(self.of(side, "samples_per_second_per_device"), seq_len),
            *(_over(speed, devices) for speed in self.speeds(side).values()),
        ]
        return min((value for value in found if value is not None), default=None)

    @property
    def flops_per_token(self) -> float | None:
        """Model FLOPs of a token, forward and backward.

        Six times the parameters (Kaplan et al. 2020), without attention, where the shape is unknown.
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
        """The model's parameters, by the model preset or as printed."""
        shape = model_preset(self.text("model"))
        return self.number("parameters") if shape is None else float(parameters_of(shape))

    def flops_per_device(self, side: str) -> float | None:
        """Return the model FLOP/s of one device that follow from the row."""
        return _times(self.flops_per_token, self.speed_per_device(side))

    @property
    def time_ratios(self) -> dict[str, float]:
        """The subject's time over the reference's for the same work, by column that both sides have."""
        found = {}
        for column in RATIO_COLUMNS:
            subject, reference = (self.of(side, column) for side in SIDES)
            if subject is not None and reference is not None:
                found[column] = subject / reference if column.endswith("_seconds") else reference / subject
        return found

    @property
    def time_ratio(self) -> float | None:
        """The subject's time over the reference's, by the first column of RATIO_COLUMNS that both sides have."""
        return next(iter(self.time_ratios.values()), None)


def _times(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else one * two


def _over(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else one / two


IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN = "impossible", "inconsistent", "suspicious", "unproven"
SEVERITIES = (IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN)


@dataclass(frozen=True)
class AuditFinding:
    """One finding about a row."""

    severity: str
    """One of SEVERITIES, the certain errors first."""
    check: str
    what: str
    why: str
