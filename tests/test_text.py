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


@pytest.mark.parametrize(
    ("number", "counted"), [(0, "0 updates"), (1, "1 update"), (2, "2 updates"), (1200, "1,200 updates")]
)
def test_a_number_has_its_noun(number: int, counted: str) -> None:
    assert text.counted(number, "update") == counted
    assert text.counted(1, "row is", "rows are") == "1 row is"
    assert text.counted(2, "row is", "rows are") == "2 rows are"


def test_of_several_lists_of_settings_the_last_counts() -> None:
    layers = (["seed=1", "out=a"], ["+seed=2", "model=tiny"], ["out='b=c'"])
    assert text.layered_settings(*layers) == ["+seed=2", "out='b=c'", "model=tiny"]


def test_utc_times() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", text.utc_now())
    assert re.fullmatch(r"\d{8}T\d{6}Z", text.utc_stamp())


def test_a_long_text_is_shortened() -> None:
    assert text.shortened("abc", 3) == "abc"
    assert text.shortened("abcd", 3) == "abc..."
