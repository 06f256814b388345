"""The exported files: Hugging Face's library gives our ids, for text and for conversations."""

import functools
import itertools
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxchat.errors import TokenizerError
from jaxchat.serve.messages import prompt_tokens
from jaxchat.serve.schema import InMessage
from jaxchat.tokenizer import (
    PATTERNS,
    SPLIT_PATTERN,
    ConversationError,
    Tokenizer,
    render,
    render_prompt,
    train_tokenizer,
)
from jaxchat.tokenizer.huggingface import (
    CHAT_TEMPLATE,
    TRAINING_TEMPLATE,
    merges,
    to_oniguruma,
)

tokenizers = pytest.importorskip("tokenizers")
jinja2 = pytest.importorskip("jinja2")
sandbox = pytest.importorskip("jinja2.sandbox")
pytest.importorskip("jinja2.ext")

TEXT = """
There is no accounting for taste, they're told, but there's a count of 1234 tastes; I'll say it's
naïve:   "Łódź is 12.5 km away."\r\n\r\n\tdef count(tastes): return len(tastes)  # what's counted
Поезд идёт быстро! Да, но далеко ли?  古い本を読む人、 まだ来ない。 小镇的钟停了。又走了。
हिन्दी में कुछ शब्द लिखे हैं। مرحبا بالعالم 👩‍👩‍👧 🎉🎉 aaaa bbbbbb      !!!! ......\n\n\n
"""
# Characters at which the patterns turn, and one of each kind beside them.
TURNS = (
    " \n\r\t\u00a0\u2028\u3000'sStTlLvVrReEdDmMa\u017f\u212a1\uff19²½Ⅷ!.<|>_é\u0301中"
    "😀\u200d\U0001f3fd\U0010ffff"
)


@pytest.fixture(scope="module", params=sorted(PATTERNS))
def both(request, tmp_path_factory):
    """Our tokenizer, and the one that Hugging Face's library reads from its export."""
    ours = train_tokenizer([TEXT] * 2, 700, pattern=PATTERNS[request.param])
    return ours, exported(ours, tmp_path_factory.mktemp("exported"))


def exported(ours, folder):
    ours.to_huggingface(folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True  # text is text
    return theirs


def assert_same(both, texts):
    ours, theirs = both
    found = [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=False)]
    wrong = [
        (text, ours.encode(text), ids)
        for text, ids in zip(texts, found, strict=True)
        if ours.encode(text) != ids
    ]
    assert not wrong, f"{len(wrong)} of {len(texts)} texts, the first: {wrong[0]}"


def test_real_text_has_the_same_ids(both):
    assert_same(both, [TEXT, *TEXT.split("\n"), *TEXT.split(), "", "<|bos|> <|user_start|>"])


def test_every_two_and_three_characters_where_patterns_turn(both):
    assert_same(both, ["".join(some) for some in itertools.product(TURNS, repeat=2)])
    generator = random.Random(0)
    assert_same(both, ["".join(generator.choices(TURNS, k=3)) for _ in range(5_000)])


@pytest.mark.parametrize("pattern", [r"\w+", r"\w*", r"[a-z]+|\d", r"(?<=a).", r"\b", r"\S+\s?"])
def test_what_a_pattern_does_not_match_is_a_word_of_its_own(pattern, tmp_path):
    """Also where it matches nothing, which cuts what is around it."""
    ours = train_tokenizer([TEXT] * 2, 700, pattern=pattern)
    texts = [TEXT, *TEXT.split("\n"), " ", "", "a  b", "!!ab!!", "the  cat, the  cats!!"]
    assert [ours.decode(ours.encode(text)) for text in texts] == texts
    assert_same((ours, exported(ours, tmp_path)), texts)


@pytest.mark.parametrize("around", ["{}", "a{}b", " {}1", "'{}", "\n{} "])
def test_all_of_latin_and_a_share_of_every_plane(both, around):
    points = itertools.chain(range(0x500), range(0x500, 0x20000, 61), range(0x20000, 0x110000, 997))
    texts = [around.format(chr(p)) for p in points if not 0xD800 <= p < 0xE000]
    assert_same(both, texts)


@pytest.mark.slow
def test_every_code_point(both):
    points = (p for p in range(0x110000) if not 0xD800 <= p < 0xE000)
    assert_same(both, [f"a{chr(p)} {chr(p)}1" for p in points])


def test_long_runs(both):
    assert_same(both, [c * n for c in " \na1!é" for n in (2, 99, 100, 101, 3_000)])


@given(st.text() | st.text(TURNS) | st.text("ab ", max_size=60))
def test_any_text(both_ours, text):
    assert_same(both_ours, [text])


@pytest.fixture(scope="module")
def both_ours(tmp_path_factory):
    ours = train_tokenizer([TEXT] * 2, 700)
    return ours, exported(ours, tmp_path_factory.mktemp("ours"))


def test_decoding_and_special_tokens(both_ours):
    ours, theirs = both_ours
    ids = [ours.bos, *ours.encode(TEXT), ours.special("<|user_end|>")]
    assert theirs.decode(ids, skip_special_tokens=False) == f"<|bos|>{TEXT}<|user_end|>"
    assert theirs.get_vocab_size() == ours.vocab_size
    theirs.encode_special_tokens = False  # as conversations are encoded
    assert theirs.encode("<|bos|>a").ids == [ours.bos, *ours.encode("a")]
    theirs.encode_special_tokens = True


BYTES = [bytes([byte]) for byte in range(256)]


@settings(max_examples=50)
@given(st.lists(st.text("ab", min_size=2, max_size=5), unique=True), st.text("ab", max_size=30))
def test_vocabularies_that_no_training_makes(tmp_path_factory, words, text):
    """Tokens longer than any merge reaches, merged by way of later tokens, or in two ways."""
    ours = Tokenizer([*BYTES, *(word.encode() for word in words)])
    both = ours, exported(ours, tmp_path_factory.mktemp("odd"))
    assert_same(both, [text, " ".join(text), text[::-1]])


def test_a_word_that_no_merge_makes_is_its_token_all_the_same(tmp_path):
    both = ours, _ = (
        Tokenizer([*BYTES, b"abcd"]),
        exported(Tokenizer([*BYTES, b"abcd"]), tmp_path),
    )
    assert ours.encode("abcd") == [256]
    assert_same(both, ["abcd", "abcde", " abcd", "abcdabcd", "abcd abcd", "abcd\nabcd"])


def test_a_bounded_possessive_repetition_does_not_repeat(tmp_path):
    ours = Tokenizer([*BYTES, b"34", b"12", b"1234"], pattern=PATTERNS["gpt4"])
    assert ours.encode("1234") == [257, ord("3"), ord("4")]  # 123 and 4
    assert_same((ours, exported(ours, tmp_path)), ["1234", "12341234", "34123434"])


def test_each_token_has_the_merge_that_makes_it():
    tokens = (*BYTES, b"ab", b"abab", b"ba", b"aba")
    ab, abab, ba = 256, 257, 258
    assert merges(tokens) == [(97, 98), (ab, ab), (98, 97), (ab, 97)]
    assert merges((*BYTES, b"abcd")) == []  # only the whole word is that token
    assert merges((*BYTES, b"abc", b"ab")) == [(257, 99), (97, 98)]  # by way of a later token
    assert abab < ba


def test_what_oniguruma_reads_differently_is_translated():
    assert to_oniguruma(r"\p{N}{1,3}+|[^\]+$]{2}+|a{3,}+") == (
        r"(?>\p{N}{1,3})|(?>[^\]+$]{2})|(?>a{3,})"
    )
    assert to_oniguruma(r"\s++$|^a\$[$^]") == r"\s++\z|\Aa\$[$^]"
    assert to_oniguruma(SPLIT_PATTERN) == SPLIT_PATTERN
    with pytest.raises(TokenizerError, match="bounded number of times"):
        to_oniguruma(r"(?:ab){1,2}+")


def test_our_own_folder_is_not_written_into(tmp_path):
    ours = Tokenizer(BYTES)
    ours.save(tmp_path)
    with pytest.raises(TokenizerError, match="would be replaced"):
        ours.to_huggingface(tmp_path)
    assert Tokenizer.load(tmp_path).hash == ours.hash


def test_the_configuration_names_the_special_tokens(tmp_path):
    Tokenizer(BYTES).to_huggingface(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|bos|>", "<|assistant_end|>")
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text()
    assert len(config["additional_special_tokens"]) == 9


class TemplateRefusal(Exception):
    pass


@functools.cache
def compiled():
    """The template in an environment such as transformers makes."""

    def refuse(sentence):
        raise TemplateRefusal(sentence)

    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(CHAT_TEMPLATE, {"raise_exception": refuse})


def apply_template(messages, **options):
    return compiled().render(messages=messages, **options)


def template_ids(both, messages, **options):
    theirs = both[1]
    theirs.encode_special_tokens = False
    ids = theirs.encode(apply_template(messages, **options), add_special_tokens=False).ids
    theirs.encode_special_tokens = True
    return ids


def user(text):
    return {"role": "user", "content": text}


def assistant(*content):
    return {"role": "assistant", "content": content[0] if len(content) == 1 else list(content)}


def part(kind, text):
    return {"type": kind, "text": text}


CONVERSATION = [
    {"role": "system", "content": " Be brief.\n"},
    user("\n What's 37 * 24? <|bos>  "),
    assistant(
        part("text", "  Let me see: "),
        part("python", "37 * 24\n"),
        part("python_output", " 888"),
        part("text", ""),
        part("text", "\nIt is 888. "),
    ),
    user("Thanks"),
    assistant(" {{ bos }} {% raw %} &amp; \\n "),
    user(""),
]


@pytest.mark.parametrize("blank", ["", " \n", "\u2003", [part("text", "")]])
def test_a_blank_system_message_is_none_in_the_template_too(both_ours, blank):
    system = {"role": "system", "content": blank}
    for more in ([], [assistant("Yo")]):
        bare = [user(" Hi"), *more]
        assert template_ids(both_ours, [system, *bare]) == template_ids(both_ours, bare)
        assert template_ids(both_ours, bare) == render({"messages": bare}, both_ours[0])[0]


@pytest.mark.parametrize("length", range(2, len(CONVERSATION) + 1))
def test_a_conversation_has_the_ids_of_render(both_ours, length):
    messages = CONVERSATION[:length]
    assert template_ids(both_ours, messages) == render({"messages": messages}, both_ours[0])[0]
    if messages[-1]["role"] == "user":
        ids = template_ids(both_ours, messages, add_generation_prompt=True)
        assert ids == render_prompt(messages, both_ours[0])


words = st.text("a \n<|bos>é", max_size=8)
calls = st.builds(part, st.sampled_from(["text", "python", "python_output"]), words)
turns = st.tuples(words, words | st.lists(calls, max_size=4))


@given(st.none() | words, st.lists(turns, min_size=1, max_size=3), st.booleans())
def test_any_conversation_has_the_ids_of_render_or_is_refused(both_ours, system, pairs, prompt):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in pairs:
        messages += [user(question), {"role": "assistant", "content": answer}]
    if prompt:
        messages.append(user("go on"))
    expected = render({"messages": messages}, both_ours[0])[0]
    try:
        found = template_ids(both_ours, messages)
    except TemplateRefusal as refusal:
        found, message = expected, str(refusal)
    else:
        message = ""
    assert found == expected
    assert not message or "become a special token" in message or "side by side" in message


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([user("I say <|assistant_start|>")], "says <|assistant_start|>, which would become"),
        ([user("a"), assistant(part("python", "<|bos|>"), part("text", ""))], "become a special"),
        ([user("a"), assistant(part("text", "<|b"), part("text", "os|>"))], "side by side"),
    ],
)
def test_text_that_would_become_special_tokens_is_refused(messages, sentence):
    with pytest.raises(TemplateRefusal) as caught:
        apply_template(messages)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "system", "content": "a"}],
        [assistant("a")],
        [user("a"), assistant("b"), assistant("c")],
        [user("a"), {"role": "tool", "content": "b"}],
        [user("a"), {"role": "assistant"}],
        [{"role": "user"}],
        [user([part("python", "a")])],
        [user([part("text", None)])],
        [user(part("text", "a"))],
        [user(None)],
        [user("a"), assistant(None)],
        [user("a"), assistant(part("image", "a"), part("text", "a"))],
        [user("a"), assistant(part("python", None), part("text", "a"))],
    ],
)
def test_what_render_refuses_the_template_refuses(messages):
    with pytest.raises(ConversationError):
        render({"messages": messages}, Tokenizer(BYTES))
    with pytest.raises(TemplateRefusal):
        apply_template(messages)


@pytest.mark.parametrize(
    "messages",
    [
        [("developer", "Be brief."), ("user", "Hi")],
        [("system", "A"), ("developer", "B"), ("user", "Hi"), ("assistant", "Yo"), ("user", "So")],
        [("user", "Hi"), ("system", "Late"), ("assistant", "Yo"), ("user", "So")],
        [("user", "one"), ("user", "two")],
        [("user", " "), ("user", "two\n"), ("user", ""), ("user", "three")],
        [("user", "one"), ("user", " \n")],
        [("user", " "), ("user", "\t")],
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("system", "s"), ("user", "d")],
        [("system", " "), ("system", "\n"), ("user", "c")],
    ],
)
def test_roles_that_repeat_are_as_for_the_server(both_ours, messages):
    given = [{"role": role, "content": text} for role, text in messages]
    ids = prompt_tokens([InMessage(**message) for message in given], both_ours[0])
    assert template_ids(both_ours, given, add_generation_prompt=True) == ids


class Learned(jinja2.ext.Extension):
    """transformers' tag, here with marks around what it says is learned."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return f"\x01{caller()}\x02"


def test_the_template_for_training_marks_what_render_learns(both_ours):
    ours, theirs = both_ours
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Learned]
    )
    messages = [message | {} for message in CONVERSATION]
    messages[1] = user("What's 37 * 24?")  # the name of a special token would be refused
    text = environment.from_string(TRAINING_TEMPLATE).render(messages=messages)
    ids, mask = render({"messages": messages}, ours)
    found_ids, found_mask = [], []
    theirs.encode_special_tokens = False
    for number, piece in enumerate(re.split("[\x01\x02]", text)):
        encoded = theirs.encode(piece, add_special_tokens=False).ids
        found_ids += encoded
        found_mask += [number % 2] * len(encoded)
    theirs.encode_special_tokens = True
    assert found_ids == ids
    assert found_mask == mask
    assert re.sub("[\x01\x02]", "", text) == apply_template(messages)


def test_names_that_transformers_marks_as_text_are_let_through():
    start, end = "\U000f0000", "\U000f0001"
    marked = f"I say {start}<|bos|>{end}"
    assert marked in apply_template([user(marked)])
    for text in (f"{marked} <|bos|>", f"{start}<|bos|>", f"{start}<|user_end|><|bos|>{end}"):
        with pytest.raises(TemplateRefusal, match="become a special"):
            apply_template([user(text)])


def test_text_of_a_base_model_begins_with_its_first_token(both_ours, tmp_path):
    ours, _ = both_ours
    ours.to_huggingface(tmp_path, 256, begins=True)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    assert theirs.encode("Hi there").ids == [ours.bos, *ours.encode("Hi there")]
    assert theirs.encode("Hi", "you").ids == [ours.bos, *ours.encode("Hi"), *ours.encode("you")]
    assert theirs.encode("Hi there", add_special_tokens=False).ids == ours.encode("Hi there")
    assert Tokenizer.from_huggingface(tmp_path / "tokenizer.json").hash == ours.hash
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["model_max_length"], config["padding_side"]) == (256, "left")


def test_text_in_parts_is_as_in_one():
    """vLLM and others make parts of every content where a template iterates over any."""
    whole = [{"role": "system", "content": "Be brief."}, user(" What is\n1? "), assistant("2")]
    parts = [{**message, "content": [part("text", message["content"])]} for message in whole]
    parts[1]["content"] = [part("text", " What "), part("text", "is\n1? ")]
    assert apply_template(parts) == apply_template(whole)
    with pytest.raises(TemplateRefusal, match="become a special"):
        apply_template([user([part("text", "<|b"), part("text", "os|>")])])


def test_a_prompt_must_end_with_the_user():
    with pytest.raises(TemplateRefusal, match="the user's"):
        apply_template([user("a"), assistant("b")], add_generation_prompt=True)
