"""Special tokens, and the patterns that cut text into pre-tokens, which merges never cross."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from jaxchat.errors import TokenizerError

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
CHAT_TOKENS = SPECIAL_TOKENS[:5]  # what conversations without tools need
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)


def has_tools(names: Collection[str]) -> bool:
    """Whether special tokens include those of tools, or some of them."""
    return not set(names).isdisjoint(SPECIAL_TOKENS[len(CHAT_TOKENS) :])


# GPT-4's pattern (cl100k_base) with numbers cut into at most two digits instead of three: small
# vocabularies have better uses for a thousand tokens. The pattern and the tokens are nanochat's.
SPLIT_PATTERN = "|".join(
    [
        r"'(?i:[sdmt]|ll|ve|re)",  # English contractions
        r"[^\r\n\p{L}\p{N}]?+\p{L}+",  # a word, with the space or sign before it
        r"\p{N}{1,2}",  # numbers
        r" ?[^\s\p{L}\p{N}]++[\r\n]*",  # punctuation, with the line's end
        r"\s*[\r\n]",  # blank lines
        r"\s+(?!\S)",  # spaces, but for the one before a word
        r"\s+",
    ]
)

# By name. Each has a hand-written scanner in `bpe_rs`; any other pattern goes through a regex
# engine. The spellings of GPT-2's and GPT-4's are tiktoken's.
PATTERNS: Mapping[str, str] = {
    "jaxchat": SPLIT_PATTERN,
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "gpt4": "|".join(
        [
            r"'(?i:[sdmt]|ll|ve|re)",
            r"[^\r\n\p{L}\p{N}]?+\p{L}++",
            r"\p{N}{1,3}+",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
            r"\s++$",
            r"\s*[\r\n]",
            r"\s+(?!\S)",
            r"\s",
        ]
    ),
}

_WORD = re.compile(r"[\w .-]*\w[\w .-]*")  # as a regular expression it finds itself alone


def find_pattern(given: str) -> str:
    """The pattern of a name, or the regular expression that was given.

    Raises TokenizerError for a word that is no name: as a regular expression it would find itself
    alone.
    """
    if given in PATTERNS or not _WORD.fullmatch(given):
        return PATTERNS.get(given, given)
    near = difflib.get_close_matches(re.sub(r"[\W_]", "", given.lower()), PATTERNS, 1, 0.75)
    meant = f"; did you mean {near[0]}?" if near else "."
    raise TokenizerError(
        f"there is no pattern {given!r}{meant} There are {', '.join(PATTERNS)}, and regular "
        r"expressions such as '\w+|\W'."
    )


def covering(pattern: str) -> str:
    """The pattern for a library that drops what is not matched, as tiktoken does.

    It matches the stretches between matches, too; what has a scanner leaves none. (A match of
    nothing cuts a stretch in our encoder, and cannot be given to tiktoken.)
    """
    if pattern in PATTERNS.values():
        return pattern
    return f"{pattern}|(?:(?!{pattern})[\\s\\S])+"


def uncovered(pattern: str) -> str:
    """The pattern that `covering` was given, or the pattern as it is."""
    own = pattern[: (len(pattern) - len(covering(r"\s")) + 4) // 2]
    return own if covering(own) == pattern else pattern
