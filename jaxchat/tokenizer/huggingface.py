"""A tokenizer in the files of Hugging Face's `tokenizers` and `transformers`: written and read.

`tokenizers` then gives our ids for any text, but for one thing: in text it reads the name of a
special token as that token, unless `encode_special_tokens = True` is set (transformers:
`split_special_tokens=True`). And `apply_chat_template` of transformers renders a conversation to
text first, where what a user wrote and what the template wrote look alike. So our template refuses
with a sentence what it cannot render to exactly the ids of `chat_format.render`: text that holds
the name of a special token, and two parts of text side by side.

Our encoder merges by rank, as tiktoken does; `tokenizers` merges by the order of a list. They agree
when the list is in the order of ranks and has, for each token, the pair that its bytes are merged
from last (see `merges`). A `tokenizer.json` whose ids may differ is refused.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxchat.errors import TokenizerError
from jaxchat.paths import atomic_open, write_json
from jaxchat.tokenizer.patterns import CHAT_TOKENS, PATTERNS, SPECIAL_TOKENS, has_tools

Json = Mapping[str, Any]

OWN_FILE = "tokenizer.tiktoken"  # a folder with it is ours, and its tokenizer.json too

# Marks that transformers puts around the names of special tokens in messages, where it is asked to
# (`sanitize_control_tokens=True`): it then encodes those names as text, as our encoder does.
_MARKS = "\U000f0000", "\U000f0001"

# The conversations and ids of our server (`serve.prompt.prompt_tokens`), and with it the checks of
# `chat_format.render`; `add_generation_prompt` as `chat_format.render_prompt`. Each tag eats the
# white space around it, so that what is left is text. Where a user's or the system's content is a
# list of parts of text, as servers make of every content that a template iterates over, it is their
# texts one after the other. LEARN and LEARNED stand around what the assistant learns to say.
_TEMPLATE = """\
{%- set ns = namespace(open='', said='', system='', after_text=false) -%}
{%- macro checked(text) -%}
    {%- if text is not defined or text is not string -%}
        {{- raise_exception('The content of a message must be text, or for the assistant a list of '
            'parts, each with type and text.') -}}
    {%- endif -%}
    {%- for name in [SPECIAL_TOKENS] if name in text | replace('MARK' ~ name ~ 'MARKED', '') -%}
        {{- raise_exception('A message says ' ~ name ~ ', which would become a special token: take '
            'it out, or render the conversation with jaxchat.') -}}
    {%- endfor -%}
    {{- text -}}
{%- endmacro -%}
{%- macro plain(content) -%}
    {%- if content is not defined or content is string or content is mapping
        or content is not iterable -%}
        {{- checked(content) -}}
    {%- else -%}
        {%- set whole = namespace(text='') -%}
        {%- for part in content -%}
            {%- if part['type'] != 'text' or part['text'] is not string -%}
                {{- raise_exception('The parts of a user or system message must be of the type '
                    'text.') -}}
            {%- endif -%}
            {%- set whole.text = whole.text + part['text'] -%}
        {%- endfor -%}
        {{- checked(whole.text) -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro joined(before, after) -%}
    {%- if before | trim and after | trim -%}
        {{- before + '\\n\\n' + after -}}
    {%- elif before | trim -%}
        {{- before -}}
    {%- else -%}
        {{- after -}}
    {%- endif -%}
{%- endmacro -%}
{{- '<|bos|>' -}}
{%- for message in messages if message['role'] in ['system', 'developer'] -%}
    {%- set system = plain(message['content']) -%}
    {%- set ns.system = joined(ns.system, system) if system | trim else ns.system -%}
{%- endfor -%}
{%- set ns.system = ns.system + '\\n\\n' if ns.system | trim else '' -%}
{%- for message in messages if message['role'] not in ['system', 'developer'] -%}
    {%- set content = message['content'] -%}
    {%- if message['role'] == 'user' -%}
        {%- set said = plain(content) -%}
        {%- set ns.said = joined(ns.said, said) if ns.open == 'user' else said -%}
        {%- set ns.open = 'user' -%}
    {%- elif message['role'] != 'assistant' or ns.open != 'user' -%}
        {{- raise_exception('User and assistant must take turns, and the user begins; after ' ~
            (ns.open if ns.open else 'nothing') ~ ' comes a message of the role ' ~
            message['role'] ~ '.') -}}
    {%- else -%}
        {{- '<|user_start|>' + ns.system + ns.said + '<|user_end|>' -}}
        {%- set ns.system = '' -%}
        {%- set ns.open = 'assistant' -%}
        {{- '<|assistant_start|>' -}}
        {%- if content is not defined or content is string or content is mapping
            or content is not iterable -%}
            LEARN{{- checked(content) -}}LEARNED
        {%- else -%}
            {%- set ns.after_text = false -%}
            {%- for part in content -%}
                {%- if part['type'] == 'python' -%}
                    {%- set ns.after_text = false -%}
                    LEARN{{- '<|python_start|>' + checked(part['text']) + '<|python_end|>'
                        -}}LEARNED
                {%- elif part['type'] == 'python_output' -%}
                    {%- set ns.after_text = false -%}
                    {{- '<|output_start|>' + checked(part['text']) + '<|output_end|>' -}}
                {%- elif part['type'] != 'text' -%}
                    {{- raise_exception('A part of a message must be of the type text, python or '
                        'python_output.') -}}
                {%- elif part['text'] != '' -%}
                    {%- if ns.after_text -%}
                        {{- raise_exception('Two parts of text stand side by side: make them one.')
                            -}}
                    {%- endif -%}
                    {%- set ns.after_text = true -%}
                    LEARN{{- checked(part['text']) -}}LEARNED
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        LEARN{{- '<|assistant_end|>' -}}LEARNED
    {%- endif -%}
{%- endfor -%}
{%- if ns.open == 'user' -%}
    {{- '<|user_start|>' + ns.system + ns.said + '<|user_end|>' -}}
{%- elif ns.open == '' -%}
    {{- raise_exception('A conversation needs a user message.') -}}
{%- endif -%}
{%- if add_generation_prompt -%}
    {%- if ns.open != 'user' -%}
        {{- raise_exception('The last message of a prompt must be the user\\'s.') -}}
    {%- endif -%}
    {{- '<|assistant_start|>' -}}
{%- endif -%}
"""


# Of it, what a tokenizer without tokens of tools has no use for, and what it says instead
_CALLS = "{%- if part['type'] == 'python' -%}"
_AFTER_CALLS = "{%- elif part['type'] != 'text' -%}"
_NO_CALLS = """\
{%- if part['type'] == 'python' or part['type'] == 'python_output' -%}
                    {{- raise_exception('This tokenizer has no special tokens for tools.') -}}
                """


def chat_template(names: Sequence[str], learn: str = "", learned: str = "") -> str:
    """The template of a tokenizer with these special tokens, and tags around what is learned."""
    text = _TEMPLATE
    if not has_tools(names):
        text = text[: text.index(_CALLS)] + _NO_CALLS + text[text.index(_AFTER_CALLS) :]
    text = text.replace("SPECIAL_TOKENS", ", ".join(f"'{name}'" for name in names))
    text = text.replace("MARKED", _MARKS[1]).replace("MARK", _MARKS[0])
    return text.replace("LEARNED", learned).replace("LEARN", learn)


CHAT_TEMPLATE = chat_template(SPECIAL_TOKENS)
# For TRL and transformers' `return_assistant_tokens_mask`: the tag is theirs, and other readers of
# templates (minijinja) refuse it, so it has a file of its own.
GENERATION = "{%- generation -%}", "{%- endgeneration -%}"
TRAINING_TEMPLATE = chat_template(SPECIAL_TOKENS, *GENERATION)


def write_huggingface(
    tokens: Sequence[bytes],
    pattern: str,
    folder: Path,
    context: int = 0,
    *,
    names: Sequence[str] = SPECIAL_TOKENS,
    begins: bool = False,
) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and the chat templates into `folder`.

    `context` is the longest row of the model, 0 where that is not known. `names` are the special
    tokens. With `begins`, text
    without a template begins with `<|bos|>`, as documents did that a base model learned from.
    Each file is written whole or not at all. `tokenizers.Tokenizer.from_file` and transformers'
    `AutoTokenizer.from_pretrained` read them; neither library is needed to write them.

    Raises TokenizerError when the folder holds a tokenizer of ours, whose `tokenizer.json` would be
    lost, or when the pattern has no equal in the regular expressions of `tokenizers`.
    """
    if (folder / OWN_FILE).exists():
        raise TokenizerError(
            f"{folder} holds a tokenizer of jaxchat, whose tokenizer.json would be replaced; "
            "export into another folder."
        )
    settings = _settings(tokens, pattern, names, begins)  # may raise, before anything is written
    config = tokenizer_config(names, context)
    template = config["chat_template"]
    write_json(folder / "tokenizer_config.json", config)
    for name, text in (
        ("chat_template.jinja", template),
        ("chat_template_training.jinja", chat_template(names, *GENERATION)),
    ):
        with atomic_open(folder / name) as file:
            file.write(text)
    write_json(folder / "tokenizer.json", settings)


def tokenizer_config(names: Sequence[str], context: int = 0) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; `names` of the special tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        # Not the end token: what stands for padding is masked, and the end is to be learned.
        "pad_token": "<|bos|>",
        "additional_special_tokens": list(names),
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",  # answers are what comes behind a prompt
        **({"model_max_length": context} if context else {}),
        # transformers before 4.50 does not read the .jinja file
        "chat_template": chat_template(names),
    }


def _settings(
    tokens: Sequence[bytes], pattern: str, names: Sequence[str], begins: bool
) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    spelled = [_spell(token) for token in tokens]
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    split = {"pattern": {"Regex": to_oniguruma(pattern)}, "behavior": "Isolated", "invert": False}
    switches = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), False)
    byte_level = {"type": "ByteLevel", **switches}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": name, **off, "special": True}
            for token, name in enumerate(names, start=len(tokens))
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Split", **split}, byte_level],
        },
        "post_processor": _begun(len(tokens)) if begins else None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # As tiktoken: a word that is a token as a whole is that token, whatever merges say.
            "ignore_merges": True,
            "vocab": {name: rank for rank, name in enumerate(spelled)},
            "merges": [[spelled[left], spelled[right]] for left, right in merges(tokens)],
        },
    }


def _begun(specials: int) -> dict[str, Any]:
    """The step of `tokenizers` that puts `<|bos|>` before a text; ids of `specials` and up."""
    name, bos = "<|bos|>", specials + SPECIAL_TOKENS.index("<|bos|>")
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    texts = [{"Sequence": {"id": text, "type_id": 0}} for text in ("A", "B")]
    return {
        "type": "TemplateProcessing",
        "single": [first, texts[0]],
        "pair": [first, *texts],
        "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}},
    }


def byte_alphabet() -> dict[int, int]:
    """GPT-2's code points for bytes: printable ones for themselves, the others from U+0100 on.

    In the order of GPT-2's ranks.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: byte for byte in plain} | {byte: 256 + i for i, byte in enumerate(others)}


_BYTES = {chr(point): byte for byte, point in byte_alphabet().items()}


def _spell(token: bytes) -> str:
    """The bytes of a token in GPT-2's alphabet."""
    return token.decode("latin-1").translate(byte_alphabet())


def merges(tokens: Sequence[bytes]) -> list[tuple[int, int]]:
    """The ranks of the two tokens that each longer token is merged from, in rank order.

    tiktoken joins neighbours when the bytes of both are a token; Hugging Face only pairs that it
    lists. One pair a token is enough: until the two ends of a token are joined, nothing inside it
    depends on what is around it, so merging its bytes alone ends with the pair that is joined
    wherever the token is made. A token that its own bytes never become is made by no merge.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    pairs = (_last_merge(token, ranks) for token in tokens if len(token) > 1)
    return [pair for pair in pairs if pair is not None]


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[int, int] | None:
    """What the bytes of a token are before the merge that makes it whole; None without one."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], len(ranks)) for i in range(len(parts) - 1)]
        lowest = min(joined)
        if lowest == len(ranks):
            return None
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return ranks[parts[0]], ranks[parts[1]]


_ATOM = r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|[^\\\[\](){}|?*+^$]"
_TRANSLATED = re.compile(
    rf"(?P<bounded>(?:{_ATOM})\{{\d+(?:,\d*)?\}})\+"
    rf"|(?P<atom>{_ATOM})|(?P<anchor>[$^])|(?P<bad>\}}\+)",
    re.DOTALL,
)


def to_oniguruma(pattern: str) -> str:
    """A regular expression of tiktoken's kind (fancy-regex) for Oniguruma, which `tokenizers` uses.

    There `x{1,3}+` repeats `x{1,3}` instead of being possessive, and `^` and `$` match at every
    line. All else in our pattern, GPT-2's and GPT-4's means the same.
    """

    def translate(match: re.Match[str]) -> str:
        if match["bounded"]:
            return f"(?>{match['bounded']})"
        if match["bad"]:
            raise TokenizerError(
                f"the pattern {pattern!r} repeats a group possessively a bounded number of times, "
                "which has no equal in tokenizers; write it with (?>...) instead."
            )
        return {"$": r"\z", "^": r"\A"}[match["anchor"]] if match["anchor"] else match[0]

    return _TRANSLATED.sub(translate, pattern)


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
    ranks: dict[bytes, int] = {}
    for text, rank in vocab.items():
        if text in special:
            continue
        if type(rank) is not int:
            raise TypeError
        if not set(text) <= _BYTES.keys():
            raise TokenizerError(f"its token {text[:40]!r} is not spelled in bytes.")
        ranks[bytes(_BYTES[character] for character in text)] = rank
    wanted = SPECIAL_TOKENS if has_tools(special) else CHAT_TOKENS
    missing = [name for name in wanted if name not in special]
    if missing:
        raise TokenizerError(f"it has no special token {missing[0]}.")
    return ranks


def _check_merges(model: Json, ranks: Mapping[bytes, int]) -> None:
    """Raises TokenizerError where merging by the list and by rank may differ."""
    tokens = sorted(ranks, key=lambda token: ranks[token])
    spelled = [_spell(token) for token in tokens]
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
