"""Reads a `tokenizer.json` of Hugging Face's `tokenizers`, where its ids are those of our encoder.

Ours merges by rank, as tiktoken does; `tokenizers` merges by the order of a list. They agree when
the list is in the order of ranks and has, for each token, the pair that its bytes are merged from
last (see `huggingface.merges`). What may differ is refused.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchat.errors import TokenizerError
from jaxchat.tokenizer.huggingface import byte_alphabet, merges, to_oniguruma
from jaxchat.tokenizer.patterns import PATTERNS
from jaxchat.tokenizer.special import SPECIAL_TOKENS

Json = Mapping[str, Any]


def read_huggingface(path: Path) -> tuple[dict[bytes, int], str, dict[str, int]]:
    """The ranks of the tokens, the pattern, and the special tokens of a `tokenizer.json`.

    Raises TokenizerError for a file that is missing or damaged, and for a tokenizer whose ids our
    encoder would not give.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8-sig"))
        special = {token["content"]: token["id"] for token in settings["added_tokens"]}
        _check(settings)
        ranks = _ranks(settings["model"]["vocab"], special)
        _check_merges(settings["model"], ranks)
        return ranks, _pattern(settings["pre_tokenizer"]), special
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror}).") from error
    except TokenizerError as error:
        raise TokenizerError(f"{path} cannot be used: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is damaged or no tokenizer.json of tokenizers ({type(error).__name__})."
        ) from error


def _check(settings: Json) -> None:
    """Raises TokenizerError for what changes text or ids and our encoder does not do."""
    model = settings["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"its model is {model.get('type')!r}; it must be BPE.")
    unwanted = {
        "a normalizer": settings.get("normalizer"),
        "dropout": model.get("dropout"),
        "a prefix of subwords": model.get("continuing_subword_prefix"),
        "a suffix of words": model.get("end_of_word_suffix"),
        "byte fallback": model.get("byte_fallback"),
    }
    found = [name for name, value in unwanted.items() if value]
    if found:
        raise TokenizerError(f"it has {' and '.join(found)}, so that its ids would be others.")


def _ranks(vocab: Json, special: Json) -> dict[bytes, int]:
    """Tokens as bytes; those of the special tokens, which may stand among them, left out."""
    bytes_of = {chr(point): byte for byte, point in byte_alphabet().items()}
    ranks: dict[bytes, int] = {}
    for text, rank in vocab.items():
        if text in special:
            continue
        if type(rank) is not int:
            raise TypeError
        if not set(text) <= bytes_of.keys():
            raise TokenizerError(f"its token {text[:40]!r} is not spelled in bytes.")
        ranks[bytes(bytes_of[character] for character in text)] = rank
    missing = [name for name in SPECIAL_TOKENS if name not in special]
    if missing:
        raise TokenizerError(f"it has no special token {missing[0]}.")
    return ranks


def _check_merges(model: Json, ranks: Mapping[bytes, int]) -> None:
    """Raises TokenizerError where merging by the list and by rank may differ."""
    tokens = sorted(ranks, key=lambda token: ranks[token])
    names = {byte: chr(point) for byte, point in byte_alphabet().items()}
    spelled = ["".join(names[byte] for byte in token) for token in tokens]
    place = {text: rank for rank, text in enumerate(spelled)}
    pairs = [tuple(p.split(" ") if isinstance(p, str) else p) for p in model["merges"]]
    made = [place.get(left + right, -1) for left, right in pairs]
    wanted = [(spelled[left], spelled[right]) for left, right in merges(tokens)]
    in_order = all(a <= b for a, b in itertools.pairwise(made)) and -1 not in made
    unreached = sum(len(token) > 1 for token in tokens) - len(wanted)
    if not in_order or not set(wanted) <= set(pairs):
        raise TokenizerError("its merges are not in the order of its ids: ours would be others.")
    if unreached and not model.get("ignore_merges"):
        raise TokenizerError("some of its tokens are made by no merge: our ids would be others.")


def _pattern(pre: Json) -> str:
    """Our spelling of the pattern that cuts text into words."""
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    kinds = [step["type"] for step in steps]
    last = steps[-1]
    if kinds[-1] != "ByteLevel" or last.get("add_prefix_space"):
        raise TokenizerError("it does not cut text into bytes as it is.")
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return PATTERNS["gpt2"]
    split = steps[0]
    cuts = kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True)
    if not cuts or split["behavior"] != "Isolated" or split.get("invert"):
        raise TokenizerError(f"it cuts text by {', '.join(kinds)} in a way that ours does not.")
    regex = split["pattern"]["Regex"]
    for candidate in (*PATTERNS.values(), _from_oniguruma(regex)):
        if to_oniguruma(candidate) == regex:
            return candidate
    raise TokenizerError(f"its pattern has no equal here: {regex[:200]!r}.")


def _from_oniguruma(regex: str) -> str:
    """Undoes `to_oniguruma`, for what it makes."""
    regex = re.sub(r"\(\?>((?:\\.|\[[^\]]*\]|\\[pP]\{\w+\}|\w)\{\d+(?:,\d*)?\})\)", r"\1+", regex)
    return regex.replace(r"\z", "$").replace(r"\A", "^")
