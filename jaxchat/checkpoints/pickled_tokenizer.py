"""The tokenizer.pkl of nanochat, a pickled tiktoken.Encoding, read without unpickling it.

All it holds is a name, a pattern, ranks and special tokens: plain values, which `interop.pickles`
reads. What an Encoding does when it is unpickled is never done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxchat.checkpoints.pickles import MAX_BYTES, Record, RefusedPickle, read_pickle
from jaxchat.errors import TokenizerError
from jaxchat.tokenizer import Tokenizer

FILE = "tokenizer.pkl"
_FIELDS = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}


def read_pickled_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.pkl. Raises TokenizerError for anything else in there."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RefusedPickle(f"it has more than {MAX_BYTES:,} bytes")
        value = read_pickle(path.read_bytes(), {"tiktoken.core Encoding": _encoding})
        state = value.state if type(value) is Record else None
        return Tokenizer.from_ranks(*_fields(state))
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # TokenizerError, too
        raise TokenizerError(
            f"{path} cannot be used: {str(error).removesuffix('.')}. Name a folder that has a "
            "tokenizer.json with --tokenizer."
        ) from error


def _encoding(arguments: tuple[Any, ...]) -> Record:
    if arguments:
        raise RefusedPickle("its Encoding is made in an unusual way")
    return Record()


def _fields(state: Any) -> tuple[dict[bytes, int], str, dict[str, int]]:
    """Ranks, pattern and special tokens, seen to be what they should be."""
    if type(state) is not dict or state.keys() != _FIELDS.keys():
        raise RefusedPickle("it holds no tiktoken.Encoding with its ranks")
    if any(type(state[name]) is not kind for name, kind in _FIELDS.items()):
        raise RefusedPickle("its Encoding has fields of other types")
    for field, kind in (("mergeable_ranks", bytes), ("special_tokens", str)):
        entries = state[field].items()
        if any(type(key) is not kind or type(rank) is not int for key, rank in entries):
            raise RefusedPickle(f"its {field} are not names and numbers")
    return state["mergeable_ranks"], state["pat_str"], state["special_tokens"]
