"""The patterns that cut text into pre-tokens, the pieces that merges never cross."""

from __future__ import annotations

from collections.abc import Mapping

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
