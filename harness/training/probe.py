"""Probes of the settings in effect: a run whose device does something else than requested must not start."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from harness.backends.base import Backend
from harness.backends.step import DTYPE_NAMES, TrainStep, autocast_dtype
from harness.config import OPERATIONS, Config, num_key_value_heads
from harness.errors import BackendUnavailable, RunFailed
from harness.workload.model import activate, causal_attention
from harness.workload.philox import approximately_normal, stream_key

MATMUL_SIZE = 256
# A float32 product of two 256 x 256 normal matrices has a relative error of about 2e-7. TF32, HF32 and fp16 inputs
# have 11 bits (about 3e-4), bf16 inputs 8 bits (about 2e-3): the bound is more than a decade from either side.
MAX_FP32_ERROR = 1e-5
# GELU's two formulas differ by 2e-4 (root mean square) over this range, where the values are small enough for bf16 to
# distinguish them; x sigmoid(1.702 x), a third approximation in use, is off by 1e-2.
GELU_RANGE = (-4.0, -0.25, 2048)
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


def observe_dtypes(
    step: TrainStep, model: torch.nn.Module, sequences: torch.Tensor, precision: str
) -> list[str] | None:
    """Return the types in which the step's own linear layers compute, observed with hooks in one forward pass.

    None if the backend runs the model in a way that does not call hooks.

    Args:
        sequences: host int64 [1, seq_len + 1].

    Raises:
        RunFailed: they compute in another precision than requested.
    """
    seen: set[torch.dtype] = set()

    def add_dtype(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        seen.add(output.dtype)

    hooks = [part.register_forward_hook(add_dtype) for part in model.modules() if isinstance(part, torch.nn.Linear)]
    try:
        step.evaluate(sequences)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        return None
    names = sorted(str(dtype).removeprefix("torch.") for dtype in seen)
    if names != [DTYPE_NAMES[precision]]:
        raise RunFailed(
            f"precision={precision} was requested, but the training step computes in {', '.join(names)}; this is a bug "
            "in the backend: report it to its maintainers"
        )
    return names


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
    size = model.hidden_size // model.num_attention_heads
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
    if not errors[nearest] <= MAX_GELU_ERROR[config.precision]:
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
        raise BackendUnavailable(f"backend.threads: found {found} threads in torch, expected {expected}")
    return found
