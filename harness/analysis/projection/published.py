"""Published trainings (configs/trainings.yaml), projected from the catalogue to check the projection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.analysis.chips import Chip, match_chips
from harness.analysis.flops import flops_per_token_of_size, parameters_of, training_flops_per_token
from harness.analysis.named_models import model_preset
from harness.analysis.projection.assumptions import Assumptions
from harness.analysis.projection.model import Estimate, Projection, project
from harness.analysis.projection.plan import Plan
from harness.config import config_directory
from harness.errors import ConfigError, UserError

PRECISION = "bf16"
FASTEST, TENSOR_CHOICES = "fastest", (1, 2, 4, 8)
LAYOUT = ("seq_len", "global_batch_size", "devices", "micro_batch_size", "tensor", "pipeline", "virtual_stages",
          "sharded", "recompute")  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One published training: its plan and its device-hours."""

    name: str
    source: str
    chip: Chip
    plan: Plan
    hours: float
    """Device-hours, as stated or from the stated MFU."""
    assumed: tuple[str, ...]
    """Names of the settings of the plan that the source does not print."""
    of_steps: bool
    """True if the time is that of the steps alone, without interruptions and checkpoints."""
    miss: str | None
    """Reason from the source for which the projection may miss."""

    @property
    def days(self) -> float:
        return self.hours / self.plan.devices / 24

    @property
    def mfu(self) -> float:
        """MFU that follows from the hours."""
        peak = self.chip.peak_flops[PRECISION]
        assert peak is not None
        return self.plan.flops_per_token * self.plan.tokens / (3600 * self.hours * peak)


@dataclass(frozen=True)
class Check:
    """A published training and its projection."""

    training: Training
    projection: Projection

    @property
    def days(self) -> Estimate:
        """The projected time that corresponds to the stated one: the whole, or that of the steps."""
        return self.projection.uninterrupted_days if self.training.of_steps else self.projection.days

    @property
    def error(self) -> float:
        """Relative error of the projected median."""
        return self.days.median / self.training.days - 1

    @property
    def hit(self) -> bool:
        """True if the stated days lie within the 90 % interval."""
        low, high = self.days.low, self.days.high
        return low is not None and high is not None and low <= self.training.days <= high


def check_all(assumed: Assumptions | None = None) -> list[Check]:
    """Project every published training from the catalogue alone."""
    return [Check(each, project(each.plan, each.chip, assumed=assumed)) for each in load_trainings()]


def load_trainings(file: Path | None = None) -> list[Training]:
    """Read the published trainings.

    Raises:
        ConfigError: the file is malformed.
    """
    file = file or config_directory() / "trainings.yaml"
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))["trainings"]
        return [_training(name, entry) for name, entry in entries.items()]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{file}: is no valid list of trainings: {' '.join(str(error).split())}") from error


def _training(name: str, entry: Mapping[str, Any]) -> Training:
    (chip,) = match_chips(entry["chip"])
    plan = _plan(entry, chip)
    if "hours" in entry:
        hours = float(entry["hours"])
    else:
        peak = chip.peak_flops[PRECISION]
        assert peak is not None
        hours = plan.flops_per_token * plan.tokens / (entry["mfu"] * peak) / 3600
    return Training(
        name=name,
        source=entry["source"],
        chip=chip,
        plan=plan,
        hours=hours,
        assumed=tuple(entry.get("assumed", ())),
        of_steps=entry.get("of_steps", False),
        miss=entry.get("miss"),
    )


def _plan(entry: Mapping[str, Any], chip: Chip) -> Plan:
    """Return the plan of a training, with the fastest tensor parallelism where the source states none."""
    layout = {key: entry[key] for key in LAYOUT if key in entry}
    choices = TENSOR_CHOICES if layout.get("tensor") == FASTEST else (layout.get("tensor", 1),)
    found: list[tuple[float, Plan]] = []
    for tensor in choices:
        try:
            plan = plan_of(
                tokens=float(entry["tokens"]),
                parameters=float(entry["parameters"]) if "parameters" in entry else None,
                model=entry.get("model"),
                layers=entry.get("layers"),
                width=entry.get("width"),
                network_bytes_per_second=1e9 * entry.get("network_gb_per_s", 25.0),
                **{**layout, "tensor": tensor},
            )
            found.append((project(plan, chip).days.median, plan))
        except UserError:
            if len(choices) == 1:
                raise
    return min(found, key=lambda each: each[0])[1]


def plan_of(
    *, tokens: float, seq_len: int, parameters: float | None = None, model: str | None = None,
    layers: int | None = None, width: int | None = None, **layout: Any,
) -> Plan:  # fmt: skip
    """Return a plan for a model of configs/model/, or for a number of parameters.

    Raises:
        ValueError: neither is given, or the name is unknown.
        UserError: the layout is impossible.
    """
    shape = model_preset(model)
    if shape is not None:
        flops = training_flops_per_token(shape, seq_len)
        size = float(parameters_of(shape))
        layers, width = shape["num_hidden_layers"], shape["hidden_size"]
        layout["heads"] = shape["num_attention_heads"]
    elif parameters is not None and model is None:
        flops, size = flops_per_token_of_size(parameters, layers, width, seq_len), parameters
    else:
        raise ValueError(f"model: found {model!r}, expected a name of configs/model or a number of parameters")
    return Plan(
        parameters=size, tokens=tokens, flops_per_token=flops, seq_len=seq_len, layers=layers, width=width, **layout
    )
