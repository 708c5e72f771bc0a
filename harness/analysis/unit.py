"""Units in which unequal systems are compared: what a step takes of devices, packages, hosts, energy or money."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.analysis.chips import find_chip
from harness.analysis.run_group import RunGroup
from harness.errors import UserError
from harness.records.load import LoadedRecord, get_path

DEVICE, PACKAGE, NODE, JOULE, COST = "device", "package", "node", "joule", "cost"
UNITS = (DEVICE, PACKAGE, NODE, JOULE, COST)
# Key: title of what a step takes, and its unit.
TITLES = {
    DEVICE: ("device time a step", "device-s"),
    PACKAGE: ("package time a step", "package-s"),
    NODE: ("host time a step", "host-s"),
    JOULE: ("energy a step", "J"),
    COST: ("cost a step", "in the price's currency"),
}


@dataclass(frozen=True)
class Unit:
    """One of UNITS, with what it needs to know."""

    key: str
    prices: tuple[float, ...] = ()
    """With `cost`: price of a device-hour of each side, in their order."""
    price_date: str = ""

    @property
    def title(self) -> str:
        """Name of what a step takes."""
        return TITLES[self.key][0]

    @property
    def noun(self) -> str:
        """Name of it, for a sentence."""
        return self.title.removesuffix(" a step")

    @property
    def symbol(self) -> str:
        return TITLES[self.key][1]

    def amounts(self, side: RunGroup, number: int) -> list[float]:
        """Return what a step of each run takes.

        Args:
            number: of the side, 0 being the reference.

        Raises:
            UserError: a record does not know it.
        """
        return [self._amount(run, number) for run in side.runs]

    def _amount(self, run: LoadedRecord, number: int) -> float:
        record = run.record
        seconds = record["timing"]["mean_step_seconds"]
        if self.key == JOULE:
            joules = get_path(record, "telemetry", "joules_per_token")
            if not joules:
                reason = get_path(record, "telemetry", "reason") or "it was not measured"
                raise UserError(f"--per joule: {run.path}: has no energy: {reason}")
            return joules * record["timing"]["tokens_per_step"]
        if self.key == NODE:
            return seconds * _hosts(run)
        if self.key == PACKAGE:
            return seconds * _packages(run)
        price = self.prices[number] / 3600 if self.key == COST else 1.0
        return seconds * record["world_size"] * price

    def describe(self, sides: tuple[RunGroup, RunGroup], numbers: tuple[int, int]) -> str:
        """Return what the figures of a pair rest on, reference first."""
        if self.key == JOULE:
            scopes = [str(get_path(side.first, "telemetry", "scope") or "unknown scope") for side in sides]
            return f"energy of {scopes[0]} and {scopes[1]}"
        if self.key == NODE:
            return f"{_hosts(sides[0].runs[0])} and {_hosts(sides[1].runs[0])} hosts"
        devices = f"{sides[0].first['world_size']} and {sides[1].first['world_size']} devices"
        if self.key == DEVICE:
            return devices
        if self.key == PACKAGE:
            return f"{devices} in {_packages(sides[0].runs[0]):g} and {_packages(sides[1].runs[0]):g} packages"
        paid = f"{self.prices[numbers[0]]:g} and {self.prices[numbers[1]]:g} a device-hour ({self.price_date})"
        return f"{devices}, {paid}"


def _packages(run: LoadedRecord) -> float:
    """Return the number of packages that a run's devices make: PyTorch sees each die of some as a device."""
    name = get_path(run.record, "device", "name")
    chip = find_chip(get_path(run.record, "backend", "peak_lookup_key") or name)
    if chip is None:
        raise UserError(
            f"--per package: {run.path}: the catalogue of chips does not know {name!r}, nor how many devices make one "
            "of its packages; compare --per device"
        )
    return run.record["world_size"] / chip.devices_per_package


def _hosts(run: LoadedRecord) -> int:
    """Return the number of hosts of a run."""
    ranks: Any = get_path(run.record, "parallel", "ranks") or []
    hosts = {rank.get("host") for rank in ranks} - {None}
    if run.record["world_size"] == 1:
        return 1
    if not hosts:
        raise UserError(f"--per node: {run.path}: lists no host of its ranks; use --per device")
    return len(hosts)
