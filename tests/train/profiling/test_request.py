"""The argument --profile: what it accepts, and what it says otherwise."""

from pathlib import Path

import pytest

from jaxchat.config.schema import MODELS
from jaxchat.errors import ConfigError
from jaxchat.train.profiling.request import Request, folder, for_stage, parse


def test_a_request_names_steps_and_perhaps_a_stage() -> None:
    assert parse("10:13") == Request(10, 13)
    assert parse("mid:1:2") == Request(1, 2, "mid")
    assert (parse("10:13").steps, parse("4:5").steps) == ("10 to 12", "4")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10", "'10'; it must be START:STOP, such as 10:13"),
        ("10:", "it must be START:STOP"),
        ("a:b", "it must be START:STOP"),
        ("-1:5", "it must be START:STOP"),
        ("1:2:3:4", "it must be START:STOP"),
        ("0:3", "starts at step 0; step 0 is where XLA compiles"),
        ("10:10", "from step 10 to 10; .* greater, for example 10:13"),
        ("13:10", "from step 13 to 10; .* greater, for example 13:16"),
        ("data:10:13", "the stage 'data'; those that train are base, mid, sft, rl"),
    ],
)
def test_other_requests_are_refused_with_an_example(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(text)


def test_the_request_of_a_stage_goes_before_that_of_all() -> None:
    requests = [parse("5:6"), parse("mid:7:8")]
    assert for_stage(requests, "mid") == Request(7, 8, "mid")
    assert for_stage(requests, "rl") == Request(5, 6)
    assert for_stage(requests, "tokenizer") is None, "it trains nothing"
    assert for_stage(requests[1:], "rl") is None


def test_the_stages_are_those_of_a_run() -> None:
    assert all(for_stage([Request(5, 6)], name) for name in MODELS)
    assert folder(Path("run"), "sft") == Path("run/profile/sft")
