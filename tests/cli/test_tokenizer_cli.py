"""`jaxchat tokenizer`: what the commands print, and what they say to bad input."""

import io
import json
import subprocess
import sys

import pytest

from jaxchat.cli.main import main, parse
from jaxchat.cli.tokenizer import visible
from jaxchat.tokenizer import Tokenizer

TEXT = "It was the best of times, it was the worst of times. " * 20


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": TEXT}) + "\n" + json.dumps({"text": "naïve"}) + "\n")
    return path


@pytest.fixture
def trained(tmp_path, text, capsys):
    assert run("train", text, "--vocab-size", 280, "--out", tmp_path / "mine") == 0
    capsys.readouterr()
    return tmp_path / "mine"


def run(*arguments):
    return main(["tokenizer", *map(str, arguments)])


def test_train_makes_a_tokenizer_and_tells_what_it_cost(tmp_path, text, capsys):
    assert run("train", text, "--vocab-size", 270, "--out", tmp_path / "a", "--threads", 1) == 0
    reported = capsys.readouterr().out.splitlines()
    assert reported.pop(0) == "texts: read 1 .jsonl"
    assert reported[0] == "270 tokens from 2 texts of 0.0 MB, 282 words, 13 of them distinct"
    assert "of memory at most" in reported[1]
    assert reported[2] == f"written to {tmp_path / 'a'}"
    assert Tokenizer.load(tmp_path / "a").vocab_size == 270


def test_a_tokenizer_without_tools_has_five_special_tokens(tmp_path, text):
    assert run("train", text, "--vocab-size", 261, "--out", tmp_path / "five", "--no-tools") == 0
    tokenizer = Tokenizer.load(tmp_path / "five")
    assert (len(tokenizer.specials), tokenizer.has_tools) == (5, False)


def test_the_pattern_is_a_name_or_a_regular_expression(tmp_path, text):
    for pattern, spaces in (("gpt2", "? ?"), (r"\w+|\W", r"\w+|\W")):
        out = tmp_path / str(len(pattern))
        assert run("train", text, "--vocab-size", 270, "--out", out, "--pattern", pattern) == 0
        assert spaces in Tokenizer.load(out).pattern or pattern == "gpt2"
    assert r" ?\p{L}++" in Tokenizer.load(tmp_path / "4").pattern


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gpt-4", "there is no pattern 'gpt-4'; did you mean gpt4?"),
        ("GPT2", "there is no pattern 'GPT2'; did you mean gpt2?"),
        ("Jax_Chat", "did you mean jaxchat?"),
        ("cl100k_base", "there is no pattern 'cl100k_base'. There are jaxchat, gpt2, gpt4, and"),
    ],
)
def test_a_word_that_is_no_pattern_is_refused(tmp_path, text, capsys, given, said):
    out = tmp_path / "out"
    assert run("train", text, "--vocab-size", 300, "--out", out, "--pattern", given) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_pattern_need_not_cover_the_text(tmp_path, text, capsys):
    out = tmp_path / "out"
    assert run("train", text, "--vocab-size", 300, "--out", out, "--pattern", r"\w+") == 0
    assert run("encode", out, "It was, well, the best!") == 0
    ids = capsys.readouterr().out.splitlines()[-1].split()
    assert Tokenizer.load(out).decode(list(map(int, ids))) == "It was, well, the best!"


def test_no_text_is_no_vocabulary(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    assert run("train", tmp_path / "empty.txt", "--vocab-size", 300, "--out", tmp_path / "o") == 2
    assert "nothing to learn a vocabulary from" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_text_that_runs_out_of_pairs_and_dropped_words_are_reported(tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text(" ".join(f"w{n}" for n in range(99)))
    out = tmp_path / "out"
    assert run("train", words, "--vocab-size", 5000, "--out", out, "--max-words", 10) == 0
    reported = capsys.readouterr().out
    assert "no more pairs to merge; 5,000 tokens need more of it" in reported
    assert "because of --max-words" in reported


def test_train_reads_stdin(tmp_path):
    code = "import sys\nfrom jaxchat.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    arguments = ["tokenizer", "train", "-", "--vocab-size", "266", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, input=TEXT.encode(), capture_output=True, check=True)
    assert done.stdout.startswith(b"266 tokens from 1 texts")
    assert done.stderr == b""


def test_encode_prints_ids_of_the_argument_a_file_or_stdin(trained, tmp_path, capsys, monkeypatch):
    expected = " ".join(map(str, Tokenizer.load(trained).encode("the <|bos|>\n")))
    (tmp_path / "file.txt").write_text("the <|bos|>\n")

    class Stdin:
        buffer = io.BytesIO(b"the <|bos|>\n")

    monkeypatch.setattr(sys, "stdin", Stdin)
    for arguments in (["the <|bos|>\n"], ["--file", tmp_path / "file.txt"], []):
        assert run("encode", trained, *arguments) == 0
        assert capsys.readouterr().out.strip() == expected


def test_encode_can_show_the_pieces(trained, capsys):
    assert run("encode", trained, "times\n é", "--show") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[9:] for line in lines[:-1]][-4:] == [r"\n", "·", r"\xc3", r"\xa9"]
    tokens = len(lines) - 1
    assert lines[-1] == (
        f"{tokens} tokens, 8 characters, 9 bytes: {8 / tokens:.2f} characters and "
        f"{9 / tokens:.2f} bytes per token"
    )


def test_pieces_are_visible_and_harmless():
    assert visible(b" a\t\x1b[2J\xc2\xa0\xff") == r"·a\t\x1b[2J\xa0\xff"
    assert visible("é中😀".encode()) == "é中😀"


def test_eval_prints_the_projects_texts_and_ones_own(trained, text, capsys):
    assert run("eval", trained, "--text", text) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vocabulary 280"
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert {"english", "code", "maths", "chinese", "emoji", "text.jsonl"} <= set(rows)
    assert rows["text.jsonl"][:2] == ["1,065", "1,066"]
    tokens = sum(len(Tokenizer.load(trained).encode(t)) for t in (TEXT, "naïve"))
    assert rows["text.jsonl"][2:] == [f"{tokens}", f"{1065 / tokens:.2f}", f"{1066 / tokens:.2f}"]


def test_compare_has_a_column_for_each(trained, tmp_path, text, capsys):
    other = tmp_path / "elsewhere" / "mine"
    assert run("train", text, "--vocab-size", 266, "--out", other) == 0
    capsys.readouterr()
    assert run("compare", trained, other) == 0
    out = capsys.readouterr().out
    assert str(other) in out.splitlines()[0]  # both are called "mine"
    assert "GPT-2" in out
    assert "GPT-4" in out
    assert "bytes per token" in out
    assert out.splitlines()[1].split()[:3] == ["vocabulary", "280", "266"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train", "FILE", "--vocab-size", "264", "--out", "new"], 2, "need at least 265"),
        (["train", "missing", "--vocab-size", "300", "--out", "new"], 2, "does not exist"),
        (["train", "FILE", "--vocab-size", "300", "--out", "."], 2, "is there already"),
        (["train", "FILE", "--vocab-size", "300", "--out", "new", "--pattern", "("], 2, "pattern"),
        (["encode", "missing", "text"], 1, "no usable tokenizer in missing"),
        (["encode", "mine", "text", "--file", "FILE"], 2, "not both"),
        (["eval", "missing"], 1, "no usable tokenizer"),
        (["eval", "mine", "--text", "-"], 2, "stdin cannot be read several times"),
        (["compare", "mine", "broken"], 1, "is not JSON"),
    ],
)
def test_bad_input_is_one_sentence(trained, text, monkeypatch, capsys, arguments, code, sentence):
    monkeypatch.chdir(trained.parent)
    (trained.parent / "broken").mkdir()
    (trained.parent / "broken" / "tokenizer.json").write_text("{")
    assert run(*(str(text) if a == "FILE" else a for a in arguments)) == code
    reported = capsys.readouterr().err
    assert reported.startswith("jaxchat: ")
    assert sentence in reported
    assert reported.count("\n") == 1
    assert not (trained.parent / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train", "a"],
        ["train", "a", "--vocab-size", "many", "--out", "b"],
        ["train", "a", "--vocab-size", "300", "--out", "b", "--threads", "0"],
        ["eval"],
        ["compare"],
    ],
)
def test_bad_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["tokenizer", *arguments])
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err
