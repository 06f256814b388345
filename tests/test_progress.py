"""Progress as lines of text: the rate, the time left, and what a warm-up does to them."""

import pytest

from jaxchat import progress
from jaxchat.progress import Progress


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_time_left_follows_from_the_rate(clock: Clock) -> None:
    with Progress("base", 100, "step", start=20) as shown:
        clock.now += 10
        shown.update(40, "loss 3.1")
    assert shown.line() == "base: 40/100, 30s left, 2.0 step/s, loss 3.1"


def test_a_warm_up_is_named_and_left_out_of_the_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("base", 100, "step", warmup="compiling") as shown:
        assert capsys.readouterr().err == "base: compiling\n"
        clock.now += 300
        shown.update(1, "loss 5.0")
        assert capsys.readouterr().err == "base: 1/100, loss 5.0\n", "no rate is known yet"
        clock.now += 10
        shown.update(11, "loss 4.0")
        assert capsys.readouterr().err == "base: 11/100, 1m29s left, 1.0 step/s, loss 4.0\n"


def test_slow_work_is_shown_in_seconds_of_each(clock: Clock) -> None:
    with Progress("rl", 4, "step") as shown:
        clock.now += 50
        shown.update(2)
    assert shown.line() == "rl: 2/4, 50s left, 25.0 s/step"
