"""AdamW against its formula, weight decay on matrices alone, and the values of the learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from harness.composition import load
from harness.config import ModelConfig, TrackConfig, WorkloadConfig
from harness.schedule import learning_rate
from harness.workload.initialization import build_model
from harness.workload.model import Transformer, parameter_count
from harness.workload.optimizer import build_optimizer

CPU = torch.device("cpu")
BASE = load(["model=tiny", "workload=smoke"])
WORK = BASE.workload
GPT2_LIKE = ModelConfig(
    name="gpt2-like",
    vocab_size=64,
    max_position_embeddings=16,
    num_hidden_layers=2,
    hidden_size=16,
    num_attention_heads=2,
    position_embedding="learned",
    bias=True,
)
IMPLEMENTATIONS = pytest.mark.parametrize("adamw", ["for_loop", "foreach", "fused"])


def tiny_model() -> Transformer:
    return build_model(GPT2_LIKE, 1, CPU)


class TestGroups:
    def test_matrices_are_decayed_and_vectors_are_not(self) -> None:
        model = tiny_model()
        optimizer = build_optimizer(model, replace(WORK, weight_decay=0.3), BASE.track)
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            is_vector = name.endswith("bias") or "norm" in name
            assert decay[id(parameter)] == (0.0 if is_vector else 0.3), name

    @pytest.mark.parametrize("tied", [True, False])
    def test_every_parameter_is_updated_once(self, tied: bool) -> None:
        config = replace(GPT2_LIKE, tie_word_embeddings=tied)
        optimizer = build_optimizer(build_model(config, 1, CPU), WORK, BASE.track)
        found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert len({id(parameter) for parameter in found}) == len(found)
        assert sum(parameter.numel() for parameter in found) == parameter_count(config)

    def test_frozen_parameters_are_left_out(self) -> None:
        model = tiny_model()
        model.embedding.weight.requires_grad_(False)
        groups = build_optimizer(model, WORK, BASE.track).param_groups
        assert all(parameter is not model.embedding.weight for group in groups for parameter in group["params"])

    def test_a_model_without_vectors_has_one_group(self) -> None:
        groups = build_optimizer(nn.Linear(3, 4, bias=False), WORK, BASE.track).param_groups
        assert [len(group["params"]) for group in groups] == [1]

    @IMPLEMENTATIONS
    def test_the_track_names_the_implementation(self, adamw: str) -> None:
        for group in build_optimizer(tiny_model(), WORK, TrackConfig("portable", adamw)).param_groups:
            assert (bool(group["foreach"]), bool(group["fused"])) == (adamw == "foreach", adamw == "fused")


class TestUpdate:
    @IMPLEMENTATIONS
    def test_two_steps_follow_the_formula(self, adamw: str) -> None:
        # Settings of its own for each term, all large enough to be seen: the second step tells the betas apart.
        work = replace(WORK, beta1=0.8, beta2=0.9, epsilon=0.05, weight_decay=0.4)
        model = tiny_model()
        optimizer = build_optimizer(model, work, TrackConfig("portable", adamw))
        random = np.random.default_rng(3)
        weight = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
        first, second = ({name: np.zeros_like(value) for name, value in weight.items()} for _ in range(2))
        for step, rate in ((1, 0.01), (2, 0.03)):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for name, parameter in model.named_parameters():
                gradient = random.normal(size=weight[name].shape).astype(np.float32)
                parameter.grad = torch.from_numpy(gradient)
                # Loshchilov and Hutter 2019, algorithm 2, with the learning rate as the schedule multiplier.
                g = gradient.astype(np.float64)
                first[name] = 0.8 * first[name] + 0.2 * g
                second[name] = 0.9 * second[name] + 0.1 * g**2
                m, v = first[name] / (1 - 0.8**step), second[name] / (1 - 0.9**step)
                decay = 0.4 if g.ndim == 2 else 0.0
                weight[name] -= rate * (m / (np.sqrt(v) + 0.05) + decay * weight[name])
            optimizer.step()
        for name, parameter in model.named_parameters():
            # Weights of about 1 moved by about 0.04: a few roundings of float32, 6e-8 each.
            np.testing.assert_allclose(parameter.detach().numpy(), weight[name], rtol=1e-6, atol=2e-7, err_msg=name)

    @IMPLEMENTATIONS
    def test_tied_weights_are_updated_once(self, adamw: str) -> None:
        model = tiny_model()
        before = model.embedding.weight.detach().clone()
        optimizer = build_optimizer(model, replace(WORK, weight_decay=0.0), TrackConfig("portable", adamw))
        model.embedding.weight.grad = torch.ones_like(before)
        optimizer.step()
        # The first step of Adam has the size of the learning rate, for any gradient.
        torch.testing.assert_close(model.head.weight.detach(), before - WORK.learning_rate, rtol=0, atol=1e-6)


def schedule(**settings: float) -> WorkloadConfig:
    return replace(WORK, **{"steps": 25, "learning_rate": 0.02, "lr_warmup_steps": 5, **settings})


class TestLearningRate:
    def test_values_along_the_schedule(self) -> None:
        work = schedule(min_lr_ratio=0.1)
        assert learning_rate(1, work) == pytest.approx(0.02 / 5)
        assert learning_rate(3, work) == pytest.approx(0.02 * 3 / 5)
        assert learning_rate(5, work) == pytest.approx(0.02)
        # A quarter, half and three quarters of the way down from 0.02 to 0.002.
        assert learning_rate(10, work) == pytest.approx(0.002 + 0.018 * (0.5 + math.sqrt(0.125)))
        assert learning_rate(15, work) == pytest.approx(0.011)
        assert learning_rate(20, work) == pytest.approx(0.002 + 0.018 * (0.5 - math.sqrt(0.125)))
        assert learning_rate(25, work) == pytest.approx(0.002)

    @pytest.mark.parametrize("warmup", [0, 1, 5, 24])
    @pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
    def test_rises_to_the_peak_and_falls_to_the_fraction(self, warmup: int, fraction: float) -> None:
        work = schedule(lr_warmup_steps=warmup, min_lr_ratio=fraction)
        rates = [learning_rate(step, work) for step in range(1, 26)]
        assert rates[-1] == pytest.approx(fraction * 0.02, abs=1e-15)
        if warmup:
            assert max(rates) == rates[warmup - 1] == pytest.approx(0.02)
        assert all(one < two for one, two in pairwise(rates[:warmup]))
        fall = rates[max(0, warmup - 1) :]
        assert all(one > two for one, two in pairwise(fall))
        assert all(0 <= rate <= 0.02 * (1 + 1e-12) for rate in rates)

    def test_without_warmup_begins_just_below_the_peak(self) -> None:
        work = schedule(lr_warmup_steps=0, min_lr_ratio=0.0)
        assert learning_rate(1, work) == pytest.approx(0.01 * (1 + math.cos(math.pi / 25)))

    def test_a_fraction_of_one_stays_at_the_peak(self) -> None:
        work = schedule(min_lr_ratio=1.0)
        assert {learning_rate(step, work) for step in range(5, 26)} == {0.02}

    def test_is_a_function_of_the_step_alone(self) -> None:
        work = schedule()
        forwards = [learning_rate(step, work) for step in range(1, 26)]
        assert [learning_rate(step, work) for step in range(25, 0, -1)] == forwards[::-1]

    def test_one_step_in_all(self) -> None:
        assert learning_rate(1, schedule(steps=1, lr_warmup_steps=0)) == pytest.approx(0.002)
