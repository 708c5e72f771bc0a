"""One decoder-only transformer in plain PyTorch; GPT-2, Llama, Mistral, Mixtral, Qwen2 and Qwen3 are settings of it.

Shapes: B sequences, S positions, W hidden size, H query heads, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.config import ModelConfig, attention_bias, head_dim, intermediate_size, mlp_bias, num_key_value_heads
from harness.workload.experts import LearnedExperts, RoundRobinExperts
from harness.workload.rotary import rotary_tables

T = TypeVar("T")
Kernel = Callable[..., torch.Tensor]
"""An operation that a backend may replace by a faster function of the same mathematics. It is an attribute, with the
operation's name, of each module that lists it in `kernels`."""


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads and optional rotary positions."""

    kernels = ("attention", "rotary")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = num_key_value_heads(config)
        self.head_dim = head_dim(config)
        biases = attention_bias(config)
        heads_size, keys_size = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        # One parameter for each projection: tensor parallelism cuts each by heads.
        self.q = nn.Linear(config.hidden_size, heads_size, bias=biases != "none")
        self.k = nn.Linear(config.hidden_size, keys_size, bias=biases != "none")
        self.v = nn.Linear(config.hidden_size, keys_size, bias=biases != "none")
        self.out = nn.Linear(heads_size, config.hidden_size, bias=biases == "all")
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.attention: Kernel = causal_attention
        self.rotary: Kernel = rotate
        # Context parallelism's, if it is used.
        self.exchange: Kernel = apply_kernel

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """[B, S, W] -> [B, S, W]"""
        q, k, v = (
            projection(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for projection in (self.q, self.k, self.v)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = self.rotary(q, *rotary), self.rotary(k, *rotary)
        mixed = self.exchange(self.attention, q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def apply_kernel(kernel: Kernel, *inputs: torch.Tensor) -> torch.Tensor:
    """Return the kernel's result."""
    return kernel(*inputs)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return causal attention: q [B, H, S, D], k and v [B, K, S, D] -> [B, H, S, D]."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions (Su et al. 2021, in Llama's half-split layout) to [B, heads, S, D]."""
    left, right = x.chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class FeedForward(nn.Module):
    """GELU, or SwiGLU (Shazeer 2020)."""

    kernels = ("swiglu",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        size, bias = intermediate_size(config), mlp_bias(config)
        self.gate = nn.Linear(config.hidden_size, size, bias=bias) if config.activation == "swiglu" else None
        self.up = nn.Linear(config.hidden_size, size, bias=bias)
        self.down = nn.Linear(size, config.hidden_size, bias=bias)
        self.swiglu: Kernel = swiglu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, W] -> [B, S, W]"""
        if self.gate is not None:
            return self.down(self.swiglu(self.gate(x), self.up(x)))
        return self.down(activate(self.up(x), self.activation))


def swiglu(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[..., H], [..., H] -> [..., H]"""
    return F.silu(gate) * value


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply `gelu` (Hendrycks and Gimpel 2016) or `gelu_tanh`, its approximation by tanh in the same paper."""
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def make_feed_forward(config: ModelConfig) -> nn.Module:
    """Return a new feed-forward block: a mixture of experts if the model has experts."""
    if config.num_experts is None:
        return FeedForward(config)
    kind = RoundRobinExperts if config.routing == "round_robin" else LearnedExperts
    return kind(config, swiglu, activate)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019)."""

    kernels = ("rms_norm",)

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps
        self.in_input_dtype = False
        self.rms_norm: Kernel = rms_norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., W] -> [..., W]"""
        if not self.in_input_dtype:
            return self.rms_norm(x, self.weight, self.eps)
        with torch.autocast(x.device.type, enabled=False):
            return self.rms_norm(x, self.weight.to(x.dtype), self.eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., W], weight [W] -> [..., W]"""
    return F.rms_norm(x, weight.shape, weight, eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al. 2016)."""

    in_input_dtype = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., W] -> [..., W]"""
        if not self.in_input_dtype:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(input.dtype)
            return F.layer_norm(input, self.normalized_shape, self.weight.to(input.dtype), bias, self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """Return a new LayerNorm or RMSNorm over the hidden size."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = make_feed_forward(config)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.feed_forward(self.feed_forward_norm(x))


def set_norm_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Let norms compute in the dtype of their input, to which weights are cast; None: as PyTorch and autocast do."""
    for module in model.modules():
        if isinstance(module, (RMSNorm, LayerNorm)):
            module.in_input_dtype = dtype is not None


class Transformer(nn.Module):
    """The model. Use `build_model` (initialization.py), which builds it on the meta device and fills in the weights.

    The names of modules and parameters seed the initial weights: renaming one changes them.
    """

    kernels = ("cross_entropy", "gradient_accumulation")
    # A whole model has both; of a pipeline's stages, some have None.
    embedding: nn.Embedding
    head: nn.Linear

    def __init__(self, config: ModelConfig, stages: Sequence[range] | None = None) -> None:
        """
        Args:
            stages: numbers of the blocks of each stage of a pipeline that this rank has; the first stage of all has the
                embeddings too, the last one norm and head. None: all blocks, in one.
        """
        super().__init__()
        self.config = config
        stages = stages or [range(config.num_hidden_layers)]
        self.is_first, self.is_last = stages[0].start == 0, stages[-1].stop == config.num_hidden_layers
        tied = config.tie_word_embeddings
        learned = config.position_embedding == "learned"
        has_embedding = self.is_first or (self.is_last and tied)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size) if has_embedding else None  # type: ignore
        self.position = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size) if self.is_first and learned else None
        )
        self.blocks = nn.ModuleList()
        for number in (number for stage in stages for number in stage):
            self.blocks.add_module(str(number), Block(config))
        self.norm = make_norm(config) if self.is_last else None
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if self.is_last else None  # type: ignore
        self.tie_weights()
        self.part_of_sequence: tuple[int, int] = (0, 1)
        """With context parallelism: the number of the part of each sequence that `forward` computes, and of parts."""
        self.residual_dtype: torch.dtype | None = None
        """Of the residual stream; None: that of the weights."""
        self._rotary: tuple[torch.Tensor, torch.Tensor] | None = None
        self.cross_entropy: Kernel = mean_cross_entropy
        self.gradient_accumulation: Callable[..., AbstractContextManager[None]] = autograd_accumulation
        self._interleaved = tuple(map(self._stage, stages)) if len(stages) > 1 else ()

    @property
    def stages(self) -> tuple[Transformer, ...]:
        """The models that are called: this one, or of a pipeline with interleaved stages each of this rank's."""
        return self._interleaved or (self,)

    def _stage(self, blocks: range) -> Transformer:
        """Return one stage as a model, which shares its modules with this one."""
        with torch.device("meta"):
            stage = Transformer(self.config, [blocks])
        for name, _ in stage.named_children():
            if name != "blocks":
                setattr(stage, name, getattr(self, name))
        for number, _ in stage.blocks.named_children():
            setattr(stage.blocks, number, getattr(self.blocks, number))
        return stage

    def numbered_layers(self) -> dict[int, nn.Module]:
        """Return the blocks of this part of the model by number, and the last norm after them."""
        found = {int(number): block for number, block in self.blocks.named_children()}
        return found if self.norm is None else {**found, self.config.num_hidden_layers: self.norm}

    def tie_weights(self) -> None:
        """Let the head have the embedding's weight, if they are tied."""
        if self.config.tie_word_embeddings and self.head is not None and self.embedding is not None:
            self.head.weight = self.embedding.weight

    def use_kernels(self, kernels: Mapping[str, Callable[..., Any]]) -> None:
        """Replace operations, given by name, with other functions of the same mathematics."""
        for module in (*self.modules(), *self.stages):
            for operation in getattr(module, "kernels", ()):
                if operation in kernels:
                    setattr(module, operation, kernels[operation])

    def set_residual_dtype(self, dtype: torch.dtype | None) -> None:
        """Set the dtype of the residual stream, in which norms compute too; None: as autocast leaves both.

        With autocast to the same dtype, which casts the weights of linear layers, the model computes what one whose
        weights are all of that dtype would, and its gradients are those of the float32 weights.
        """
        for stage in (self, *self.stages):
            stage.residual_dtype = dtype
        set_norm_dtype(self, dtype)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [B, S] -> [B, S, V], in the precision of the last matrix product."""
        assert self.head is not None
        return self.head(self.final_hidden_states(tokens))

    def final_hidden_states(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [B, S] -> [B, S, W]: the normalized output of the last block, which the head projects.

        S are the positions of this rank's part of the sequences.
        """
        assert self.norm is not None
        return self.norm(self.hidden_states(self.embed(tokens), tokens.shape[1]))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [B, S] -> [B, S, W]"""
        assert self.embedding is not None
        x = self._cast(self.embedding(tokens))
        if self.position is None:
            return x
        own = self._own_positions(tokens.shape[1])
        positions = torch.arange(own.start, own.stop, device=tokens.device)
        return x + self._cast(self.position(positions))

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.residual_dtype is None else x.to(self.residual_dtype)

    def hidden_states(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """[B, S, W] -> [B, S, W]: all blocks.

        Args:
            length: S; with tensor parallelism x has only a part of these positions.
        """
        rotary = None
        if self.config.position_embedding == "rotary":
            own = self._own_positions(length)
            cos, sin = self._rotary_tables(length * self.part_of_sequence[1], x.device)
            rotary = cos[own.start : own.stop], sin[own.start : own.stop]
        for number, block in self.blocks.named_children():
            if block.training and recomputes(self.config, int(number)):
                x = checkpoint(block, x, rotary, use_reentrant=False)
            else:
                x = block(x, rotary)
        return x

    def forward(self, inputs: torch.Tensor, sequences: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean next-token cross-entropy in nats, float32 scalar; of a stage before the last, its output.

        Args:
            inputs: int64 sequences [B, S + 1]; of a stage after the first, the output of the one before.
            sequences: of a stage after the first, the sequences.
        """
        number, parts = self.part_of_sequence
        sequences = inputs if sequences is None else sequences
        tokens, targets = (x.chunk(parts, dim=1)[number] for x in (sequences[:, :-1], sequences[:, 1:]))
        if self.is_first and self.is_last:
            return self.cross_entropy(self.head, self.final_hidden_states(tokens), targets)
        x = self.hidden_states(self.embed(tokens) if self.is_first else inputs, tokens.shape[1])
        return x if self.norm is None else self.cross_entropy(self.head, self.norm(x), targets)

    def _own_positions(self, length: int) -> range:
        """Return the positions of this rank's part of a sequence, which has this length."""
        number, _ = self.part_of_sequence
        return range(number * length, (number + 1) * length)

    def _rotary_tables(self, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if self._rotary is None or self._rotary[0].shape[0] != length or self._rotary[0].device != device:
            config = self.config
            cos, sin = rotary_tables(length, head_dim(config), config.rope_theta, config.rope_scaling)
            self._rotary = (cos.to(device), sin.to(device))
        return self._rotary


def recomputes(config: ModelConfig, number: int) -> bool:
    """Return whether the block of this number recomputes its activations in the backward pass."""
    if not config.activation_checkpointing:
        return False
    blocks = config.num_hidden_layers
    chosen = config.activation_checkpointing_blocks or blocks
    return (number + 1) * chosen // blocks > number * chosen // blocks


def mean_cross_entropy(head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of head(hidden [B, S, W]) for int64 targets [B, S], in nats, float32 scalar."""
    return F.cross_entropy(head(hidden).flatten(0, 1).float(), targets.flatten())


def autograd_accumulation(model: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Return the context of a step's passes in which autograd adds the gradients of all micro-batches to `grad`.

    Args:
        dtype: autocast's; None without it.
    """
    return nullcontext()


def compared_name(name: str) -> str:
    """Return the name under which runs are compared by a parameter: queries, keys and values share one.

    Without rotary positions the keys' bias adds the same to all scores of a query, which softmax ignores: its gradient
    is rounding alone, and by itself two honest runs would differ in it as two random numbers do.
    """
    return re.sub(r"\battention\.[qkv]\.", "attention.qkv.", name)


def compared_weights(parameters: Mapping[str, T], config: ModelConfig) -> dict[str, T]:
    """Return the parameters whose values after a training are compared, by name: those that the model's output needs.

    Without rotary positions it does not need the keys' bias (see `compared_name`). AdamW makes whole steps of its
    rounding, so that it ends elsewhere in each honest run in bf16, at a norm like that of the queries' bias.
    """
    rotary = config.position_embedding == "rotary"
    return {name: value for name, value in parameters.items() if rotary or not name.endswith("attention.k.bias")}


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Return the shape of every trained parameter by name, tied weights once. Allocates no memory for them."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Transformer(config).named_parameters()}


def parameter_count(config: ModelConfig) -> int:
    """Return the number of trained parameters, tied weights counted once. Allocates no memory for them."""
    return sum(shape.numel() for shape in parameter_shapes(config).values())
