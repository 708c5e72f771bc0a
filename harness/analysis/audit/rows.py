"""Rows of a published comparison: the printed figures, and what follows from them by arithmetic."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from harness.analysis.chips import Chip, match_chips
from harness.analysis.flops import (
    PASSES,
    active_weights,
    causal_attention_flops,
    heads_width,
    largest_attention_flops,
    parameters_of,
    whole_attention_flops,
)
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
    "parameters": "of the model, such as 7B; of a mixture of experts, all of them",
    "active_parameters": "of a mixture of experts, those that one token uses, such as 21B",
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
# A speed that is printed less precisely is left out where a more precise one is printed too.
MAX_ROUNDING = 0.02
# Names of mixtures of experts: 8x7B, 30B-A3B, OLMoE, Mixtral.
MIXTURE = re.compile(r"\d+x\d|moe|mixtral|\ba\d+(\.\d+)?b\b", re.IGNORECASE)

WITHOUT_ATTENTION = "without attention (6 x parameters a token)"
CAUSAL_ATTENTION = "with causal attention"
WHOLE_ATTENTION = "with attention counted whole (12 x layers x width x seq_len a token)"


class Figure(NamedTuple):
    """A printed figure, or one that follows from printed figures, with the range that rounding leaves it."""

    low: float
    value: float
    high: float

    def times(self, factor: float) -> Figure:
        """Return the figure times an exact factor."""
        return Figure(*(factor * each for each in self))

    def over(self, other: Figure) -> Figure:
        """Return the ratio of two figures."""
        return Figure(self.low / other.high, self.value / other.value, self.high / other.low)


def exactly(value: float) -> Figure:
    """Return a figure that is not rounded, such as a number of devices."""
    return Figure(value, value, value)


def printed(value: float, exponent: int | None = None) -> Figure:
    """Return a measured figure with its rounding: half a unit of the last digit; a whole number may be cut off too.

    Args:
        exponent: of ten, of the last digit as printed; None: of the last one that is not 0.
    """
    if exponent is None:
        last = Decimal(f"{value:.12g}").as_tuple().exponent
        assert isinstance(last, int)
        exponent = last
    if exponent < 0:
        half = 0.5 * 10.0**exponent
        return Figure(value - half, value, value + half)
    return Figure(value - 0.5, value, value + 1)


@dataclass(frozen=True)
class Row:
    """One row: texts and floats by column, in the column's unit; an empty cell has no entry."""

    name: str
    values: Mapping[str, Any]
    exponents: Mapping[str, int] = field(default_factory=dict)
    """Of ten, of the last printed digit of a number, in the column's unit: 1.40 has -2, and 40% too."""

    def text(self, column: str) -> str | None:
        return self.values.get(column)

    def number(self, column: str) -> float | None:
        return self.values.get(column)

    def of(self, side: str, quantity: str) -> float | None:
        """Return a measured quantity of one side."""
        return self.values.get(f"{side}_{quantity}")

    def figure(self, side: str, quantity: str) -> Figure | None:
        """Return a measured quantity of one side with its rounding."""
        return self.printed(f"{side}_{quantity}")

    def printed(self, column: str) -> Figure | None:
        """Return a number with its rounding."""
        value = self.number(column)
        return None if value is None else printed(value, self.exponents.get(column))

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

    def speeds(self, side: str) -> dict[str, Figure]:
        """Return a side's tokens/s over all devices, by each column that they follow from."""
        return self.speeds_by_unknown_factors(side).get(frozenset(), {})

    def speeds_by_unknown_factors(self, side: str) -> dict[frozenset[str], dict[str, Figure]]:
        """Return a side's speeds by column, in tokens/s over all devices up to factors that the row does not print.

        Speeds with the same unknown factors are comparable; those without any are tokens/s.
        """
        batch, step = self.sequences_per_step, self.figure(side, "step_seconds")
        given = {
            "tokens_per_second": (self.figure(side, "tokens_per_second"), ()),
            "tokens_per_second_per_device": (self.figure(side, "tokens_per_second_per_device"), ("devices",)),
            "samples_per_second": (self.figure(side, "samples_per_second"), ("seq_len",)),
            "samples_per_second_per_device": (
                self.figure(side, "samples_per_second_per_device"),
                ("seq_len", "devices"),
            ),
            "step_seconds": (None if batch is None or step is None else exactly(batch).over(step), ("seq_len",)),
        }
        found: dict[frozenset[str], dict[str, Figure]] = {}
        for column, (value, factors) in given.items():
            if value is None:
                continue
            known = [number for factor in factors if (number := self.number(factor)) is not None]
            unknown = frozenset(factor for factor in factors if self.number(factor) is None)
            found.setdefault(unknown, {})[column] = value.times(math.prod(known))
        return found

    def speed_per_device(self, side: str) -> Figure | None:
        """Return tokens/s of one device, the smallest that any precise column gives: if it exceeds a peak, all do."""
        seq_len, devices = self.number("seq_len"), self.number("devices")
        found = [self.figure(side, "tokens_per_second_per_device")]
        if seq_len is not None and (samples := self.figure(side, "samples_per_second_per_device")) is not None:
            found.append(samples.times(seq_len))
        if devices is not None:
            found += [speed.times(1 / devices) for speed in self.speeds(side).values()]
        return _smallest(each for each in found if each is not None)

    @property
    def is_mixture(self) -> bool:
        """True for a mixture of experts, by its columns or by its name."""
        shape = model_preset(self.text("model"))
        if self.number("active_parameters") is not None:
            return True
        return bool(MIXTURE.search(self.text("model") or "")) if shape is None else shape["num_experts"] is not None

    @property
    def _active_weights(self) -> float | None:
        """Weights that a token is multiplied with; of a mixture of experts, only the active ones."""
        shape = model_preset(self.text("model"))
        if shape is not None:
            return active_weights(shape)
        return self.number("active_parameters") or (None if self.is_mixture else self.number("parameters"))

    @property
    def _shape(self) -> tuple[float, float] | None:
        """Layers, and the width of all heads, by the model preset; or layers and width as printed."""
        shape = model_preset(self.text("model"))
        if shape is not None:
            return shape["num_hidden_layers"], heads_width(shape)
        layers, width = self.number("layers"), self.number("width")
        return None if layers is None or width is None else (layers, width)

    @property
    def flops_by_convention(self) -> dict[str, float]:
        """Model FLOPs of a token, forward and backward, by the way of counting attention.

        Six times the parameters (Kaplan et al. 2020) without attention; the other two need the model's shape and the
        sequence length.
        """
        weights, shape, seq_len = self._active_weights, self._shape, self.number("seq_len")
        if weights is None:
            return {}
        products = PASSES * 2 * weights
        if shape is None or seq_len is None:
            return {WITHOUT_ATTENTION: products}
        return {
            CAUSAL_ATTENTION: products + causal_attention_flops(*shape, seq_len),
            WHOLE_ATTENTION: products + whole_attention_flops(*shape, seq_len),
            WITHOUT_ATTENTION: products,
        }

    @property
    def flops_per_token(self) -> float | None:
        """Model FLOPs of a token with causal attention, or without attention where the shape is unknown."""
        return next(iter(self.flops_by_convention.values()), None)

    @property
    def largest_flops_per_token(self) -> float:
        """Model FLOPs of a token with attention counted whole, for the deepest shape where none is printed."""
        found = self.flops_by_convention
        weights, seq_len = self._active_weights, self.number("seq_len")
        if weights is None or len(found) > 1:
            return max(found.values(), default=math.inf)
        return math.inf if seq_len is None else PASSES * 2 * weights + largest_attention_flops(weights, seq_len)

    @property
    def size(self) -> float | None:
        """The model's parameters, by the model preset or as printed."""
        shape = model_preset(self.text("model"))
        return self.number("parameters") if shape is None else float(parameters_of(shape))

    def flops_per_device(self, side: str) -> float | None:
        """Return the model FLOP/s of one device that follow from the row."""
        speed, flops = self.speed_per_device(side), self.flops_per_token
        return None if speed is None or flops is None else flops * speed.value

    @property
    def time_ratios(self) -> dict[str, Figure]:
        """The subject's time over the reference's for the same work, by column that both sides have."""
        found = {}
        for column in RATIO_COLUMNS:
            subject, reference = (self.figure(side, column) for side in SIDES)
            if subject is not None and reference is not None:
                found[column] = subject.over(reference) if column.endswith("_seconds") else reference.over(subject)
        return found

    @property
    def time_ratio(self) -> float | None:
        """The subject's time over the reference's, by the first column of RATIO_COLUMNS that both sides have."""
        found = next(iter(self.time_ratios.values()), None)
        return None if found is None else found.value


def _smallest(speeds: Iterable[Figure]) -> Figure | None:
    """Return the smallest of the precise speeds, or of all if none is precise."""
    found = list(speeds)
    precise = [each for each in found if each.high <= (1 + MAX_ROUNDING) * each.low]
    return min(precise or found, key=lambda each: each.value, default=None)


IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN, NOTE = "impossible", "inconsistent", "suspicious", "unproven", "note"
SEVERITIES = (IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, UNPROVEN, NOTE)


@dataclass(frozen=True)
class AuditFinding:
    """One finding about a row."""

    severity: str
    """One of SEVERITIES, the certain errors first; a note is the outcome of a check that held."""
    check: str
    what: str
    why: str
