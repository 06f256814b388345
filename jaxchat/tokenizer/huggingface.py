"""A tokenizer in the files of Hugging Face's `tokenizers` and `transformers` libraries.

`tokenizers` then gives our ids for any text, but for one thing: in text it reads the name of a
special token as that token, unless told `encode_special_tokens = True` (transformers:
`split_special_tokens=True`). And `apply_chat_template` of transformers renders a conversation to
text first, where what a user wrote and what the template wrote look alike. So our template refuses
with a sentence what it cannot render to exactly the ids of `chat.render`: text that holds the name
of a special token, and two parts of text side by side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxchat.errors import TokenizerError
from jaxchat.paths import atomic_open, write_json
from jaxchat.tokenizer.special import SPECIAL_TOKENS

OWN_FILE = "tokenizer.tiktoken"  # a folder with it is ours, and its tokenizer.json too

# The same conversations, checks and ids as `chat.render`; `add_generation_prompt` as
# `chat.render_prompt`. Each tag eats the white space around it, so that what is left is text. Where
# a user's or the system's content is a list of parts of text, as servers make of every content that
# a template iterates over, it is their texts one after the other.
CHAT_TEMPLATE = """\
{%- set ns = namespace(turn=0, system='', after_text=false) -%}
{%- macro checked(text) -%}
    {%- if text is not string -%}
        {{- raise_exception('The content of a message must be text, or for the assistant a list of '
            'parts, each with type and text.') -}}
    {%- endif -%}
    {%- for name in [SPECIAL_TOKENS] if name in text -%}
        {{- raise_exception('A message says ' ~ name ~ ', which would become a special token: take '
            'it out, or render the conversation with jaxchat.') -}}
    {%- endfor -%}
    {{- text -}}
{%- endmacro -%}
{%- macro plain(content) -%}
    {%- if content is string or content is mapping or content is not iterable -%}
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
{{- '<|bos|>' -}}
{%- for message in messages -%}
    {%- set role = 'assistant' if ns.turn % 2 else 'user' -%}
    {%- if loop.first and message['role'] == 'system' -%}
        {%- set system = plain(message['content']) -%}
        {%- set ns.system = system + '\\n\\n' if system | trim else '' -%}
    {%- elif message['role'] != role -%}
        {{- raise_exception('User and assistant must take turns, after at most one system message; '
            'message ' ~ loop.index0 ~ ' is of the role ' ~ message['role'] ~ '.') -}}
    {%- else -%}
        {%- set ns.turn = ns.turn + 1 -%}
        {{- '<|' + role + '_start|>' -}}
        {%- set content = message['content'] -%}
        {%- if role == 'user' -%}
            {{- (ns.system if ns.turn == 1 else '') + plain(content) -}}
        {%- elif content is string or content is mapping or content is not iterable -%}
            {{- checked(content) -}}
        {%- else -%}
            {%- set ns.after_text = false -%}
            {%- for part in content -%}
                {%- if part['type'] == 'python' -%}
                    {%- set ns.after_text = false -%}
                    {{- '<|python_start|>' + checked(part['text']) + '<|python_end|>' -}}
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
                    {{- checked(part['text']) -}}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- '<|' + role + '_end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if ns.turn == 0 -%}
    {{- raise_exception('A conversation needs a user message.') -}}
{%- endif -%}
{%- if add_generation_prompt -%}
    {%- if ns.turn % 2 == 0 -%}
        {{- raise_exception('The last message of a prompt must be the user\\'s.') -}}
    {%- endif -%}
    {{- '<|assistant_start|>' -}}
{%- endif -%}
""".replace("SPECIAL_TOKENS", ", ".join(f"'{name}'" for name in SPECIAL_TOKENS))


def write_huggingface(tokens: Sequence[bytes], pattern: str, folder: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into `folder`.

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
    settings = _settings(tokens, pattern)  # may raise, before anything is written
    write_json(folder / "tokenizer_config.json", _config())
    with atomic_open(folder / "chat_template.jinja") as file:
        file.write(CHAT_TEMPLATE)
    write_json(folder / "tokenizer.json", settings)


def _settings(tokens: Sequence[bytes], pattern: str) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    names = {byte: chr(point) for byte, point in byte_alphabet().items()}
    spelled = ["".join(names[byte] for byte in token) for token in tokens]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": name, **_ADDED_TOKEN}
            for token, name in enumerate(SPECIAL_TOKENS, start=len(tokens))
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": to_oniguruma(pattern)},
                    "behavior": "Isolated",
                    "invert": False,
                },
                byte_level,
            ],
        },
        "post_processor": None,
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


_ADDED_TOKEN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def _config() -> dict[str, Any]:
    """The content of `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        # Not the end token: what stands for padding is masked, and the end is to be learned.
        "pad_token": "<|bos|>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,  # transformers before 4.50 does not read the .jinja file
    }


def byte_alphabet() -> dict[int, int]:
    """GPT-2's code points for bytes: printable ones for themselves, the others from U+0100 on.

    In the order of GPT-2's ranks.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: byte for byte in plain} | {byte: 256 + i for i, byte in enumerate(others)}


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
