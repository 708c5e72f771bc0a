"""Plan of a large training run: model, tokens, devices and layout, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass

from harness.analysis.chips import Chip
from harness.analysis.flops import MIN_WEIGHTS, STATE_BYTES_PER_PARAMETER, parameters_of_layers
from harness.errors import UserError
from harness.text import counted

# Share of a device's memory that whole weights and gradients may take, so that activations fit as well.
MEMORY_FOR_WHOLE_WEIGHTS = 0.6
# Bytes of a weight, gradient or activation. With fp8 products, tensors are stored and sent in 16 bits.
NUMBER_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 2}


@dataclass(frozen=True)
class Engine:
    """Decisions of a training program about its collectives; the defaults are those of programs for large models."""

    stream_bytes: int | None = None
    """Of an activation between two layers; None: as of a product's operand, likewise the next three."""
    gradient_bytes: int | None = None
    gathered_bytes: int | None = None
    """Of a gathered weight of a layer."""
    outer_bytes: int | None = None
    """Of a gathered weight of embedding or output projection."""
    regathers: bool | None = None
    """True if sharded weights are gathered again for each micro-batch; None: where whole ones do not fit."""
    scatters_each_micro_batch: bool = True
    """True if gradients are reduced for each micro-batch where weights are gathered for each, else once a step."""
    overlaps: bool = True
    """True if collectives of weights and gradients overlap with compute."""


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
    context: int = 1
    sharded: bool = False
    replicas: int = 1
    """Copies of the sharded model, each over a part of the data-parallel devices."""
    recompute: float = 0.0
    """Share of the blocks whose activations are recomputed in the backward pass."""
    devices_per_node: int = 8
    network_bytes_per_second: float = 25e9
    """Of one device to other nodes, one direction."""
    engine: Engine = Engine()
    vocabulary_parameters: float = 0.0
    """Of the embedding; 0: counted among the blocks'."""
    tie_word_embeddings: bool = False
    key_value_share: float = 1.0
    """Key and value heads over attention heads."""
    longest_rank: float = 1.0
    """Compute of a pipeline's longest rank over that of the mean one."""

    def __post_init__(self) -> None:
        """Check the layout.

        Raises:
            UserError: the layout is impossible; the message names the option.
        """
        split = self.tensor * self.pipeline * self.context
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
        return self.devices // (self.tensor * self.pipeline * self.context)

    @property
    def micro_batches(self) -> int:
        return self.global_batch_size // (self.data * self.micro_batch_size)

    @property
    def number_bytes(self) -> int:
        """Bytes of a weight, gradient or activation."""
        return NUMBER_BYTES[self.precision]

    @property
    def stream_bytes(self) -> int:
        """Bytes of an activation between two layers."""
        return self.engine.stream_bytes or self.number_bytes

    @property
    def gradient_bytes(self) -> int:
        return self.engine.gradient_bytes or self.number_bytes

    @property
    def gathered_bytes(self) -> int:
        return self.engine.gathered_bytes or self.number_bytes

    @property
    def outer_bytes(self) -> int:
        """Bytes of a gathered weight of embedding or output projection."""
        return self.engine.outer_bytes or self.number_bytes

    @property
    def scatters_each_micro_batch(self) -> bool:
        return self.engine.scatters_each_micro_batch

    @property
    def positions(self) -> float:
        """Tokens of a micro-batch on one device, before tensor parallelism cuts them."""
        return self.micro_batch_size * self.seq_len / self.context

    @property
    def shards(self) -> int:
        """Devices over which sharded weights are spread; parts of a sequence have the same weights."""
        return self.data * self.context // self.replicas if self.sharded else 1

    @property
    def outer_parameters(self) -> float:
        """Parameters of embedding and output projection on the device that has the most of them."""
        both = self.pipeline == 1 and not self.tie_word_embeddings
        return (2 if both else 1) * self.vocabulary_parameters / self.tensor

    @property
    def block_parameters(self) -> float:
        """Parameters of a model-parallel part's layers."""
        outer = (1 if self.tie_word_embeddings else 2) * self.vocabulary_parameters
        return (self.parameters - outer) / (self.tensor * self.pipeline)

    @property
    def parameters_per_copy(self) -> float:
        """Parameters of one model-parallel part, which data-parallel collectives move."""
        return self.parameters / (self.tensor * self.pipeline)

    @property
    def state_bytes(self) -> float:
        """Bytes of weights, gradients and moments on a device, without activations."""
        return STATE_BYTES_PER_PARAMETER * self.parameters_per_copy / self.shards

    def regathers_weights(self, chip: Chip) -> bool:
        """Return whether sharded weights are gathered again for each micro-batch, as they are where they do not fit."""
        return not self.keeps_weights_gathered(chip) if self.engine.regathers is None else self.engine.regathers

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
        kept = 34 * self.layers + self.recompute * (34 - 32 * self.layers)
        return a_layer * kept

    @property
    def steps(self) -> float:
        return self.tokens / (self.global_batch_size * self.seq_len)
