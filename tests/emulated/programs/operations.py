"""Run every operation of the table on the NPU and on the CPU, and compare the results to the bit.

Prints {"results": {name: null or what differs}, "launched": [...], "kernels": [...]}.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

# Private functions of torch's own optimizers and FSDP, whose kernels are tested here too.
PRIVATE: Any = torch
Operation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]


def _masked_fill(a: torch.Tensor, b: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    return a.clone().masked_fill_(b > 0, -1.0)


def _index_put(a: torch.Tensor, b: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    a = a.clone()
    a[i] = 7.0
    return a


def _by_vocabulary(a: torch.Tensor, b: torch.Tensor, i: torch.Tensor) -> list[torch.Tensor]:
    """Return what DTensor's embedding and loss compute of a vocabulary that is cut over ranks."""
    outside = (i < 2) | (i >= 5)
    masked = i.clone() - 2
    masked[outside] = 0
    rows, picked, loss = a[masked], a.clone(), torch.where(i != -100, b[0, 0], 0)
    rows[outside, :] = 0.0
    picked[torch.arange(len(i), device=i.device), masked] = outside.to(a.dtype) - 1.0
    return [masked, rows, picked, loss / (i != -100).sum().to(a)]


def _in_place(change: Callable[[torch.Tensor, torch.Tensor], object]) -> Operation:
    def operation(a: torch.Tensor, b: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        a = a.clone()
        change(a, b)
        return a

    return operation


def _foreach(name: str, *others: Any) -> Operation:
    function = getattr(PRIVATE, f"_foreach_{name}")

    def operation(a: torch.Tensor, b: torch.Tensor, i: torch.Tensor) -> list[torch.Tensor]:
        known = {"b": [b, b + 1.0], "c": [b * b + 1.0, b * b + 2.0], "zero": torch.tensor(0.5)}
        return function(
            [a, a * 2.0], *(known.get(other, other) if isinstance(other, str) else other for other in others)
        )

    return operation


def _gradient(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operation:
    def operation(a: torch.Tensor, b: torch.Tensor, i: torch.Tensor) -> list[torch.Tensor]:
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        return list(torch.autograd.grad(function(a, b).square().sum(), [a, b]))

    return operation


OPERATIONS: dict[str, Operation] = {
    # one tensor
    "sqrt": lambda a, b, i: a.abs().sqrt(),
    "rsqrt": lambda a, b, i: a.abs().rsqrt(),
    "reciprocal": lambda a, b, i: a.reciprocal(),
    "exp": lambda a, b, i: a.exp(),
    "log": lambda a, b, i: a.abs().log(),
    "tanh": lambda a, b, i: a.tanh(),
    "sigmoid": lambda a, b, i: a.sigmoid(),
    "neg": lambda a, b, i: -a,
    "ceil": lambda a, b, i: a.ceil(),
    "isfinite": lambda a, b, i: a.isfinite(),
    "isneginf": lambda a, b, i: torch.where(a > 0, a, -float("inf")).isneginf(),
    "bitwise_not": lambda a, b, i: ~i,
    "in place": _in_place(lambda a, b: a.abs_().sqrt_().exp_().log_().neg_().tanh_()),
    "in place reciprocals": _in_place(lambda a, b: a.abs_().rsqrt_().reciprocal_()),
    # two
    "add": lambda a, b, i: a + b,
    "add scaled": lambda a, b, i: torch.add(a, b, alpha=0.5),
    "add a number": lambda a, b, i: a + 1.5,
    "sub": lambda a, b, i: a - b,
    "sub a number": lambda a, b, i: a - 1.5,
    "number minus": lambda a, b, i: 1.5 - a,
    "mul": lambda a, b, i: a * b,
    "mul a number": lambda a, b, i: a * 1.5,
    "div": lambda a, b, i: a / b,
    "div by a number": lambda a, b, i: a / 3.0,
    "in place with tensors": _in_place(lambda a, b: a.add_(b).sub_(b, alpha=0.5).mul_(b).div_(b)),
    "in place with numbers": _in_place(lambda a, b: a.add_(1.5).sub_(0.25).mul_(3.0).div_(7.0)),
    "pow": lambda a, b, i: a.abs() ** b,
    "square": lambda a, b, i: a**2,
    "number to the power": lambda a, b, i: 2.0**a,
    "maximum": lambda a, b, i: torch.maximum(a, b),
    "minimum": lambda a, b, i: torch.minimum(a, b),
    "comparisons": lambda a, b, i: [a == b, a != b, a < b, a <= b, a > b, a >= b],
    "comparisons with numbers": lambda a, b, i: [a == 0.5, a != 0.5, a < 0.5, a <= 0.5, a > 0.5, a >= 0.5],
    "logical": lambda a, b, i: [(a > 0).logical_and(b > 0), (a > 0).logical_or(b > 0)],
    "bitwise": lambda a, b, i: [(a > 0) & (b > 0), (a > 0) | (b > 0)],
    "bitwise in place": lambda a, b, i: (a > 0).bitwise_and_(b > 0),
    # three, limits, choices
    "addcmul": lambda a, b, i: torch.addcmul(a, a, b, value=0.5),
    "addcdiv": lambda a, b, i: torch.addcdiv(a, a, b, value=0.5),
    "addcmul in place": _in_place(lambda a, b: a.addcmul_(b, b, value=0.5)),
    "addcdiv in place": _in_place(lambda a, b: a.addcdiv_(b, b, value=0.5)),
    "lerp": lambda a, b, i: a.lerp(b, 0.3),
    "lerp by a tensor": lambda a, b, i: a.lerp(b, b.sigmoid()),
    "lerp in place": _in_place(lambda a, b: a.lerp_(b, 0.3)),
    "lerp in place by a tensor": _in_place(lambda a, b: a.lerp_(b, b.sigmoid())),
    "clamp": lambda a, b, i: a.clamp(-0.5, 0.5),
    "clamp below": lambda a, b, i: a.clamp(min=0.0),
    "clamp above": lambda a, b, i: a.clamp(max=0.0),
    "where": lambda a, b, i: torch.where(a > b, a, b),
    "masked_fill": _masked_fill,
    # activations
    "gelu": lambda a, b, i: F.gelu(a, approximate="tanh"),
    "gelu gradient": _gradient(lambda a, b: F.gelu(a, approximate="tanh") * b),
    "silu": lambda a, b, i: F.silu(a),
    "silu gradient": _gradient(lambda a, b: F.silu(a) * b),
    # copies, fills, shapes
    "cast": lambda a, b, i: a.bfloat16().half().float(),
    "to int": lambda a, b, i: a.long(),
    "transpose": lambda a, b, i: a.t().contiguous(),
    "fills": lambda a, b, i: [torch.zeros_like(a), torch.ones_like(a), torch.full_like(a, 3.0)],
    "fill by a tensor": _in_place(lambda a, b: a.fill_(b[0, 0])),
    "arange": lambda a, b, i: torch.arange(2, 11, 3, device=a.device),
    "cat": lambda a, b, i: torch.cat([a, b], 1),
    "stack": lambda a, b, i: torch.stack([a, b]),
    "chunk_cat": lambda a, b, i: PRIVATE._chunk_cat([a, b], 0, 2),
    "triu": lambda a, b, i: a.triu(),
    "tril": lambda a, b, i: a.tril(),
    "pad": lambda a, b, i: F.pad(a, (1, 2), value=0.5),
    "repeat": lambda a, b, i: a.repeat(2, 1),
    # products, reductions
    "mm": lambda a, b, i: torch.mm(a, b.t()),
    "matmul": lambda a, b, i: a @ b.t(),
    "bmm": lambda a, b, i: torch.bmm(a[None], b.t()[None]),
    "addmm": lambda a, b, i: torch.addmm(b[:, :1], a, b.t()),
    "baddbmm": lambda a, b, i: torch.baddbmm(b[None, :, :1], a[None], b.t()[None]),
    "sum": lambda a, b, i: a.sum(),
    "sum of rows": lambda a, b, i: a.sum(1, keepdim=True),
    "mean": lambda a, b, i: a.mean(0),
    "var": lambda a, b, i: a.var(1),
    "amax": lambda a, b, i: a.amax(1),
    "max and min": lambda a, b, i: [a.max(), a.min()],
    "max of rows": lambda a, b, i: list(a.max(1)),
    "argmax": lambda a, b, i: a.argmax(1),
    "all and any": lambda a, b, i: [(a > 0).all(), (a > 0).any()],
    "equal": lambda a, b, i: torch.tensor([torch.equal(a, a.clone()), torch.equal(a, b)]),
    "norm": lambda a, b, i: torch.linalg.vector_norm(a),
    # indices
    "rows": lambda a, b, i: a[i],
    "index_put": _index_put,
    "parts of a vocabulary": _by_vocabulary,
    "gather": lambda a, b, i: a.gather(1, i[:, None].expand(4, 2).clamp(max=4)),
    "gather gradient": _gradient(lambda a, b: a.gather(1, torch.zeros_like(b, dtype=torch.int64)) * b),
    "softmax in another type": lambda a, b, i: a.bfloat16().softmax(-1, dtype=torch.float32),
    "topk": lambda a, b, i: list(a.topk(2)),
    "topk gradient": _gradient(lambda a, b: a.topk(2).values * b[:, :2]),
    "stable sort": lambda a, b, i: (a > 0).float().argsort(dim=1, stable=True),
    "index_select gradient": _gradient(
        lambda a, b: a.index_select(0, torch.zeros_like(b[:, 0], dtype=torch.int64)) * b
    ),
    "index_select": lambda a, b, i: a.index_select(0, i),
    "masked": lambda a, b, i: a[a > 0],
    "masked_select": lambda a, b, i: a.masked_select(b > 0),
    "nonzero": lambda a, b, i: (a > 0).nonzero(),
    "embedding": lambda a, b, i: F.embedding(i, a),
    "embedding gradient": lambda a, b, i: torch.autograd.grad(
        F.embedding(i, w := a.detach().requires_grad_()).square().sum(), w
    )[0],
    # norms, softmax, loss, attention
    "layer_norm": lambda a, b, i: F.layer_norm(a, (5,), b[0], b[1]),
    "layer_norm gradient": _gradient(lambda a, b: F.layer_norm(a, (5,), b[0], b[1])),
    "rms_norm": lambda a, b, i: F.rms_norm(a, (5,), b[0], 1e-5),
    "softmax": lambda a, b, i: a.softmax(-1),
    "softmax gradient": _gradient(lambda a, b: a.softmax(-1) * b),
    "log_softmax gradient": _gradient(lambda a, b: a.log_softmax(-1) * b),
    "cross_entropy": lambda a, b, i: F.cross_entropy(a[:4], i.clamp(max=4)),
    "cross_entropy gradient": lambda a, b, i: torch.autograd.grad(
        F.cross_entropy(x := a[:4].detach().requires_grad_(), i.clamp(max=4)), x
    )[0],
    # lists
    "foreach add": _foreach("add", 1.5),
    "foreach add each": _foreach("add", [1.5, 2.5]),
    "foreach add lists": _foreach("add", "b"),
    "foreach sub": _foreach("sub", 1.5),
    "foreach sub each": _foreach("sub", [1.5, 2.5]),
    "foreach sub lists": _foreach("sub", "b"),
    "foreach mul": _foreach("mul", 1.5),
    "foreach mul each": _foreach("mul", [1.5, 2.5]),
    "foreach mul lists": _foreach("mul", "b"),
    "foreach div": _foreach("div", 1.5),
    "foreach div each": _foreach("div", [1.5, 2.5]),
    "foreach div lists": _foreach("div", "b"),
    "foreach maximum lists": _foreach("maximum", "b"),
    "foreach pow": _foreach("pow", 2.0),
    "foreach pow each": _foreach("pow", [2.0, 3.0]),
    "foreach neg": _foreach("neg"),
    "foreach sqrt": lambda a, b, i: list(PRIVATE._foreach_sqrt([a.abs(), b.abs()])),
    "foreach reciprocal": _foreach("reciprocal"),
    "foreach lerp": _foreach("lerp", "b", 0.3),
    "foreach addcmul": _foreach("addcmul", "b", "c", 0.5),
    "foreach addcdiv": _foreach("addcdiv", "b", "c", 0.5),
    "foreach norm": _foreach("norm"),
    "foreach zero": _in_place(lambda a, b: PRIVATE._foreach_zero_([a])),
    "foreach copy": _in_place(lambda a, b: PRIVATE._foreach_copy_([a], [b])),
}


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    return a, b, torch.randint(0, 6, (4,), generator=generator)


def difference(expected: Any, found: Any) -> str | None:
    """Return how two results differ, or None: shape, type and every bit are to be the same."""
    if isinstance(expected, (list, tuple)):
        if len(expected) != len(found):
            return f"{len(found)} results instead of {len(expected)}"
        return next((said for pair in zip(expected, found, strict=True) if (said := difference(*pair))), None)
    found = found.cpu()
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        return f"{found.dtype} {tuple(found.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
    if torch.equal(expected, found):
        return None
    return f"off by {float((expected.double() - found.double()).abs().max()):.1e}"


def main(_: object = ()) -> None:
    import torch_npu  # type: ignore[import-not-found] # noqa: F401

    from tests.cann_emulator import control

    host = inputs()
    device = [tensor.to("npu:0") for tensor in host]
    results: dict[str, str | None] = {}
    for name, operation in OPERATIONS.items():
        try:
            results[name] = difference(operation(*host), operation(*device))
        except Exception as error:  # noqa: BLE001 (told by name; the others are still to be asked)
            results[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    print(json.dumps({"results": results, "launched": control.launched(), "kernels": control.kernels()}))


if __name__ == "__main__":
    main()
