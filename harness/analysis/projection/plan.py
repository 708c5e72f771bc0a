"""Plan of a large training run, and the assumptions about every quantity that neither plan nor records give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.analysis.chips import Chip
from harness.analysis.flops import MIN_WEIGHTS, STATE_BYTES_PER_PARAMETER, parameters_of_layers
from harness.errors import UserError
from harness.text import counted, did_you_mean

DRAWS = 20_000
# Share of a device's memory that whole weights and gradients may take, so that activations fit as well.
MEMORY_FOR_WHOLE_WEIGHTS = 0.6
# Bytes of a weight, gradient or activation. With fp8 products, tensors are stored and sent in 16 bits.
NUMBER_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 2}

# Assumptions between 0 and 1, and those that may be 0.
SHARES = frozenset(
    {"efficiency_of_products", "product_share_of_peak", "link_efficiency", "hiding_compute", "power_share"}
)
MAY_BE_ZERO = frozenset({"latency_seconds", "hiding_compute", "restart_hours"})

Draws = np.ndarray


@dataclass(frozen=True)
class Range:
    """Assumed range of a quantity, with its most likely value."""

    low: float
    likely: float
    high: float

    def draw(self, random: np.random.Generator) -> Draws:
        """Return DRAWS values of the triangular distribution."""
        if self.low == self.high:
            return np.full(DRAWS, self.low)
        return random.triangular(self.low, self.likely, self.high, DRAWS)

    @classmethod
    def parse(cls, text: str) -> Range:
        """Return the range of a text such as `0.5` or `0.4:0.5:0.7` (lowest, likeliest, highest).

        Raises:
            ValueError: the text is neither, or out of order.
        """
        numbers = [float(part) for part in text.split(":")]
        low, likely, high = numbers * 3 if len(numbers) == 1 else numbers
        if not 0 <= low <= likely <= high < math.inf:
            raise ValueError(text)
        return cls(low, likely, high)


@dataclass(frozen=True)
class Assumptions:
    """Ranges of the quantities that neither plan nor records give.

    The defaults are not independent of the published trainings of configs/trainings.yaml: interruptions are those of
    two of them, and the likeliest `efficiency_of_products` was raised from 0.45 after a first comparison.
    """

    efficiency_of_products: Range = Range(0.45, 0.65, 0.80)
    """Model FLOP/s of a device by itself over its best matrix product; attention, norms and the rest are slower."""
    product_share_of_peak: Range = Range(0.65, 0.80, 0.90)
    """Best matrix product over the data sheet's peak, where no measurement is known."""
    link_efficiency: Range = Range(0.6, 0.75, 0.9)
    """Bandwidth of large collectives over the data sheet's."""
    latency_seconds: Range = Range(5e-6, 10e-6, 30e-6)
    """Of one hop of a collective."""
    hiding_compute: Range = Range(0.3, 0.7, 0.95)
    """Share of the compute that data-parallel collectives can overlap with."""
    checkpoint_seconds: Range = Range(10, 60, 300)
    device_hours_between_interruptions: Range = Range(20_000, 45_000, 100_000)
    """OPT-175B: 54 in 56 days of 992 devices; Llama 3 405B: 466 in 54 days of 16 384."""
    restart_hours: Range = Range(0.05, 0.1, 0.5)
    """Llama 3 405B: more than 90 % of the time was effective: 0.28 h an interruption, lost work included."""
    power_share: Range = Range(0.7, 0.85, 1.0)
    """Mean power of a device in training over the data sheet's."""

    def replaced(self, overrides: Sequence[str]) -> Assumptions:
        """Return the assumptions with overrides, each NAME=RANGE (`Range.parse`).

        Raises:
            UserError: a name is unknown or given twice, or a range is invalid.
        """
        given: dict[str, Range] = {}
        for override in overrides:
            name, _, text = override.partition("=")
            key = name.replace("-", "_")
            if key in given:
                raise UserError(f"assume: {name}: found twice, expected once")
            if key not in vars(self):
                known = [each.replace("_", "-") for each in vars(self)]
                raise UserError(
                    f"assume: found {name!r}, expected one of: {', '.join(known)}{did_you_mean(name, known)}"
                )
            most = 1.0 if key in SHARES else math.inf
            try:
                found = Range.parse(text)
            except ValueError:
                found = None
            if found is None or found.high > most or (found.low == 0 and key not in MAY_BE_ZERO):
                limit = "between 0 and 1" if key in SHARES else "of at least 0" if key in MAY_BE_ZERO else "above 0"
                raise UserError(
                    f"assume: {name}: found {text!r}, expected a number {limit}, or three as lowest:likeliest:highest"
                )
            given[key] = found
        return replace(self, **given)


@dataclass(frozen=True)
class Plan:
    """A training run: model, tokens, devices and layout."""

    parameters: float
    tokens: float
    flops_per_token: float
    """Model FLOPs, forward and backward."""
    devices: int
    seq_len: int
    global_batch_size: int
    """Sequences a step."""
    precision: str = "bf16"
    """Of the matrix products: fp32, tf32, bf16, fp16 or fp8."""
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    """Attention heads, which tensor parallelism divides."""
    micro_batch_size: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual_stages: int = 1
    sharded: bool = False
    recompute: bool = False
    devices_per_node: int = 8
    network_bytes_per_second: float = 25e9
    """Of one device to other nodes, one direction."""

    def __post_init__(self) -> None:
        """Check the layout.

        Raises:
            UserError: the layout is impossible; the message names the option.
        """
        split = self.tensor * self.pipeline
        if self.devices % split:
            raise UserError(
                f"devices: found {self.devices}, expected a multiple of tensor x pipeline = {split}, so that they "
                "hold whole copies of the model"
            )
        share = self.data * self.micro_batch_size
        if self.global_batch_size % share:
            raise UserError(
                f"global-batch-size: found {self.global_batch_size}, expected a multiple of {share} (data-parallel "
                f"copies x micro-batch size = {self.data} x {self.micro_batch_size})"
            )
        if split > 1 and (self.layers is None or self.width is None):
            raise UserError(
                "tensor, pipeline: need the model's layers and width; give --model, or --layers and --width"
            )
        if self.heads is not None and self.heads % self.tensor:
            raise UserError(f"tensor: found {self.tensor}, expected a divisor of the model's {self.heads} heads")
        if (
            self.layers is not None
            and self.width is not None
            and self.parameters < (parameters_of_layers(self.layers, self.width, MIN_WEIGHTS))
        ):
            raise UserError(
                f"parameters: found {self.parameters / 1e9:.3g} B, expected about "
                f"{parameters_of_layers(self.layers, self.width) / 1e9:.3g} B or more for "
                f"{counted(self.layers, 'layer')} of width {self.width}"
            )
        if self.layers is not None and self.layers < self.pipeline * self.virtual_stages:
            raise UserError(
                f"pipeline: found {counted(self.pipeline, 'stage')} of {self.virtual_stages}, expected no more than "
                f"the model's {counted(self.layers, 'layer')}"
            )

    @property
    def data(self) -> int:
        """Data-parallel size: copies of the model, each with its own sequences."""
        return self.devices // (self.tensor * self.pipeline)

    @property
    def micro_batches(self) -> int:
        return self.global_batch_size // (self.data * self.micro_batch_size)

    @property
    def number_bytes(self) -> int:
        """Bytes of a weight, gradient or activation."""
        return NUMBER_BYTES[self.precision]

    @property
    def parameters_per_copy(self) -> float:
        """Parameters of one model-parallel part, which data-parallel collectives move."""
        return self.parameters / (self.tensor * self.pipeline)

    @property
    def state_bytes(self) -> float:
        """Bytes of weights, gradients and moments on a device, without activations."""
        return STATE_BYTES_PER_PARAMETER * self.parameters_per_copy / (self.data if self.sharded else 1)

    def keeps_weights_gathered(self, chip: Chip) -> bool:
        """Return whether whole weights and gradients fit beside a device's share of the optimizer state."""
        whole = 2 * self.number_bytes * self.parameters_per_copy
        return chip.memory_bytes is None or whole + self.state_bytes <= MEMORY_FOR_WHOLE_WEIGHTS * chip.memory_bytes

    @property
    def activation_bytes(self) -> float | None:
        """Bytes of activations on a device (Korthikanti et al. 2022, without attention scores).

        34 bytes a token, layer and unit of width in 16 bits; 2 with recomputation. The first stage of a pipeline holds
        as many micro-batches as there are stages. None where the shape is unknown.
        """
        if self.layers is None or self.width is None:
            return None
        a_layer = self.micro_batch_size * self.seq_len * self.width * self.number_bytes / 2 / self.tensor
        return a_layer * (2 * self.layers + 34 if self.recompute else 34 * self.layers)

    @property
    def steps(self) -> float:
        return self.tokens / (self.global_batch_size * self.seq_len)
