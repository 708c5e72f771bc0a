"""Tuned kernels equal the stock ones in values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harness.backends import kernels
from harness.backends.kernels import ChunkedCrossEntropy, blocked_attention
from harness.workload.model import causal_attention, mean_cross_entropy

WIDTH, CLASSES = 24, 61


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the few tokens of a test several chunks and blocks, the last one short."""
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 1)
    monkeypatch.setattr(kernels, "CHUNK_MULTIPLE", 8)
    monkeypatch.setattr(kernels, "MIN_QUERY_BLOCK", 8)


def loss_and_gradients(
    kernel: Callable[..., torch.Tensor], precision: str, tokens: int = 21
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    head = torch.nn.Linear(WIDTH, CLASSES, bias=False)
    hidden = torch.randn(3, tokens, WIDTH, requires_grad=True)
    targets = torch.randint(0, CLASSES, (3, tokens))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = kernel(head, hidden, targets)
    # As with accumulation: the loss is scaled before it is differentiated.
    (loss / 4).backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    return loss.detach(), hidden.grad, head.weight.grad


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return float((found.float() - expected.float()).norm() / expected.float().norm()) < tolerance


@pytest.mark.parametrize("classes", [CLASSES, 64])
@pytest.mark.parametrize("tokens", [1, 8, 21])
def test_chunked_cross_entropy_in_float32(tokens: int, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a vocabulary that needs rows of padding, and with one that does not."""
    monkeypatch.setattr(f"{__name__}.CLASSES", classes)
    found = loss_and_gradients(ChunkedCrossEntropy(), "fp32", tokens)
    expected = loss_and_gradients(mean_cross_entropy, "fp32", tokens)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_chunked_cross_entropy_in_bf16_is_as_near_to_the_truth_as_the_stock_one() -> None:
    truth = loss_and_gradients(mean_cross_entropy, "fp32")
    stock = loss_and_gradients(mean_cross_entropy, "bf16")
    found = loss_and_gradients(ChunkedCrossEntropy(), "bf16")
    for mine, its, exact in zip(found, stock, truth, strict=True):
        assert mine.dtype == its.dtype
        assert close(mine, exact, 1.3 * float((its - exact).norm() / exact.norm()))


def test_a_certain_loss_has_an_exact_gradient() -> None:
    """The gradient of a target whose probability is nearly 1 is a small difference."""
    head = torch.nn.Linear(8, 64, bias=False)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[3] = 1.0
    hidden = torch.full((1, 5, 8), 1.25, requires_grad=True)
    targets = torch.full((1, 5), 3)
    gradients = []
    for kernel, dtype in ((ChunkedCrossEntropy(), torch.bfloat16), (mean_cross_entropy, torch.float32)):
        hidden.grad = head.weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            kernel(head, hidden, targets).backward()
        assert hidden.grad is not None
        assert head.weight.grad is not None
        gradients.append((hidden.grad, head.weight.grad))
    for found, expected in zip(*gradients, strict=True):
        assert close(found, expected, 0.01)


def test_without_gradients_there_is_only_the_loss() -> None:
    head = torch.nn.Linear(WIDTH, CLASSES, bias=False)
    hidden, targets = torch.randn(2, 9, WIDTH), torch.randint(0, CLASSES, (2, 9))
    with torch.no_grad():
        loss = ChunkedCrossEntropy()(head, hidden, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, mean_cross_entropy(head, hidden, targets).detach())


@pytest.mark.parametrize("classes", [CLASSES, 64])
def test_products_are_aligned(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    kernel = ChunkedCrossEntropy()
    inner = kernel._work.loss_and_gradient
    record_shape = lambda z, t, v: (seen.append(z.shape), inner(z, t, v))[1]  # noqa: E731
    monkeypatch.setattr(kernel, "_work", kernel._work._replace(loss_and_gradient=record_shape))
    kernel(torch.nn.Linear(WIDTH, classes, bias=False), torch.randn(1, 8, WIDTH), torch.zeros(1, 8, dtype=torch.long))
    assert seen == [torch.Size([8, 64])]


def test_never_more_logits_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inner = kernels._loss_and_gradient
    monkeypatch.setattr(kernels, "_loss_and_gradient", lambda z, t, v: (seen.append(len(z)), inner(z, t, v))[1])
    loss_and_gradients(ChunkedCrossEntropy(), "fp32")
    assert seen == [8] * 7 + [7]


def test_a_head_in_bf16_has_no_other_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused accumulation gives the head a copy in bf16 of its weight; the sum of its gradients is float32 anyway."""
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 1)
    monkeypatch.setattr(kernels, "CHUNK_MULTIPLE", 1)
    seen: dict[torch.dtype, list[int]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        kernel = ChunkedCrossEntropy()
        inner, counts = kernel._work.loss_and_gradient, seen.setdefault(dtype, [])
        count = lambda z, t, v, counts=counts, inner=inner: (counts.append(len(z)), inner(z, t, v))[1]  # noqa: E731
        monkeypatch.setattr(kernel, "_work", kernel._work._replace(loss_and_gradient=count))
        head = torch.nn.Linear(WIDTH, 64, bias=False, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            kernel(head, torch.randn(1, 40, WIDTH), torch.zeros(1, 40, dtype=torch.long))
    assert len(seen[torch.float32]) > 1
    assert seen[torch.bfloat16] == seen[torch.float32]


def attention_in_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As transformers' `eager` attention computes it."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(2, 3)) * q.shape[3] ** -0.5
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    shares = torch.softmax(scores.masked_fill(future, -torch.inf), dim=3, dtype=torch.float32)
    return shares.to(q.dtype) @ v


def attention_and_gradients(kernel: Callable[..., torch.Tensor], length: int, kv_heads: int,
                            dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:  # fmt: skip
    torch.manual_seed(1)
    shapes = [(2, heads, length, 8) for heads in (4, kv_heads, kv_heads)]
    # The same numbers in each dtype.
    inputs = [torch.randn(shape).bfloat16().to(dtype).requires_grad_() for shape in shapes]
    mixed = kernel(*inputs)
    mixed.backward(torch.linspace(-1, 1, mixed.numel()).bfloat16().to(dtype).view_as(mixed))
    return [mixed.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_blocked_attention(length: int, kv_heads: int) -> None:
    results = [attention_and_gradients(kernel, length, kv_heads) for kernel in (blocked_attention, causal_attention)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_blocked_attention_in_bf16_is_as_near_to_the_truth_as_whole_products(kv_heads: int) -> None:
    truth = attention_and_gradients(causal_attention, 61, kv_heads, torch.float64)
    stock = attention_and_gradients(attention_in_products, 61, kv_heads, torch.bfloat16)
    found = attention_and_gradients(blocked_attention, 61, kv_heads, torch.bfloat16)
    for mine, its, exact in zip(found, stock, truth, strict=True):
        assert mine.dtype == its.dtype
        assert close(mine, exact, 1.3 * float((its - exact).norm() / exact.norm()))


def test_blocked_attention_of_normalized_queries_under_autocast() -> None:
    """A norm of queries and keys gives float32, which autocast casts for each product."""
    v = torch.randn(1, 2, 9, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q, k = (torch.randn(1, 2, 9, 8, requires_grad=True) for _ in range(2))
        mixed = blocked_attention(q, k, v.bfloat16())
    mixed.sum().backward()
    assert mixed.dtype == torch.bfloat16
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in (q, k))


def test_blocked_attention_does_not_see_the_future() -> None:
    q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
    before = blocked_attention(q, k, v)
    k[:, :, 13:], v[:, :, 13:] = 100.0, -100.0
    assert torch.equal(blocked_attention(q, k, v)[:, :, :13], before[:, :, :13])
