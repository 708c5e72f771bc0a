"""Numbers as people read them."""

from __future__ import annotations

import pytest

from harness.analysis import format


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.000"), (0.98765, "0.988"), (12.3456, "12.346"), (0.01, "0.010"), (0.00123456, "0.00123"),
     (2.5e-7, "2.5e-07"), (980074.795, "980,075"), (0.0, "0.000")],
)  # fmt: skip
def test_no_limit_of_a_ratio_reads_as_none(value: float, text: str) -> None:
    assert format.ratio(value) == text
