"""Answers that follow a grammar, of models with random weights."""

import json
import re
import sys

import numpy as np
import pytest
from compilation import compilations

from jaxchat.inference import grammar as grammar_module
from jaxchat.inference.engine import Engine, EngineError, Request
from jaxchat.inference.grammar import DIGITS, FREE_DIGITS, TEXT, Grammar, GrammarError
from jaxchat.inference.masks import packed_masks
from jaxchat.tokenizer import train_tokenizer

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PROMPT = (5, 6, 7)


@pytest.fixture(scope="module")
def engine(config, params, tokenizer):
    """Of 4 steps a dispatch, warm."""
    engine = Engine(params, config, tokenizer, slots=8, max_len=128, steps_per_dispatch=4)
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def person(tokenizer):
    return Grammar("json_schema", json.dumps(PERSON), free_strings=True).compile(tokenizer)


@pytest.fixture(scope="module")
def dates(tokenizer):
    return Grammar("regex", r"[0-9]{4}-[0-9]{2}-[0-9]{2}( (am|pm))?").compile(tokenizer)


def ask(grammar, seed=0, **settings):
    return Request(PROMPT, **{"max_tokens": 90, "temperature": 1.0, **settings}, seed=seed,
                   grammar=grammar)  # fmt: skip


def text_of(tokenizer, completion):
    assert completion.tokens[-1] == tokenizer.special("<|assistant_end|>")
    return tokenizer.decode(completion.tokens[:-1])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}])
def test_every_answer_that_ends_is_valid(engine, person, dates, tokenizer, settings):
    requests = [ask(g, seed, **settings) for seed in range(8) for g in (person, dates)]
    answers = [one for (one,) in engine.generate(requests)]
    assert {answer.finish_reason for answer in answers} == {"stop"}
    for request, answer in zip(requests, answers, strict=True):
        text = text_of(tokenizer, answer)
        if request.grammar is dates:
            assert re.fullmatch(r"\d{4}-\d\d-\d\d( (am|pm))?", text)
            continue
        found = json.loads(text)
        assert list(found) == ["name", "age", "tags"]
        assert isinstance(found["name"], str)
        assert isinstance(found["age"], int)
        assert set(found["tags"]) <= {"red", "green"}


def test_forced_tokens_are_not_sampled_and_no_tool_is_called(engine, person, tokenizer):
    (answer,) = engine.generate([ask(person)])[0]
    opening = tokenizer.encode('{"name":')
    assert list(answer.tokens[: len(opening)]) == opening
    assert not any(answer.mask[: len(opening)])
    assert 0 < sum(answer.mask) < len(answer.mask)
    for token, sampled, logprob in zip(answer.tokens, answer.mask, answer.logprobs, strict=True):
        assert (logprob < 0) == bool(sampled)
        assert tokenizer.is_ordinary(token) or token == answer.tokens[-1]


def test_what_a_row_gets_depends_on_no_company(engine, person, dates):
    """Not even on how many steps a dispatch has; and nothing is compiled after warm_up."""
    mine = [ask(person, 1), ask(dates, 2), ask(None, 3), ask(person, 4, top_k=5), ask(None, 5)]
    alone = [engine.generate([request])[0] for request in mine]
    rng = np.random.default_rng(0)
    with compilations() as count:
        for _ in range(4):
            crowd = [
                ask((None, person, dates)[number % 3], number, max_tokens=int(rng.integers(1, 60)))
                for number in range(12)
            ]
            for place in sorted(rng.integers(0, 12, len(mine)).tolist()):
                crowd.insert(place, mine[sum(request in mine for request in crowd)])
            found = dict(zip(map(id, crowd), engine.generate(crowd), strict=True))
            assert [found[id(request)] for request in mine] == alone
    assert count() == 0


def test_rows_without_a_grammar_keep_their_dispatches(engine, person):
    """Beside others with one, they have 4 tokens of each."""
    free, held = engine.submit(ask(None, 1)), engine.submit(ask(person, 1))
    while not free.done:
        before = len(free.rows[0].tokens)
        engine.step()
        assert len(free.rows[0].tokens) == before + 4 or free.done
    engine.cancel(held)


def test_plain_text_of_a_string_is_drawn_several_tokens_at_once(tokenizer, params, config, person):
    engine = Engine(params, config, tokenizer, slots=1, max_len=256, steps_per_dispatch=4)
    job = engine.submit(ask(person, 3, max_tokens=200))
    kinds, calls = set(), 0
    while not job.done:
        (row,) = job.rows
        kinds.add(int(packed_masks([row], 4, tokenizer.vocab_size)[0, -2]))
        engine.step()
        calls += 1
    assert TEXT in kinds
    assert calls < 0.7 * len(row.tokens)


LARGEST = 2**53 - 1
NUMBERS = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
SCHEMAS = [
    PERSON,
    {"type": "array", "items": {**NUMBERS, "type": "integer"}},
    {"type": "array", "items": NUMBERS},
    {"type": "object"},  # any, with exponents
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=["person", "integers", "numbers", "any"])
@pytest.mark.parametrize("most", [60, 400])
def test_what_is_drawn_at_once_has_the_masks_of_one_after_the_other(tokenizer, schema, most):
    text, rng, kinds = json.dumps(schema), np.random.default_rng(most), set()
    free = Grammar("json_schema", text, free_strings=True, free_numbers=True).compile(tokenizer)
    bound = Grammar("json_schema", text).compile(tokenizer)
    got, want = np.zeros((2, bound.vocabulary.words), np.uint32)
    digits = [token for token, is_one in enumerate(free.vocabulary.kinds[DIGITS]) if is_one]
    for _ in range(30):
        quick, slow = free.matcher(), bound.matcher()
        assert quick.begin() == slow.begin()
        left, run, kind = most, 0, None
        while left > 1:
            slow.fill(want)
            if not run:
                quick.fill(got)
                kind, run = quick.reach(8, left)
                kinds.add(kind)
            assert got.tolist() == want.tolist(), "what was drawn from may be drawn from again"
            bits = np.flatnonzero(np.unpackbits(want.view(np.uint8), bitorder="little"))
            among = np.intersect1d(bits, digits) if rng.random() < 0.8 else bits
            token = int(rng.choice(among if len(among) else bits))
            taken = quick.advance(token, left)
            assert taken == slow.advance(token, left)
            flags = free.vocabulary.kinds.get(kind, ())
            run = run - 1 if token < len(flags) and flags[token] else 0
            left -= 1 + len(taken[1])
            if taken[0] == free.vocabulary.end or free.vocabulary.end in taken[1]:
                break
    assert {TEXT, DIGITS} <= kinds or schema in SCHEMAS[1:3]
    assert DIGITS in kinds


def test_answers_are_the_same_however_many_tokens_are_drawn_at_once(engine, tokenizer, person):
    bound = Grammar("json_schema", json.dumps(PERSON)).compile(tokenizer)
    quick = Grammar("json_schema", json.dumps(PERSON), free_strings=True, free_numbers=True)
    for limit in (33, 40, 90):
        answers = [
            engine.generate([ask(grammar, seed, max_tokens=limit) for seed in range(12)])
            for grammar in (bound, person, quick.compile(tokenizer))
        ]
        assert answers[0] == answers[1] == answers[2]


def test_digits_are_drawn_several_at_once_but_no_more_than_are_free(tokenizer, params, config):
    engine = Engine(params, config, tokenizer, slots=1, max_len=256, steps_per_dispatch=8)
    text = json.dumps({"type": "array", "items": {**NUMBERS, "type": "integer"}})
    grammar = Grammar("json_schema", text, free_strings=True, free_numbers=True).compile(tokenizer)
    job = engine.submit(ask(grammar, 3, max_tokens=200, temperature=5.0))
    (row,), kinds = job.rows, []
    while not job.done:
        packed = packed_masks([row], 8, tokenizer.vocab_size)
        kinds.append(tuple(packed[0, -2:].tolist()))
        assert kinds[-1][1] * grammar.vocabulary.most_digits <= FREE_DIGITS
        engine.step()
    assert {kind for kind, most in kinds if most > 1} == {DIGITS}
    assert len(kinds) < 0.9 * len(row.tokens)


@pytest.mark.parametrize("limit", [31, 33, 36, 40, 55])
def test_an_answer_is_closed_before_its_budget_ends(engine, person, tokenizer, limit):
    requests = [ask(person, seed, max_tokens=limit) for seed in range(4)]
    for (answer,) in engine.generate(requests):
        assert answer.finish_reason == "stop"
        assert len(answer.tokens) <= limit
        assert json.loads(text_of(tokenizer, answer))


def test_a_budget_that_no_answer_fits_ends_with_length(engine, person):
    (answer,) = engine.generate([ask(person, max_tokens=12)])[0]
    assert answer.finish_reason == "length"
    assert len(answer.tokens) == 12


@pytest.mark.parametrize("pattern", ["(ab)*c", "[a-z]+@[a-z]+[.]com", "x{20,}(yz|w){3}!", "a|bc"])
def test_the_way_out_of_a_regex_is_found(engine, tokenizer, pattern):
    grammar = Grammar("regex", pattern).compile(tokenizer)
    for (answer,) in engine.generate([ask(grammar, seed, max_tokens=40) for seed in range(6)]):
        assert re.fullmatch(pattern, text_of(tokenizer, answer))


def test_samples_follow_the_masked_distribution(engine, tokenizer, params, config):
    """The first of two digits has the model's probabilities, divided by their sum."""
    grammar = Grammar("regex", "[0-4]").compile(tokenizer)
    request = Request(PROMPT, max_tokens=2, temperature=1.0, n=600, alternatives=0, grammar=grammar)
    drawn = [one.tokens[0] for one in engine.generate([request])[0]]
    logprobs = {one.tokens[0]: one.logprobs[0] for one in engine.generate([request])[0]}
    weights = {token: np.exp(value) for token, value in logprobs.items()}
    for token, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(drawn.count(token) / 600 - share) < 4 * np.sqrt(share * (1 - share) / 600) + 1e-3


def test_a_grammar_is_compiled_once(tokenizer):
    one, same = (Grammar("regex", "a+b").compile(tokenizer) for _ in range(2))
    assert one is same
    other = train_tokenizer(["one two three "] * 20, 280)
    assert Grammar("regex", "a+b").compile(other) is not one


@pytest.mark.parametrize("text", ["[", "a(?=b)", r"(a)\1"])
def test_what_cannot_be_compiled_says_why(tokenizer, text):
    with pytest.raises(GrammarError, match="regex"):
        Grammar("regex", text).compile(tokenizer)


def test_a_grammar_of_another_tokenizer_is_refused(engine):
    other = train_tokenizer(["one two three "] * 20, 280)
    with pytest.raises(EngineError, match="another tokenizer"):
        engine.submit(ask(Grammar("regex", "a").compile(other)))


def test_without_the_library_the_error_says_what_to_install(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match="pip install 'llguidance"):
        grammar_module.Vocabulary(tokenizer)


def test_an_automaton_at_its_limits_ends_the_answer_with_length(engine, person):
    job = engine.submit(ask(person))
    job.rows[0].matcher.failed = True
    while engine.step():
        pass
    assert job.rows[0].finish_reason == "length"


def test_special_tokens_are_never_allowed(tokenizer, person):
    """All of them are listed: their names are no text."""
    matcher = person.matcher()
    matcher.begin()
    words = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
    for token in b"ab":
        matcher.fill(words)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        assert bits[token]
        assert not bits[sorted(tokenizer.specials.values())].any()
        matcher.advance(token, 200)
