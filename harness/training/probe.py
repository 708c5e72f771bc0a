"""Probes of the settings in effect: a run whose device does something else than requested must not start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from harness.backends.base import Backend
from harness.backends.step import DTYPE_NAMES, TrainStep, autocast_dtype
from harness.config import OPERATIONS, Config, head_dim, num_key_value_heads, product_format
from harness.errors import BackendUnavailable, RunFailed
from harness.text import counted
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.parallel import ParallelModel
from harness.workload.initialization import local_tensor
from harness.workload.model import activate, causal_attention
from harness.workload.philox import approximately_normal, stream_key
from harness.workload.sketch import Sketch, sketch_all

MATMUL_SIZE = 256
# A float32 product of two 256 x 256 normal matrices has a relative error of about 2e-7. TF32, HF32 and fp16 inputs
# have 11 bits (about 3e-4), bf16 inputs 8 bits (about 2e-3): the bound is more than a decade from either side.
MAX_FP32_ERROR = 1e-5
# GELU's two formulas differ by 2e-4 (root mean square) over this range, where the values are small enough for bf16 to
# distinguish them; x sigmoid(1.702 x), a third approximation in use, is off by 1e-2.
GELU_RANGE = (-4.0, -0.25, 2048)
# Of a product with float32 operands: those of bf16 and fp16 are rounded to 8 and 11 bits, and so is the result.
MAX_PRODUCT_ERROR = {"fp32": MAX_FP32_ERROR, "bf16": 8e-3, "fp16": 1e-3}
SAMPLED = (32, 64)  # rows and columns of a product, at most
MAX_GELU_ERROR = {"fp32": 2e-5, "bf16": 1e-3, "fp16": 1e-3}


def probe(backend: Backend, config: Config) -> dict[str, Any]:
    """Return the settings in effect, for the record.

    Raises:
        BackendUnavailable: the device does something else than requested.
    """
    return {
        # First, so that a backend's own report never replaces a probed value.
        **backend.effective_settings(),
        **_probe_matmul(backend, config.precision),
        "attention_kernel": _probe_attention(backend, config),
        **_probe_activation(backend, config),
        "threads": _probe_threads(backend),
        "interop_threads": torch.get_num_interop_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "adamw": config.track.adamw,
        "compiled": config.track.compile != "no",
        "compile": config.track.compile,
        **{operation: getattr(config.track, operation) for operation in OPERATIONS},
        "activation_memory_budget": config.track.activation_memory_budget,
        "track": config.track.name,
    }


@dataclass(frozen=True)
class ForwardObservation:
    """One forward pass of a training step, observed with hooks."""

    linear_dtypes: list[str]
    """Types in which linear layers compute; empty if the backend runs the model in a way that does not call hooks."""
    block_dtypes: list[str]
    """Types of the blocks' outputs, the sums that pass from block to block; empty like `linear_dtypes`."""
    product_error: float | None
    """Largest relative error of a linear layer's product, against float64 on the host."""
    product: str | None
    """The layer that has it."""
    activations: list[Sketch]
    """Outputs of the blocks and of the last norm, in order. The same sequence passes through every rank."""

    def to_settings(self) -> dict[str, Any]:
        """Return the effective settings that it shows, for the record."""
        return {
            "linear_output_dtypes": self.linear_dtypes or None,
            "block_output_dtypes": self.block_dtypes or None,
            "largest_product_error": self.product_error,
        }


def observe_forward(
    step: TrainStep, parallel_model: ParallelModel, sequences: torch.Tensor, precision: str, ranks: Ranks
) -> ForwardObservation:
    """Observe one forward pass of the step itself. Collective.

    Args:
        sequences: host int64 [1, seq_len + 1].

    Raises:
        RunFailed: linear layers compute in another type than requested, or less precisely than it allows.
    """
    model, dtypes = parallel_model.model, set[torch.dtype]()
    products: dict[str, tuple[torch.Tensor, ...]] = {}
    outputs: dict[int, torch.Tensor] = {}

    def observe_product(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            dtypes.add(output.dtype)
            if (sample := _sample_product(module, inputs[0], output)) is not None:
                products[name] = sample

        return hook

    def keep_output(number: int) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            outputs[number] = output.detach()[0]

        return hook

    hooks = [
        # Before tensor parallelism's own, which exchange the output.
        module.register_forward_hook(observe_product(name), prepend=True)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    hooks += [module.register_forward_hook(keep_output(number)) for number, module in model.numbered_layers().items()]
    try:
        step.evaluate(sequences)
    finally:
        for hook in hooks:
            hook.remove()
    names = _names_of(dtypes)
    # Not of the last norm: devices differ in the type of a norm's output.
    of_blocks = _names_of(output.dtype for number, output in outputs.items() if number < model.config.num_hidden_layers)
    # Not in the hooks: a backend may trace them.
    errors = {name: _product_error(*product) for name, product in products.items()}
    _check_products(names, errors, precision)
    worst = max(errors, key=lambda name: errors[name]) if errors else None
    parts = {f"activation {number}": parallel_model.as_part(output.float()) for number, output in outputs.items()}
    sketches = sketch_all({name: part for name, part in parts.items() if ranks.counts(part)}, ranks.gather)
    activations = [sketch for _, sketch in sorted(sketches.items(), key=lambda item: int(item[0].split()[1]))]
    return ForwardObservation(names, of_blocks, errors[worst] if worst else None, worst, activations)


def _names_of(dtypes: Iterable[torch.dtype]) -> list[str]:
    return sorted({str(dtype).removeprefix("torch.") for dtype in dtypes})


def _check_products(dtypes: list[str], errors: Mapping[str, float], precision: str) -> None:
    if dtypes and dtypes != [DTYPE_NAMES[precision]]:
        raise RunFailed(
            f"precision={precision} was requested, but the training step computes in {', '.join(dtypes)}; this is a "
            "bug in the backend: report it to its maintainers"
        )
    limit = MAX_PRODUCT_ERROR[product_format(precision)]
    for name, error in errors.items():
        if not error <= limit:
            raise RunFailed(
                f"precision={precision} was requested, but the product of layer {name} has a relative error of "
                f"{error:.1e}, expected at most {limit:.0e}: its operands are rounded further; unset the settings and "
                "environment variables that allow reduced precision"
            )


@torch.no_grad()
def _sample_product(
    module: torch.nn.Linear, inputs: torch.Tensor, output: torch.Tensor
) -> tuple[torch.Tensor, ...] | None:
    """Return copies of some rows of a linear layer's input, and of some rows and columns of weight, bias and output.

    None if this rank's output is not that of its own rows of the weight: where the ranks do not divide them, torch-npu
    cuts the weight by columns instead.
    """
    x, y = (local_tensor(tensor.detach()).flatten(0, -2) for tensor in (inputs, output))
    weight = local_tensor(module.weight.detach())
    if y.shape[1] != weight.shape[0]:
        return None
    rows, columns = (slice(None, None, -(-size // most)) for size, most in zip(y.shape, SAMPLED, strict=True))
    bias = torch.zeros(()) if module.bias is None else local_tensor(module.bias.detach())[columns]
    if any(placement.is_partial() for placement in getattr(output, "placements", ())):
        # A sum over the ranks of tensor parallelism, to which each adds an equal part of the bias.
        bias = bias / output.device_mesh.size()  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(part.clone() for part in (x[rows], weight[columns], bias, y[rows, columns]))


def _product_error(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, y: torch.Tensor) -> float:
    """Return the relative error of y against x weight^T + bias in float64, in the 2-norm."""
    x, weight, bias, y = (part.cpu().double() for part in (x, weight, bias, y))
    exact = x @ weight.T + bias
    return float((y - exact).norm() / exact.norm()) if exact.any() else float(y.norm())


def _autocast(backend: Backend, precision: str) -> Any:
    dtype = autocast_dtype(precision)
    return nullcontext() if dtype is None else torch.autocast(backend.device().type, dtype=dtype)


def _normal(shape: tuple[int, ...], name: str) -> torch.Tensor:
    count = int(torch.Size(shape).numel())
    chunks = [torch.from_numpy(chunk) for chunk in approximately_normal(stream_key("probe", name), count, 1.0)]
    return torch.cat(chunks).view(shape)


def _probe_matmul(backend: Backend, precision: str) -> dict[str, Any]:
    left, right = (_normal((MATMUL_SIZE, MATMUL_SIZE), name) for name in ("left", "right"))
    exact = left.double() @ right.double()
    with _autocast(backend, precision):
        product = left.to(backend.device()) @ right.to(backend.device())
    dtype = str(product.dtype).removeprefix("torch.")
    error = float((product.cpu().double() - exact).norm() / exact.norm())
    expected = DTYPE_NAMES[precision]
    if dtype != expected:
        raise BackendUnavailable(
            f"backend {backend.name}: precision={precision} was requested, but a matrix product has type "
            f"{dtype}; this device or driver lacks that precision: choose another"
        )
    if precision == "fp32" and not error <= MAX_FP32_ERROR:
        raise BackendUnavailable(
            f"backend {backend.name}: precision=fp32 was requested, but a matrix product has a relative error of "
            f"{error:.1e}, as with TF32, HF32 or bf16 inputs; unset the environment variables that allow reduced "
            "precision (ONEDNN_DEFAULT_FPMATH_MODE and the like)"
        )
    return {"matmul_dtype": dtype, "matmul_relative_error": error}


def _probe_attention(backend: Backend, config: Config) -> str:
    """Return the autograd name of the attention that runs at this workload's shape and precision."""
    model, length = config.model, config.workload.seq_len
    size = head_dim(model)
    with _autocast(backend, config.precision):
        q, k, v = (
            _normal((1, heads, length, size), name).to(backend.device()).requires_grad_()
            for name, heads in (
                ("q", model.num_attention_heads),
                ("k", num_key_value_heads(model)),
                ("v", num_key_value_heads(model)),
            )
        )
        dtype = autocast_dtype(config.precision) or torch.float32
        mixed = causal_attention(*(x.to(dtype) for x in (q, k, v)))
    return type(mixed.grad_fn).__name__


def _probe_activation(backend: Backend, config: Config) -> dict[str, Any]:
    """Return which GELU the device computes: some devices have only one and use it for both without an error."""
    requested = config.model.activation
    if requested == "swiglu":
        return {}
    dtype = autocast_dtype(config.precision) or torch.float32
    x = torch.linspace(*GELU_RANGE).to(dtype)
    found = activate(x.to(backend.device()), requested).cpu().double()
    exact = {name: activate(x.double(), name) for name in ("gelu", "gelu_tanh")}
    errors = {name: float((found - values).square().mean().sqrt()) for name, values in exact.items()}
    nearest = min(errors, key=lambda name: errors[name])
    if not errors[nearest] <= MAX_GELU_ERROR[product_format(config.precision)]:
        raise BackendUnavailable(
            f"backend {backend.name}: model.activation={requested} was requested, but the device computes neither "
            f"GELU nor its tanh approximation (error {errors[requested]:.1e}); use model.activation=swiglu"
        )
    if nearest != requested:
        raise BackendUnavailable(
            f"backend {backend.name}: model.activation={requested} was requested, but this device computes "
            f"{nearest} for either; set model.activation={nearest}, here and on the other device"
        )
    return {"activation": nearest, "activation_error": errors[nearest]}


def _probe_threads(backend: Backend) -> int:
    expected, found = backend.threads(), torch.get_num_threads()
    if expected != found:
        raise BackendUnavailable(f"backend.threads: found {counted(found, 'thread')} in torch, expected {expected}")
    return found
