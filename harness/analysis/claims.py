"""Claims that somebody published (configs/claim/*.yaml), and what the records of two sides say of one."""

from __future__ import annotations

import difflib
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

SUPPORTED, REFUTED, INCONCLUSIVE, NOT_TESTED = "supported", "refuted", "inconclusive", "not tested"
CLAIM_WORDS = (SUPPORTED, REFUTED, INCONCLUSIVE, NOT_TESTED)
TIME, SPEED = "time", "speed"
ANY_DEVICE = "any"
REQUIRED = ("statement", "source", "date", "subject", "reference", "quantity", "stated", "low", "high", "rationale",
            "workload", "experiment")  # fmt: skip
OPTIONAL = ("settings", "precision", "parameters", "parameters_reason", "devices", "seq_len", "note")


@dataclass(frozen=True)
class Bounds:
    """How small and how large something may be; None for no limit."""

    low: float | None = None
    high: float | None = None

    def holds(self, value: float | None) -> bool:
        """Return whether a value lies within. One that is unknown lies within nothing but no limits."""
        if value is None:
            return self.low is None and self.high is None
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def text(self, unit: float = 1.0) -> str:
        """Return the limits in words, in multiples of a unit."""
        low, high = (None if each is None else f"{each / unit:.3g}" for each in (self.low, self.high))
        if low == high:
            return str(low)
        return f"at most {high}" if low is None else f"at least {low}" if high is None else f"{low} to {high}"


@dataclass(frozen=True)
class Claim:
    """One published sentence as data: whose time or speed is how many times whose."""

    name: str
    statement: str
    source: str
    date: str
    subject: str
    """Chip or family of chips as the source writes it; `any` for a rehearsal."""
    reference: str
    quantity: str
    """`time` or `speed`: the ratio is the subject's over the reference's."""
    stated: float | None
    """The ratio that is stated, if a figure is."""
    low: float | None
    """The smallest ratio that the words allow; None if they set no lower limit."""
    high: float | None
    rationale: str
    """Why the words allow just that."""
    workload: str
    experiment: tuple[str, ...]
    """Which experiments would test it."""
    settings: tuple[str, ...] = ()
    """What the experiments are changed by, to be of the claim's size."""
    precision: str | None = None
    parameters: Bounds = Bounds()
    """Of the models that the claim is of."""
    parameters_reason: str | None = None
    devices: Bounds = Bounds()
    seq_len: int | None = None
    """Tokens in a sequence, if the claim says how many."""
    note: str | None = None

    @property
    def allowed(self) -> str:
        """The allowed ratios in words."""
        if self.low is None:
            return f"at most {self.high:.4g}"
        return f"at least {self.low:.4g}" if self.high is None else f"{self.low:.4g} to {self.high:.4g}"


@dataclass(frozen=True)
class ClaimVerdict:
    """What is said of a claim: one of CLAIM_WORDS, with the reason."""

    verdict: str
    reason: str
    ratio: float | None = None
    """The subject's time or speed over the reference's, as the claim counts."""
    low: float | None = None
    high: float | None = None

    @property
    def summary(self) -> str:
        """The reason as a sentence."""
        return f"{self.reason[:1].upper()}{self.reason[1:]}."


@cache
def load_claims(folder: Path | None = None) -> dict[str, Claim]:
    """Return every claim by its name, which is its file's.

    Raises:
        ConfigError: a file is malformed.
    """
    folder = folder or config_directory() / "claim"
    return {file.stem: _read(file) for file in sorted(folder.glob("*.yaml"))}


def find_claim(name: str) -> Claim:
    """Return a claim by its name.

    Raises:
        ConfigError: there is none.
    """
    claims = load_claims()
    if name not in claims:
        near = [each for each in claims if name and each.startswith(name)] or difflib.get_close_matches(
            name, claims, n=1
        )
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"claim: found {name!r}, expected one of: {', '.join(claims)}{hint}")
    return claims[name]


def within(claim: Claim, estimate: float, low: float, high: float) -> ClaimVerdict:
    """Hold a ratio with its 95 % interval against what the claim allows."""
    found = f"{claim.quantity} ratio {ratio_with_interval(estimate, low, high)}"
    said = f"{found}; the claim allows {claim.allowed}"
    floor = float("-inf") if claim.low is None else claim.low
    ceiling = float("inf") if claim.high is None else claim.high
    if floor <= low and high <= ceiling:
        word = SUPPORTED
    elif high < floor or low > ceiling:
        word = REFUTED
    else:
        word, said = INCONCLUSIVE, f"{said}, and the interval reaches across its border"
    return ClaimVerdict(word, said, estimate, low, high)


def chips_of(written: str) -> tuple[Chip, ...]:
    """Return the chips that a claim's subject or reference may be; none for `any`."""
    return () if written == ANY_DEVICE else match_chips(written)


def _read(file: Path) -> Claim:
    try:
        entry = yaml.safe_load(file.read_text(encoding="utf-8"))
        return _claim(file.stem, entry)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a claim: {' '.join(str(error).split())}") from error


def _claim(name: str, entry: Mapping[str, Any]) -> Claim:
    if missing := [key for key in REQUIRED if key not in entry]:
        raise ValueError(f"{missing[0]} is missing")
    if unknown := sorted(entry.keys() - {*REQUIRED, *OPTIONAL}):
        raise ValueError(f"{unknown[0]}: no such key, expected {', '.join((*REQUIRED, *OPTIONAL))}")
    if entry["quantity"] not in (TIME, SPEED):
        raise ValueError(f"quantity: found {entry['quantity']!r}, expected time or speed")
    for key in ("subject", "reference"):
        if entry[key] != ANY_DEVICE and not match_chips(str(entry[key])):
            raise ValueError(f"{key}: {entry[key]!r} is no chip or family of chips.yaml")
    low, high, stated = entry["low"], entry["high"], entry["stated"]
    if low is None and high is None:
        raise ValueError("low, high: both are null, so that nothing could refute it")
    if stated is not None and not (low or 0) <= stated <= (high or float("inf")):
        raise ValueError(f"stated: {stated} is not between low and high")
    if low is not None and high is not None and low > high:
        raise ValueError(f"low, high: {low} is more than {high}")
    for key in ("experiment", "settings"):
        words = entry.get(key, [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{key}: found {words!r}, expected a list of words")
    if ("parameters" in entry) != ("parameters_reason" in entry):
        raise ValueError("parameters: stands beside parameters_reason, which says why it is so")
    values = {
        **entry,
        "parameters": Bounds(*entry.get("parameters", ())),
        "devices": Bounds(*entry.get("devices", ())),
        "date": str(entry["date"]),
        "experiment": tuple(entry["experiment"]),
        "settings": tuple(entry.get("settings", ())),
    }
    return Claim(name=name, **values)
