"""Which process of a host says what is wrong with the words that all of them were given."""

from __future__ import annotations

import pytest

from harness import launch
from harness.errors import ConfigError, EndedWithAll, Interrupted


def refused() -> None:
    with launch.said_once():
        raise ConfigError("model.layers: found 0")


def test_the_first_one_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: pytest.fail("it has nobody to wait for"))
    for own in ("", "0"):
        monkeypatch.setenv("LOCAL_RANK", own)
        with pytest.raises(ConfigError, match="found 0"):
            refused()


@pytest.mark.parametrize("told_to_stop", [False, True])
def test_the_others_wait_for_it_and_say_nothing(told_to_stop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher stops all others when one has gone: were that one of these, nothing would have been said."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if told_to_stop:
            raise Interrupted(15)

    monkeypatch.setattr(launch.time, "sleep", sleep)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(EndedWithAll) as ended:
        refused()
    assert ended.value.exit_code == 2
    assert waited == [launch.SECONDS_FOR_THE_FIRST_TO_SPEAK]
