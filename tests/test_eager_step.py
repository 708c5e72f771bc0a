"""The step of eager devices: gradient accumulation equals one big batch, clipping and learning rate take effect, fp16
overflows are skipped and counted, and an evaluation changes no state."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from harness.backends.eager import EagerStep
from harness.composition import load
from harness.config import Config
from harness.workload.data import open_dataset
from harness.workload.initialization import build_model
from harness.workload.optimizer import build_optimizer
from tests.tiny import TINY

CPU = torch.device("cpu")
NO_CLIP = 1e9


@pytest.fixture(scope="module")
def config() -> Config:
    return load([*TINY])


@pytest.fixture(scope="module")
def batch(config: Config) -> torch.Tensor:
    """Eight sequences: int64 [8, 33]."""
    return torch.from_numpy(open_dataset(config).train(0, 8))


class Quadratic(nn.Module):
    """Loss = scale * (mean of the sequences) * sum(weights): its gradient is known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        return sequences.float().mean() * self.weight.sum()


def transformer_step(config: Config, precision: str = "fp32", clip: float = 1.0) -> tuple[nn.Module, EagerStep]:
    model = build_model(config.model, config.seed, CPU)
    optimizer = build_optimizer(model, config.workload, config.track)
    return model, EagerStep(model, optimizer, CPU, precision, clip)


def quadratic_step(precision: str = "fp32", clip: float = NO_CLIP) -> tuple[Quadratic, EagerStep]:
    """Plain gradient descent, so that an update is the learning rate times the gradient."""
    model = Quadratic()
    return model, EagerStep(model, torch.optim.SGD(model.parameters(), lr=0.0), CPU, precision, clip)


def adam_step(precision: str) -> tuple[Quadratic, EagerStep]:
    model = Quadratic()
    return model, EagerStep(model, torch.optim.AdamW(model.parameters(), lr=0.0), CPU, precision, NO_CLIP)


def sequences(value: float) -> torch.Tensor:
    return torch.full((1, 2), value, dtype=torch.float64)


class TestAccumulation:
    @pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
    def test_micro_batches_equal_one_big_batch(
        self, config: Config, batch: torch.Tensor, micro_batch_size: int
    ) -> None:
        whole_model, whole = transformer_step(config)
        cut_model, cut = transformer_step(config)
        for _ in range(3):
            one = whole([batch], 0.01)
            many = cut(batch.split(micro_batch_size), 0.01)
            assert float(many.loss) == pytest.approx(float(one.loss), rel=1e-5)
            assert float(many.gradient_norm) == pytest.approx(float(one.gradient_norm), rel=1e-4)
        for expected, found in zip(whole_model.parameters(), cut_model.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)

    def test_loss_is_the_mean_before_the_update(self, config: Config, batch: torch.Tensor) -> None:
        model, step = transformer_step(config)
        with torch.no_grad():
            expected = [float(model(part)) for part in batch.split(2)]
        assert float(step(batch.split(2), 0.01).loss) == pytest.approx(sum(expected) / 4, rel=1e-6)

    def test_gradients_do_not_leak_into_the_next_step(self) -> None:
        model, step = quadratic_step()
        norms = [float(step([sequences(1.0)], 0.0).gradient_norm) for _ in range(3)]
        assert norms == pytest.approx([2**0.5] * 3)
        assert model.weight.grad is None


class TestUpdate:
    def test_learning_rate_is_the_one_given(self) -> None:
        model, step = quadratic_step()
        step([sequences(2.0)], 0.25)
        assert model.weight.tolist() == [3.0 - 0.25 * 2.0, 4.0 - 0.25 * 2.0]
        step([sequences(2.0)], 0.0)
        assert model.weight.tolist() == [2.5, 3.5]
        step([sequences(2.0)], 1.0)
        assert model.weight.tolist() == [0.5, 1.5]

    def test_every_parameter_group_gets_it(self, config: Config, batch: torch.Tensor) -> None:
        model, step = transformer_step(config)
        before = copy.deepcopy(dict(model.named_parameters()))
        step([batch], 0.01)
        unmoved = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
        assert unmoved == []

    def test_a_large_gradient_is_scaled_down_to_the_clip_norm(self) -> None:
        model, step = quadratic_step(clip=1.0)
        output = step([sequences(30.0)], 1.0)
        assert float(output.gradient_norm) == pytest.approx(30.0 * 2**0.5), "the norm before clipping"
        moved = torch.tensor([3.0, 4.0]) - model.weight.detach()
        assert float(moved.norm()) == pytest.approx(1.0, rel=1e-4)

    def test_a_small_gradient_is_left_alone(self) -> None:
        model, step = quadratic_step(clip=100.0)
        step([sequences(2.0)], 1.0)
        assert model.weight.tolist() == [1.0, 2.0]


class TestPrecision:
    @pytest.mark.parametrize(
        ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
    )
    def test_matrix_products_run_in_it(self, precision: str, dtype: torch.dtype) -> None:
        seen: list[torch.dtype] = []

        class Product(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(2, 2))

            def forward(self, sequences: torch.Tensor) -> torch.Tensor:
                product = sequences.float() @ self.weight
                seen.append(product.dtype)
                return product.float().mean()

        model = Product()
        step = EagerStep(model, torch.optim.AdamW(model.parameters()), CPU, precision, NO_CLIP)
        step([sequences(1.0)], 0.1)
        step.evaluate(sequences(1.0))
        assert seen == [dtype, dtype], "training and evaluation alike"
        assert model.weight.dtype == torch.float32

    def test_losses_of_all_precisions_agree(self, config: Config, batch: torch.Tensor) -> None:
        losses = {}
        for precision in ("fp32", "bf16", "fp16"):
            _, step = transformer_step(config, precision)
            losses[precision] = [float(step(batch.split(4), 0.01).loss) for _ in range(4)]
        assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
        assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.01)

    def test_fp16_scaling_changes_neither_norm_nor_update(self) -> None:
        plain_model, plain = adam_step("fp32")
        scaled_model, scaled = adam_step("fp16")
        one, two = plain([sequences(0.5)] * 2, 0.1), scaled([sequences(0.5)] * 2, 0.1)
        assert float(two.loss) == pytest.approx(float(one.loss))
        assert float(two.gradient_norm) == pytest.approx(float(one.gradient_norm))
        torch.testing.assert_close(scaled_model.weight, plain_model.weight)


class TestOverflow:
    # Finite in float32, infinite once the loss scaler (65536 at first) has multiplied it.
    TOO_LARGE = 1e35

    def run(self, step: EagerStep, values: Sequence[float]) -> None:
        for value in values:
            step([sequences(value)], 0.1)

    def test_an_overflowing_update_is_skipped_and_counted(self) -> None:
        model, step = adam_step("fp16")
        self.run(step, [1.0])
        assert step.skipped_steps() == 0
        before = model.weight.detach().clone()
        self.run(step, [self.TOO_LARGE])
        assert torch.equal(model.weight, before)
        assert step.skipped_steps() == 1
        self.run(step, [1.0, 1.0])
        assert not torch.equal(model.weight, before)
        assert step.skipped_steps() == 1

    def test_overflows_before_the_first_update_are_counted_too(self) -> None:
        model, step = adam_step("fp16")
        self.run(step, [self.TOO_LARGE, self.TOO_LARGE])
        assert step.skipped_steps() == 2
        assert model.weight.tolist() == [3.0, 4.0]

    def test_an_overflow_says_so_in_the_norm(self) -> None:
        _, step = adam_step("fp16")
        assert not torch.isfinite(step([sequences(self.TOO_LARGE)], 0.1).gradient_norm)

    def test_fused_adamw_is_counted_alike(self) -> None:
        """It takes the scaler's verdict inside its own kernel, so its step counter is another code path."""
        model = Quadratic()
        step = EagerStep(model, torch.optim.AdamW(model.parameters(), lr=0.0, fused=True), CPU, "fp16", NO_CLIP)
        self.run(step, [1.0, self.TOO_LARGE, 1.0])
        assert step.skipped_steps() == 1

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_other_precisions_skip_nothing(self, precision: str) -> None:
        _, step = adam_step(precision)
        self.run(step, [1.0, 1.0])
        assert step.skipped_steps() == 0


class TestEvaluation:
    def test_equals_the_models_loss_without_gradient_or_update(self, config: Config, batch: torch.Tensor) -> None:
        model, step = transformer_step(config)
        before = copy.deepcopy(model.state_dict())
        loss = step.evaluate(batch)
        assert not loss.requires_grad
        assert loss.grad_fn is None
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        with torch.no_grad():
            assert float(loss) == pytest.approx(float(model(batch)), rel=1e-6)

    def test_runs_in_evaluation_mode_and_goes_back(self) -> None:
        modes: list[bool] = []

        class Watched(Quadratic):
            def forward(self, sequences: torch.Tensor) -> torch.Tensor:
                modes.append(self.training)
                return super().forward(sequences)

        model = Watched()
        step = EagerStep(model, torch.optim.SGD(model.parameters(), lr=0.0), CPU, "fp32", NO_CLIP)
        step([sequences(1.0)], 0.0)
        step.evaluate(sequences(1.0))
        step([sequences(1.0)], 0.0)
        assert modes == [True, False, True]

    def test_does_not_count_as_a_step(self, config: Config, batch: torch.Tensor) -> None:
        straight_model, straight = transformer_step(config)
        evaluated_model, after_eval = transformer_step(config)
        for _ in range(2):
            straight([batch], 0.01)
            after_eval([batch], 0.01)
            after_eval.evaluate(batch)
        for expected, found in zip(straight_model.parameters(), evaluated_model.parameters(), strict=True):
            assert torch.equal(found, expected)


def test_frozen_parameters_are_left_out() -> None:
    model = Quadratic()
    model.frozen = nn.Parameter(torch.tensor([1.0]), requires_grad=False)
    step = EagerStep(model, torch.optim.SGD([model.weight], lr=0.0), CPU, "fp32", NO_CLIP)
    assert float(step([sequences(1.0)], 0.1).gradient_norm) == pytest.approx(2**0.5)
    assert model.frozen.tolist() == [1.0]


class Bad(nn.Module):
    """A model whose loss is not a number for sequences that begin with a nine."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        scale = float("nan") if sequences[0, 0] == 9 else 1.0
        return scale * self.weight.sum()


class TestSkipping:
    def step(self, *, skip: bool) -> tuple[Bad, torch.optim.Optimizer, EagerStep]:
        model = Bad()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, optimizer, EagerStep(model, optimizer, CPU, "fp32", NO_CLIP, skip_nonfinite=skip)

    def test_a_bad_step_leaves_model_and_optimizer_as_they_were(self) -> None:
        good, bad = torch.ones(1, 3, dtype=torch.int64), torch.full((1, 3), 9)
        model, optimizer, step = self.step(skip=True)
        step([good], 0.1)
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
        assert step([bad], 0.1).loss.isnan()
        assert str((model.state_dict(), optimizer.state_dict()["state"])) == str(before)
        assert step.skipped_steps() == 1
        step([good], 0.1)
        assert step.skipped_steps() == 1
        assert model.weight.isfinite().all()

    def test_it_is_not_skipped_unless_asked(self) -> None:
        model, _, step = self.step(skip=False)
        step([torch.full((1, 3), 9)], 0.1)
        assert model.weight.isnan().all()
        assert step.skipped_steps() == 0


def test_the_state_of_a_loss_scaler_goes_on() -> None:
    ones, overflow = torch.ones(1, 3, dtype=torch.int64), torch.full((1, 3), 1e30, dtype=torch.float64)
    _, step = quadratic_step("fp16")
    step([ones], 0.0)
    step([overflow], 0.0)
    _, other = quadratic_step("fp16")
    other.restore(json.loads(json.dumps(step.state())))
    assert other.state() == step.state()
    assert other.state()["attempted_steps"] == 2


def test_the_norm_of_a_long_gradient_is_exact() -> None:
    """PyTorch's own is off by 1e-4 on the CPU."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(4000, 1000))
    gradient = torch.randn(4000, 1000)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, _sequences: torch.Tensor) -> torch.Tensor:
            return (self.weight * gradient).sum()

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = EagerStep(model, optimizer, torch.device("cpu"), "fp32", 1.0)
    output = step([torch.zeros(1, 2, dtype=torch.int64)], 1.0)
    exact = float(gradient.double().norm())
    assert output.gradient_norm.item() == pytest.approx(exact, rel=2e-6)
    # Clipped to 1, and subtracted.
    assert float(weight.detach().double().norm()) == pytest.approx(1.0, rel=2e-6)
