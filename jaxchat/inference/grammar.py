"""Answers that follow a grammar: which tokens may come next, and how an answer can still be closed.

The automata are llguidance's (`pip install llguidance`), over the bytes of our tokens. A JSON
document has no blanks between its tokens, so most of what is not the model's choice is forced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from jaxchat.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    import llguidance

KEPT = 64  # compiled grammars, the most recent ones
CLOSING = 128  # tokens of an end that is looked for; it is, from twice as many left on
FREE_DIGITS = 15  # of a number that is none of `serve.json_schema.EXACT` or more
RETRY = 16  # tokens after which an end is looked for again where none was found
# Of llguidance's limits: about 40 ms to compile, 15 ms and 40 MB for the automaton of a grammar
LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
ABSENT = (
    "answers cannot follow a schema here: llguidance is not installed; install it with "
    "pip install 'llguidance>=1.7' (wheels: Linux with glibc 2.31 or newer, macOS)."
)
# No grammar; one token is drawn; tokens of text, or of digits, are drawn, and one more
FREE, ONE, TEXT, DIGITS = range(4)
# Bytes by how soon they probably end an answer
SOONEST = bytes(dict.fromkeys(b'"]},:@./ 0123456789-aAntfx[{' + bytes(range(256))))


class GrammarError(ValueError):
    """A grammar that cannot be followed; the message says why."""


@dataclass(frozen=True)
class Grammar:
    """What an answer must be: JSON of a schema, a text that a regex matches, or one of several."""

    kind: Literal["json_schema", "regex", "choice"]
    text: str  # the schema as JSON, the regular expression, or texts as a list in JSON
    # Whether the characters of a string in a document depend on nothing but the string's end. Where
    # they do, a dispatch may draw several without asking again.
    free_strings: bool = False
    # Whether, besides, no number is restricted but to FREE_DIGITS digits, or to some more: then so
    # may digits that follow a number's first.
    free_numbers: bool = False

    def compile(self, tokenizer: Tokenizer) -> CompiledGrammar:
        """Its automaton over the tokenizer's tokens; the same one again while it is kept.

        Raises GrammarError, also where llguidance is not installed.
        """
        return _compiled(self, tokenizer)


@dataclass(frozen=True, eq=False)
class CompiledGrammar:
    """A grammar over the tokens of one tokenizer."""

    grammar: Grammar
    vocabulary: Vocabulary
    initial: llguidance.LLMatcher

    def matcher(self) -> Matcher:
        """The state of a new answer."""
        return Matcher(self)


class Vocabulary:
    """A tokenizer as llguidance has it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises GrammarError where llguidance is not installed."""
        self.library = _library()
        self.end = tokenizer.special("<|assistant_end|>")
        self.tokenizer = self.library.LLTokenizer(
            self.library.TokenizerWrapper(_Wrapped(tokenizer, self.end)),
            slices=self.library.LLTokenizer.json_slices(),
        )
        self.source = tokenizer
        self.words = -(-tokenizer.vocab_size // 32)

    @cached_property
    def kinds(self) -> dict[int, list[bool]]:
        """TEXT, DIGITS -> for each token but the special ones, whether it is such; ONE: none is."""
        tests = {TEXT: _is_plain, DIGITS: _is_digits}
        found = {kind: list(map(test, self.source.tokens)) for kind, test in tests.items()}
        return {ONE: [], **found}

    @cached_property
    def words_of(self) -> dict[int, npt.NDArray[np.uint32]]:
        """TEXT -> [W] the tokens of whole characters that a JSON string may hold as they are;
        DIGITS -> those of digits.
        """
        return {kind: self._bits(flags) for kind, flags in self.kinds.items()}

    @cached_property
    def after_number(self) -> npt.NDArray[np.uint32]:
        """[W] what may follow a number in a document, and no string's character alone."""
        return self._bits([token in b",]}" for token in range(256)])

    @cached_property
    def most_digits(self) -> int:
        """Of a token."""
        return max(map(len, filter(_is_digits, self.source.tokens)))

    def _bits(self, flags: Sequence[bool]) -> npt.NDArray[np.uint32]:
        bits = np.zeros(self.words * 32, np.uint8)
        bits[: len(flags)] = flags
        return np.packbits(bits, bitorder="little").view(np.uint32)


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, compiled: CompiledGrammar) -> None:
        self._state = compiled.initial.deep_copy()
        self.vocabulary, self._grammar = compiled.vocabulary, compiled.grammar
        self._closing: list[int] | None = None  # tokens that would end it from here
        self._look = 2 * CLOSING  # tokens left, from which on an end is looked for
        self._words: npt.NDArray[np.uint32] | None = None  # what may come next; None: not known
        self._kind = ONE  # TEXT or DIGITS: tokens that are such change nothing of that
        self._run: list[int] = []  # such tokens, which the state has not got yet
        self._digits = 0  # with which the answer ends so far
        self.failed = False  # the automaton has come to its limits

    def begin(self) -> list[int]:
        """The tokens with which every answer begins."""
        forced = self._forced()
        self._count_digits(forced)
        return forced

    def fill(self, words: npt.NDArray[np.uint32]) -> None:
        """Writes the tokens that may come next as bits into [W] words."""
        if self._words is None:
            self._words = np.zeros_like(words)
            self._state.unsafe_compute_mask_ptr(self._words.ctypes.data, words.nbytes)
            self.failed |= self._state.is_error()
            self._kind = self._find_kind(self._words)
        words[:] = self._words

    def _find_kind(self, words: npt.NDArray[np.uint32]) -> int:
        """TEXT within a free string, DIGITS within a free number, else ONE."""
        if self.failed or not self._grammar.free_strings:
            return ONE
        known, quote = self.vocabulary.words_of, ord('"')
        if not np.any(known[TEXT] & ~words):
            return TEXT
        in_number = (
            self._grammar.free_numbers
            and self._digits > 0
            and not np.any(known[DIGITS] & ~words)
            and np.any(self.vocabulary.after_number & words)
            and not words[quote // 32] >> np.uint32(quote % 32) & np.uint32(1)
        )
        return DIGITS if in_number else ONE

    def reach(self, steps: int, left: int) -> tuple[int, int]:
        """TEXT, DIGITS or ONE, and how many of `steps` tokens, where `left` are left, may be drawn
        one after the other, as long as they are such.

        As they change neither what may come next nor how the answer can be closed.
        """
        most = steps if self._kind != ONE else 1
        if self._kind == DIGITS:
            most = min(most, (FREE_DIGITS - self._digits) // self.vocabulary.most_digits)
        while most > 1 and not self._fits(left - most - 1):
            most -= 1
        return (self._kind, most) if most > 1 else (ONE, 1)

    def advance(self, token: int, left: int) -> tuple[int, list[int]]:
        """Takes a token that was drawn where `left` are left; gives it and those that must follow.

        Where an answer with it could no longer be closed, they are the tokens that close it now.
        """
        end = self.vocabulary.end
        if self._stays(token) and self._fits(left - 2):
            self._run.append(token)
            if self._kind == DIGITS:
                self._count_digits([token])
            return token, []
        if self._run:
            self._state.consume_tokens(self._run)
            self._run = []
        if self.failed or not self._state.consume_token(token):
            self.failed = True
            return token, []
        if token == end:
            return token, []
        self._words, self._kind = None, ONE
        forced = self._forced()
        self._count_digits([token, *forced])
        if left > self._look or self._closes(1 + len(forced), left - len(forced) - 2):
            return token, forced
        self._state.rollback(1 + len(forced))
        self._closing = self._way_out(left - 1)
        if self._closing is None:
            self._state.consume_tokens([token, *forced])
            self._closing, self._look = None, left - RETRY
            return token, forced
        closing = [*self._closing, end]
        self._state.consume_tokens(closing)
        return closing[0], closing[1:]

    def _stays(self, token: int) -> bool:
        """Whether what may come next is what might have come instead of this token."""
        flags = self.vocabulary.kinds[self._kind]
        if not (token < len(flags) and flags[token]):
            return False
        if self._kind == TEXT:
            return True
        new, most = len(self.vocabulary.source.tokens[token]), self.vocabulary.most_digits
        return self._digits + new + most <= FREE_DIGITS

    def _count_digits(self, tokens: Sequence[int]) -> None:
        for token in tokens if self._grammar.free_numbers else ():
            flags, text = self.vocabulary.kinds[DIGITS], self.vocabulary.source.tokens
            is_digits = token < len(flags) and flags[token]
            if is_digits:
                self._digits += len(text[token])
            else:
                end = text[token] if token < len(text) else b""
                self._digits = len(end) - len(end.rstrip(b"0123456789"))

    def _fits(self, left: int) -> bool:
        """Whether `left` tokens are plenty, or enough for the end that is known."""
        known = self._closing is not None and len(self._closing) <= left
        return left > self._look or known

    def _forced(self) -> list[int]:
        forced = self._state.compute_ff_tokens()
        self._state.consume_tokens(forced)
        self.failed |= self._state.is_error()
        return forced

    def _closes(self, new: int, most: int) -> bool:
        """Whether `most` tokens can close the answer after `new` ones; keeps them."""
        before = self._closing or []
        for known in ([], before, before[new:], before[1:]):  # mostly one of them still does
            if self._ends_with(known):
                self._closing = known
                break
        else:
            self._closing = self._way_out(most)
        return self._closing is not None and len(self._closing) <= most

    def _ends_with(self, tokens: Sequence[int]) -> bool:
        whole = [*tokens, self.vocabulary.end]
        return self._state.validate_tokens(whole) == len(whole)

    def _way_out(self, most: int) -> list[int] | None:
        """Tokens that end the answer from here, few if not the fewest; None: none were found."""
        most = min(most, CLOSING)
        state, order, tokens = self._state.deep_copy(), list(SOONEST), list[int]()
        while not state.is_accepting():
            new = state.compute_ff_tokens() or _likely_end(state, order)
            if not new or len(tokens) + len(new) > most or not state.consume_tokens(new):
                return None
            tokens += new
        return tokens


def _likely_end(state: llguidance.LLMatcher, order: list[int]) -> list[int]:
    """The byte that probably brings the end nearest; it comes last in `order`."""
    for opening, closing in (b"[]", b"{}"):  # in a string both would be allowed, in this order
        if state.validate_tokens([closing, opening]) == 1:
            return [closing]
    # not by a mask: where a pattern is costly, a mask of all tokens is the more so
    for byte in [ord('"'), *order]:
        if state.validate_tokens([byte]) == 1:
            order.remove(byte)
            order.append(byte)
            return [byte]
    return []


class _Wrapped:
    """A tokenizer with the attributes that llguidance reads; every special id is listed."""

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self.eos_token_id, self.bos_token_id = end, tokenizer.bos
        self.special_token_ids = sorted(tokenizer.specials.values())
        names = {token: name.encode() for name, token in tokenizer.specials.items()}
        self.tokens = [*tokenizer.tokens, *(names[token] for token in self.special_token_ids)]
        self._encode: Callable[[str], list[int]] = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise GrammarError(ABSENT) from error
    return llguidance


def _is_digits(token: bytes) -> bool:
    return bool(token) and not token.strip(b"0123456789")


def _is_plain(token: bytes) -> bool:
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return False
    return not any(c < " " or c in '"\\\x7f' for c in text)


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


@lru_cache(maxsize=KEPT)
def _compiled(grammar: Grammar, tokenizer: Tokenizer) -> CompiledGrammar:
    vocabulary = _vocabulary(tokenizer)
    library = vocabulary.library
    if grammar.kind == "regex":
        source = library.LLMatcher.grammar_from_regex(grammar.text)
    elif grammar.kind == "choice":
        texts = " | ".join(map(json.dumps, json.loads(grammar.text)))
        source = library.LLMatcher.grammar_from_lark(f"start: {texts}")
    else:
        options = {"whitespace_flexible": False}
        source = library.LLMatcher.grammar_from_json_schema(grammar.text, overrides=options)
    limits = library.LLParserLimits(**LIMITS)
    matcher = library.LLMatcher(vocabulary.tokenizer, source, log_level=0, limits=limits)
    if matcher.is_error():
        raise GrammarError(matcher.get_error().splitlines()[0])
    compiled = CompiledGrammar(grammar, vocabulary, matcher)
    trial = compiled.matcher()
    trial.begin()
    trial.fill(np.zeros(vocabulary.words, np.uint32))
    if trial.failed:
        raise GrammarError("no answer can follow it, or it is too large.")
    return compiled
