"""Published claims (configs/claim/*.yaml), and verdicts on them from a measured ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.analysis.chips import Chip, match_chips
from harness.analysis.format import ratio_with_interval
from harness.config import config_directory
from harness.errors import ConfigError
from harness.regular_files import read_file
from harness.text import capitalized, did_you_mean

SUPPORTED, REFUTED, INCONCLUSIVE, NOT_TESTED = "supported", "refuted", "inconclusive", "not tested"
CLAIM_VERDICTS = (SUPPORTED, REFUTED, INCONCLUSIVE, NOT_TESTED)
TIME, SPEED = "time", "speed"
ANY_DEVICE = "any"
REQUIRED = ("statement", "source", "date", "subject", "reference", "quantity", "stated", "low", "high", "rationale",
            "workload", "experiment")  # fmt: skip
OPTIONAL = ("settings", "precision", "parameters", "parameters_reason", "devices", "seq_len", "note")


@dataclass(frozen=True)
class Bounds:
    """Lower and upper bound of a quantity; None for no bound."""

    low: float | None = None
    high: float | None = None

    def holds(self, value: float | None) -> bool:
        """Return whether a value lies within. An unknown one does so only where there is no bound."""
        if value is None:
            return self.low is None and self.high is None
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def text(self, unit: float = 1.0) -> str:
        """Return the bounds in words, in multiples of a unit."""
        low, high = (None if each is None else f"{each / unit:.3g}" for each in (self.low, self.high))
        if low == high:
            return str(low)
        return f"at most {high}" if low is None else f"at least {low}" if high is None else f"{low} to {high}"


@dataclass(frozen=True)
class Claim:
    """One published claim: the ratio of a subject's time or speed to a reference's."""

    name: str
    statement: str
    source: str
    date: str
    subject: str
    """Name of a chip or of a family of chips, as in the source; `any` for a rehearsal."""
    reference: str
    quantity: str
    """`time` or `speed`, of which the ratio is the subject's over the reference's."""
    stated: float | None
    """The ratio that the source states, if it states one."""
    low: float | None
    """Lower end of the accepted range of ratios; None for no lower bound."""
    high: float | None
    rationale: str
    """Reason for the accepted range."""
    workload: str
    experiment: tuple[str, ...]
    """Experiments that test the claim."""
    settings: tuple[str, ...] = ()
    """Settings that give the experiments the claim's model size."""
    precision: str | None = None
    parameters: Bounds = Bounds()
    """Sizes of the models that the claim covers."""
    parameters_reason: str | None = None
    devices: Bounds = Bounds()
    seq_len: int | None = None
    """Tokens in a sequence, if the claim states them."""
    note: str | None = None

    @property
    def citation(self) -> str:
        """The claim with its source and date."""
        return f"The claim: {self.statement} ({self.source}; {self.date}.)"

    @property
    def accepted_range(self) -> str:
        """The accepted range of ratios in words."""
        if self.low is None:
            return f"at most {self.high:.4g}"
        return f"at least {self.low:.4g}" if self.high is None else f"{self.low:.4g} to {self.high:.4g}"


@dataclass(frozen=True)
class ClaimVerdict:
    """Verdict on a claim: one of CLAIM_VERDICTS, with its reason."""

    verdict: str
    reason: str
    ratio: float | None = None
    """The subject's time or speed over the reference's, whichever the claim states."""
    low: float | None = None
    high: float | None = None

    @property
    def summary(self) -> str:
        """The reason as a sentence."""
        return f"{capitalized(self.reason)}."


@cache
def load_claims(folder: Path | None = None) -> dict[str, Claim]:
    """Return every claim by its name, which is its file's stem.

    Raises:
        ConfigError: a file is malformed.
    """
    folder = folder or config_directory() / "claim"
    return {file.stem: _read(file) for file in sorted(folder.glob("*.yaml"))}


def find_claim(name: str) -> Claim:
    """Return the claim of a name.

    Raises:
        ConfigError: there is no such claim.
    """
    claims = load_claims()
    if name not in claims:
        started = [each for each in claims if name and each.startswith(name)]
        hint = f"; did you mean {started[0]}?" if started else did_you_mean(name, claims)
        raise ConfigError(f"claim: found {name!r}, expected one of: {', '.join(claims)}{hint}")
    return claims[name]


def judge_ratio(claim: Claim, estimate: float, low: float, high: float) -> ClaimVerdict:
    """Return the verdict on a claim from a ratio of the claim's quantity with its 95 % interval."""
    found = f"{claim.quantity} ratio {ratio_with_interval(estimate, low, high)}"
    reason = f"{found}; accepted range: {claim.accepted_range}"
    floor = float("-inf") if claim.low is None else claim.low
    ceiling = float("inf") if claim.high is None else claim.high
    if floor <= low and high <= ceiling:
        verdict = SUPPORTED
    elif high < floor or low > ceiling:
        verdict = REFUTED
    else:
        verdict, reason = INCONCLUSIVE, f"{reason}; the interval crosses the bound"
    return ClaimVerdict(verdict, reason, estimate, low, high)


def judge_time_ratio(claim: Claim, estimate: float, low: float, high: float) -> ClaimVerdict:
    """Return the verdict on a claim from the ratio of the subject's time to the reference's."""
    if claim.quantity == TIME:
        return judge_ratio(claim, estimate, low, high)
    return judge_ratio(claim, 1 / estimate, 1 / high, 1 / low)


def chips_of(name: str) -> tuple[Chip, ...]:
    """Return the chips that a claim's subject or reference may mean; none for `any`."""
    return () if name == ANY_DEVICE else match_chips(name)


def _read(file: Path) -> Claim:
    try:
        entry = yaml.safe_load(read_file(file).decode("utf-8"))
        return _claim(file.stem, entry)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a claim: {' '.join(str(error).split())}") from error


def _claim(name: str, entry: Mapping[str, Any]) -> Claim:
    if missing := [key for key in REQUIRED if key not in entry]:
        raise ValueError(f"{missing[0]} is missing")
    if unknown := sorted(entry.keys() - {*REQUIRED, *OPTIONAL}):
        raise ValueError(f"{unknown[0]}: unknown key, expected one of {', '.join((*REQUIRED, *OPTIONAL))}")
    if entry["quantity"] not in (TIME, SPEED):
        raise ValueError(f"quantity: found {entry['quantity']!r}, expected time or speed")
    for key in ("subject", "reference"):
        if entry[key] != ANY_DEVICE and not match_chips(str(entry[key])):
            raise ValueError(f"{key}: {entry[key]!r} is no chip or family of configs/chips.yaml")
    low, high, stated = entry["low"], entry["high"], entry["stated"]
    if low is None and high is None:
        raise ValueError("low, high: both are null, expected at least one bound")
    if stated is not None and not (low or 0) <= stated <= (high or float("inf")):
        raise ValueError(f"stated: {stated} is not between low and high")
    if low is not None and high is not None and low > high:
        raise ValueError(f"low, high: {low} is more than {high}")
    for key in ("experiment", "settings"):
        found = entry.get(key, [])
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise ValueError(f"{key}: found {found!r}, expected a list of strings")
    if ("parameters" in entry) != ("parameters_reason" in entry):
        raise ValueError("parameters, parameters_reason: found one of them, expected both or none")
    values = {
        **entry,
        "parameters": Bounds(*entry.get("parameters", ())),
        "devices": Bounds(*entry.get("devices", ())),
        "date": str(entry["date"]),
        "experiment": tuple(entry["experiment"]),
        "settings": tuple(entry.get("settings", ())),
    }
    return Claim(name=name, **values)
