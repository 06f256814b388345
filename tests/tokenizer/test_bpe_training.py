"""The trainer (`jaxchat._bpe`, through `Tokenizer.train`): which merges, and how it behaves."""

import itertools
import pydoc_data.topics
import signal
import weakref
from collections.abc import Callable, Iterator

import naive_bpe
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchat import _bpe
from jaxchat.errors import TokenizerError
from jaxchat.tokenizer import PATTERNS, SPLIT_PATTERN, TrainingReport, train_tokenizer

DOCUMENTATION = list(pydoc_data.topics.topics.values())

# Few letters, so that ties and overlapping pairs abound; and any character that is in the Unicode
# tables of every Python we support (engines with newer tables split newer characters otherwise).
few_letters = st.text("ab é1!\n", max_size=60)
any_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60)
corpora = st.lists(few_letters | any_text, max_size=8)


@given(corpora, st.integers(256, 330))
def test_merges_equal_those_of_the_naive_trainer(texts: list[str], vocab_size: int) -> None:
    tokens, _ = naive_bpe.train(texts, vocab_size, SPLIT_PATTERN)
    assert _bpe.train(texts, vocab_size, SPLIT_PATTERN)[0] == tokens


@given(corpora)
def test_encoding_cuts_words_as_the_trainer_left_them(texts: list[str]) -> None:
    _, words = naive_bpe.train(texts, 300 - 9, SPLIT_PATTERN)
    tokenizer = train_tokenizer(texts, 300)
    assert tokenizer.encode_batch(texts)[0].tolist() == list(itertools.chain(*words))


@pytest.mark.parametrize("vocab_size", [512, 4096])
def test_merges_equal_those_of_rustbpe(vocab_size: int) -> None:
    rustbpe = pytest.importorskip("rustbpe", reason="rustbpe 0.1.0 has no wheel for this machine")
    other = rustbpe.Tokenizer()
    other.train_from_iterator(iter(DOCUMENTATION), vocab_size, pattern=SPLIT_PATTERN)
    theirs = [bytes(token) for token, _ in sorted(other.get_mergeable_ranks(), key=lambda t: t[1])]
    assert _bpe.train(DOCUMENTATION, vocab_size, SPLIT_PATTERN)[0] == theirs


def test_of_equally_frequent_pairs_the_smallest_is_merged_first() -> None:
    tokens, _ = _bpe.train(["zy", "zx", "ab", "cd", "cd"], 260, SPLIT_PATTERN)
    assert tokens[256:] == [b"cd", b"ab", b"zx", b"zy"]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_merges_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    expected, _ = _bpe.train(DOCUMENTATION[:40], 1024, SPLIT_PATTERN)
    assert _bpe.train(DOCUMENTATION[:40], 1024, SPLIT_PATTERN, threads=threads)[0] == expected


def test_the_vocabulary_is_smaller_when_the_texts_run_out_of_pairs() -> None:
    assert train_tokenizer(["abc"], 5000).vocab_size == 256 + 2 + 9
    assert train_tokenizer([], 5000).vocab_size == 256 + 9


def test_the_corpus_is_never_held() -> None:
    class Text(str):
        """A str that can be watched."""

    alive: set[int] = set()
    most = 0

    def texts():  # type: ignore[no-untyped-def]
        nonlocal most
        for number in range(120):
            text = Text("a" * 1_000_000)
            alive.add(number)
            weakref.finalize(text, alive.discard, number)
            most = max(most, len(alive))
            yield text

    train_tokenizer(texts(), 270)
    assert most < 40, f"{most} texts of 1 MB were alive at once"
    assert not alive


def test_progress_counts_the_merges() -> None:
    calls: list[int] = []
    tokenizer = train_tokenizer(DOCUMENTATION, 4096, progress=calls.append)
    assert calls == sorted(calls)
    assert calls[-1] == tokenizer.vocab_size - 265 == 4096 - 265


def test_an_error_of_the_progress_callback_stops_the_training() -> None:
    def fail(merges: int) -> None:
        raise RuntimeError(f"no more after {merges}")

    with pytest.raises(RuntimeError, match="no more after 2"):
        train_tokenizer(["abc"], 300, progress=fail)


class Interrupted(Exception):
    """Stands for KeyboardInterrupt, which would end pytest where the test fails."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float], object]]:
    """Sets an alarm, in seconds, whose signal raises Interrupted as Ctrl-C does its error."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("needs POSIX timers")

    def handler(number: int, frame: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def test_a_signal_stops_the_reading(alarm: Callable[[float], object]) -> None:
    # An iterator written in C: no Python code looks for signals meanwhile. Without the signal
    # the reading ends, rather than hang the tests.
    texts = itertools.repeat("to be or not to be " * 1000, 20_000)
    alarm(0.3)
    with pytest.raises(Interrupted):
        train_tokenizer(texts, 1000)


def test_a_signal_stops_the_merging(alarm: Callable[[float], object]) -> None:
    texts = map("".join, itertools.permutations("abcdefghi"))
    with pytest.raises(Interrupted):
        train_tokenizer(texts, 1_000_000, progress=lambda merges: alarm(0.001))


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["fine", 3], TypeError, "text 1 must be a str, but is int"),
        (["fine", None], TypeError, "text 1 must be a str, but is NoneType"),
        ([b"bytes"], TypeError, "text 0 must be a str, but is bytes"),
        ("one text", TypeError, "texts is one str"),
        (5, TypeError, "not iterable"),
        (["fine", "\ud800"], ValueError, "text 1 is not valid Unicode"),
    ],
)
def test_bad_texts_are_named(texts: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train_tokenizer(texts, 300)  # type: ignore[arg-type]


def test_an_error_of_the_iterator_is_passed_on() -> None:
    def texts():  # type: ignore[no-untyped-def]
        yield "fine"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train_tokenizer(texts(), 300)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"vocab_size is 264; .* at least 265"):
        train_tokenizer(["text"], 264)
    with pytest.raises(ValueError, match="vocab_size is 255"):
        _bpe.train(["text"], 255, SPLIT_PATTERN)


def test_a_pattern_that_does_not_compile_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"the pattern '\(' is not valid"):
        train_tokenizer(["text"], 300, "(")


def test_a_text_that_a_regular_expression_gives_up_on_is_named() -> None:
    with pytest.raises(ValueError, match=r"text 1 .*: drop that text or cut it up"):
        train_tokenizer(["fine", " " * 1_100_000], 300, r"\s+(?!\S)|\S+")


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_tokenizer_is_trained_by_its_pattern(pattern: str) -> None:
    tokenizer = train_tokenizer(DOCUMENTATION[:20], 400, pattern)
    assert tokenizer.pattern == pattern
    assert [*tokenizer.tokens] == naive_bpe.train(DOCUMENTATION[:20], 400 - 9, pattern)[0]


def test_what_was_counted_is_reported() -> None:
    reports: list[TrainingReport] = []
    train_tokenizer(["one two two", "", "é"], 300, report=reports.append)
    assert reports == [TrainingReport(3, 13, 4, 3, 0, 0)]


def test_a_cap_on_words_drops_rare_ones_and_says_so() -> None:
    reports: list[TrainingReport] = []
    rare = [f"{a}{b}{c}" for a, b, c in itertools.permutations("abcdefgh", 3)]
    texts = ["the other " * 50, " ".join(rare)]
    capped = train_tokenizer(texts, 300, report=reports.append, max_words=100)
    train_tokenizer(texts, 300, report=reports.append)
    with_cap, without = reports
    # "the", which begins the text, " the", " other", " " at its end, and the rare ones
    assert (without.distinct, without.dropped) == (4 + len(rare), 0)
    assert (with_cap.distinct, with_cap.dropped) == (2, 2 + len(rare))
    assert with_cap.pretokens == without.pretokens
    assert b" other" in capped.tokens
    for threads in (1, 3):
        again = train_tokenizer(texts, 300, threads=threads, max_words=100)
        assert again.hash == capped.hash
