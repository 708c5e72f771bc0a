"""Conversions between text and values."""

from __future__ import annotations

import re

import pytest

from harness import text


@pytest.mark.parametrize(("override", "key"), [("seed=1", "seed"), ("++data.path='a=b'", "data.path"), ("+x=1", "x")])
def test_override_key(override: str, key: str) -> None:
    assert text.override_key(override) == key


@pytest.mark.parametrize(("written", "number"), [("70B", 70e9), ("2t", 2e12), ("1.5e3", 1500.0), ("12", 12.0)])
def test_scaled_number(written: str, number: float) -> None:
    assert text.scaled_number(written) == number


@pytest.mark.parametrize("written", ["", "B", "70BB", "many"])
def test_text_without_a_number(written: str) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        text.scaled_number(written)


def test_utc_times() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", text.utc_now())
    assert re.fullmatch(r"\d{8}T\d{6}Z", text.utc_stamp())


def test_a_long_text_is_shortened() -> None:
    assert text.shortened("abc", 3) == "abc"
    assert text.shortened("abcd", 3) == "abc..."


@pytest.mark.parametrize(
    "name",
    [None, "", " ", "0x74a1", "0xD802", "Device 0x740f", "Device 74a1", "device", "1002:74a1", "19e5:d802", "7",
     "unknown", "Unknown device", "(null)", "N/A", "-", "Not Specified", "Default string", "To Be Filled By O.E.M.",
     "\x00\x00"],
)  # fmt: skip
def test_a_number_or_a_word_for_none_is_no_name(name: str | None) -> None:
    assert text.true_name(name) is None


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A100-SXM4-80GB", "A100", "B200", "Ascend910B2", "Ascend910_9392", "GAUDI2", "gfx942",
     "AMD Instinct MI300X", "Intel(R) Graphics [0x0bd5]", "MTT S5000", "Device of Bob", "AMD EPYC 9654", "BCM2835"],
)  # fmt: skip
def test_a_name_stays_as_reported(name: str) -> None:
    assert text.true_name(f" {name}\x00") == name
