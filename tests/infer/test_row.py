"""One completion on the host: taking tokens together is taking them one by one."""

import random
from collections import deque

import pytest

from jaxchat.infer.request import Request
from jaxchat.infer.row import Row, Specials
from jaxchat.infer.stops import StopWatch

SPECIALS = Specials(*range(6))


def feed(row, pieces, *, together):
    """Takes pieces of tokens until the row ends; the codes it came by."""
    codes = []
    for tokens in pieces:
        logprobs = [-0.5 * token for token in tokens]
        start = row.extend(tokens, logprobs, SPECIALS.turns) if together else 0
        for token, logprob in zip(tokens[start:], logprobs[start:], strict=True):
            code = row.take(token, logprob, (), SPECIALS)
            if code is not None:
                codes.append(code)
                row.forced.extend([SPECIALS.output_start, 9, 8, SPECIALS.output_end])
            if row.finish_reason:
                return codes
    return codes


def state(row):
    return row.tokens, row.mask, row.logprobs, row.alternatives, row.code, row.finish_reason


@pytest.mark.parametrize("seed", range(50))
def test_tokens_taken_together_are_those_taken_one_by_one(seed):
    dice = random.Random(seed)
    # few of the tokens are special, so that all states come to be
    pieces = [
        [dice.choice([*range(4), *range(6, 30)]) for _ in range(dice.randrange(6))]
        for _ in range(12)
    ]
    rows = [Row(Request((1,), max_tokens=40), 0, limit=dice.choice([1, 7, 40])) for _ in range(2)]
    for row in rows:
        row.forced = deque([7, SPECIALS.output_end] * (seed % 2))
    rows[1].limit = rows[0].limit
    codes = [feed(row, pieces, together=bool(n)) for n, row in enumerate(rows)]
    assert codes[0] == codes[1]
    assert state(rows[0]) == state(rows[1])
    assert rows[0].forced == rows[1].forced


def test_a_row_that_is_watched_takes_nothing_unseen(tokenizer):
    watched = Row(Request((1,), max_tokens=40, stop=("x",)), 0, limit=40)
    watched.stops = StopWatch(("x",), tokenizer)
    told = Row(Request((1,), max_tokens=40, alternatives=2), 0, limit=40)
    for row in (watched, told):
        assert row.extend([7, 8], [0.0, 0.0], SPECIALS.turns) == 0
        assert row.tokens == []
