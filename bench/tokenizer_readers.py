"""Readers of `tokenizer.json`: which give the ids of our encoder, which others, which refuse.

    python bench/tokenizer_readers.py --environments FOLDER --text shared/data/text

Trains a tokenizer, exports it, installs each reader at its pin into a folder of its own (kept, and
made where it is missing; 1 GB in all), and compares its ids on texts of several kinds. Prints the
table of docs/interop.md. Exits with 1 where a reader does not do what `READERS` says it does.
"""

# ruff: noqa: RUF001 (texts of many scripts)

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = Any
Ids = list[int]
Encode = Callable[[str], Ids]
SAME, OTHER, REFUSED = "the same ids", "other ids", "refused"
NAMES = "names of special tokens"
VOCABULARY = 8_192
LONG = (1_000, 10_000, 100_000)  # characters

PROSE = """\
There is no accounting for taste, they're sure, but there's a count of 1,234 tastes; I'll say it's
naïve:   "Łódź is 12.5 km away." WE'LL see; don't they?\r\n\r\n\tdef count(tastes):
        return len(tastes)  # what's counted
"""
SCRIPTS = {
    "Cyrillic": "Поезд идёт быстро! Да, но далеко ли? ",
    "Chinese": "小镇的钟停了。又走了，没有人知道为什么。",
    "Japanese": "古い本を読む人、 まだ来ない。カタカナも。",
    "Hindi": "हिन्दी में कुछ शब्द लिखे हैं। ",
    "Arabic": "مرحبا بالعالم، كيف حالك؟ ",
    "Thai": "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Greek": "Ο σκύλος τρέχει γρήγορα. ",
    "Hebrew": "שלום עולם, מה שלומך? ",
    "Korean": "안녕하세요, 세계! 오늘은 날씨가 좋다. ",
}


def texts_of(documents: Sequence[str]) -> dict[str, list[str]]:
    """The texts by their kind."""
    draw = random.Random(0)
    points = [p for p in range(0x20, 0x20000, 67) if not 0xD800 <= p < 0xE000]
    turns = " \n\r\t\u00a0\u2028\u3000'sStTlLvVrRdDmM\u017f1\uff19²½Ⅷ!.<|>_é\u0301中😀\u200d"
    return {
        "numbers": [
            *(str(10**n + 7) for n in range(12)), "3.14159", "1,234,567.89", "0x1F", "1e-10",
            "12 345 6789", "²³¹ ½ Ⅷ １２３ ٣٤", "v2.0.1-rc3", "2026-11-28 16:40",
        ],
        "blanks": [
            "", " ", "  ", "\n", "\r\n\r\n", "\t\t", " a", "a ", "a  b", "a\n\n b", "\u00a0\u2003a",
            "   \n   \n", "x = 1\n\n\n    y = 2", "\u2028\u3000 ",
        ],
        "contractions": ["I'll", "WE'LL", "don't", "it'S", "'tis", "y'all've", "ſ'ſ", "a'd'm're"],
        "punctuation": ["!!!! ......", "<|>", "a_b-c/d\\e", "->=>", "(){}[]", "—–…“”", "http://a.b/c?d=e"],
        "emoji": ["👩‍👩‍👧 🎉🎉", "é e\u0301", "🏳️‍🌈👍🏽", "\U0010ffff\ufffd", "𝔘𝔫𝔦"],
        "scripts": [*SCRIPTS.values(), " ".join(SCRIPTS.values())],
        "code points": [f"a{chr(p)} {chr(p)}1" for p in points],
        "random": ["".join(draw.choices(turns, k=draw.randint(2, 40))) for _ in range(400)],
        "long runs": [c * n for c in (" ", "\n", "a", "1", "!", "é", "ab") for n in LONG[:2]],
        "long scripts": [(t * n)[:n] for t in SCRIPTS.values() for n in LONG],
        "prose": [PROSE, *PROSE.split(), *documents],
        NAMES: [
            "<|bos|>", "a <|user_start|>b<|user_end|> c", "<|bos|><|bos|>", "x<|assistant_end|>",
        ],
    }  # fmt: skip


# Readers in Python: (the folder of the export) -> what encodes a text.


def of_file(module: str, name: str = "Tokenizer") -> Callable[[Path], Encode]:
    """The encoder of a class with `from_file` whose `encode` gives ids, or what has them."""

    def read(folder: Path) -> Encode:
        found = importlib.import_module(module)
        tokenizer = getattr(found, name).from_file(str(folder / "tokenizer.json"))

        def encode(text: str) -> Ids:
            ids = tokenizer.encode(text)
            return [int(i) for i in getattr(ids, "ids", ids)]

        return encode

    return read


def transformers(folder: Path) -> Encode:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: list(tokenizer(text)["input_ids"])


def tokie(folder: Path) -> Encode:
    from tokie import Tokenizer

    tokenizer = Tokenizer.from_json(str(folder / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def kitoken(special: bool) -> Callable[[Path], Encode]:
    """Names of special tokens as the tokens they name, or as text."""

    def read(folder: Path) -> Encode:
        from kitoken import Kitoken

        tokenizer = Kitoken.from_tokenizers_file(str(folder / "tokenizer.json"))
        return lambda text: list(tokenizer.encode(text, special))

    return read


def gigatoken(folder: Path) -> Encode:
    from gigatoken import Tokenizer

    tokenizer = Tokenizer(str(folder / "tokenizer.json"))
    return lambda text: [int(i) for i in tokenizer.encode(text)]


def splintr(folder: Path) -> Encode:
    from splintr import from_json

    tokenizer = from_json(str(folder / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text))


def onnxruntime_extensions(folder: Path) -> Encode:
    from onnxruntime_extensions.pp_api import Tokenizer

    tokenizer = Tokenizer(str(folder))
    return lambda text: [int(i) for i in tokenizer.tokenize(text)]


def pytorch_tokenizers(folder: Path) -> Encode:
    from pytorch_tokenizers import CppHFTokenizer

    tokenizer = CppHFTokenizer()
    tokenizer.load(str(folder / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text, 0, 0))


def omnitoken(folder: Path) -> Encode:
    from omnitoken import Tokenizer

    tokenizer = Tokenizer(str(folder / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text))


def tiktokenizer(folder: Path) -> Encode:
    from tiktokenizer import TikTokenizer

    encoding = TikTokenizer.create(str(folder), cache_dir=str(folder / "cache"))
    return lambda text: list(encoding.encode(text, allowed_special="all"))


def openvino(folder: Path) -> Encode:
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    model = convert_tokenizer(AutoTokenizer.from_pretrained(folder))
    compiled = openvino.compile_model(model, "CPU")
    return lambda text: compiled([text])["input_ids"][0].tolist()


# And in JavaScript: `folder`, and `encode` is to be set.
NODE = {
    "@huggingface/tokenizers": """
        const { Tokenizer } = await import(name);
        const read = (file) => JSON.parse(fs.readFileSync(`${folder}/${file}`));
        const t = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
        encode = (text) => t.encode(text).ids;""",
    "@lenml/tokenizers": """
        const { TokenizerLoader } = await import(name);
        const read = (file) => JSON.parse(fs.readFileSync(`${folder}/${file}`));
        const tokenizerConfig = read("tokenizer_config.json");
        const t = TokenizerLoader.fromPreTrained(
            { tokenizerJSON: read("tokenizer.json"), tokenizerConfig });
        encode = (text) => t.encode(text);""",
    "tokenizers": """
        const { Tokenizer } = (await import(name)).default;
        const t = Tokenizer.fromFile(`${folder}/tokenizer.json`);
        encode = async (text) => (await t.encode(text)).getIds();""",
    "@anush008/tokenizers": """
        const { Tokenizer } = (await import(name)).default;
        const t = Tokenizer.fromFile(`${folder}/tokenizer.json`);
        encode = async (text) => (await t.encode(text)).getIds();""",
    "kitoken": """
        const { Kitoken } = await import("kitoken/node");
        const t = Kitoken.from_tokenizers(fs.readFileSync(`${folder}/tokenizer.json`));
        encode = (text) => Array.from(t.encode(text, true));""",
}
NODE_FRAME = """
import fs from "node:fs";
const [name, folder, texts, out] = process.argv.slice(2);
let encode;
const answer = {};
try {
    BODY
    answer.ids = [];
    for (const text of JSON.parse(fs.readFileSync(texts))) {
        try { answer.ids.push(await encode(text)); } catch (e) { answer.ids.push(String(e)); }
    }
} catch (e) { answer.error = String(e.message ?? e); }
fs.writeFileSync(out, JSON.stringify(answer));
"""


@dataclass(frozen=True)
class Reader:
    """A package that reads the file, and what it is expected to do."""

    package: str
    version: str
    expected: str = SAME
    read: Callable[[Path], Encode] | None = None  # None: a package of Node
    beside: tuple[str, ...] = ()  # further packages that it needs
    how: str = ""  # it is called, where that matters
    whole: bool = False  # installed with all that it names, some 100 MB


HUGGINGFACE, SENTENCES = ("transformers==5.24.0",), ("sentencepiece", "tokenizers")
READERS = (
    Reader("tokenizers", "0.23.3", SAME, of_file("tokenizers")),
    Reader("tokenizers", "0.21.0", SAME, of_file("tokenizers")),
    Reader("transformers", "5.24.0", SAME, transformers, whole=True),
    Reader("fastokens", "0.3.5", SAME, of_file("fastokens")),
    Reader("morpheme", "0.5.0", SAME, of_file("morpheme")),
    Reader("pytorch-tokenizers", "1.5.0", SAME, pytorch_tokenizers, SENTENCES),
    Reader("tiktokenizer", "0.1.1", SAME, tiktokenizer, HUGGINGFACE, "as tiktoken's", whole=True),
    Reader("openvino-tokenizers", "2026.4.1.0", SAME, openvino, HUGGINGFACE, whole=True),
    Reader("kitoken", "0.11.1", SAME, kitoken(True), how="`encode(text, True)`"),
    Reader("@huggingface/tokenizers", "0.2.0"),
    Reader("tokenizers", "0.23.2"),
    Reader("@anush008/tokenizers", "0.6.0"),
    Reader("kitoken", "0.10.1"),
    Reader("kitoken", "0.11.1", OTHER, kitoken(False), how="`encode(text, False)`"),
    Reader("tokie", "0.1.4", OTHER, tokie),
    Reader("iree-tokenizer", "0.3.0", OTHER, of_file("iree.tokenizer"), ("numpy",)),
    Reader("budtiktok", "0.1.0", OTHER, of_file("budtiktok")),
    Reader("omnitoken", "0.3.0", OTHER, omnitoken),
    Reader("gigatoken", "0.10.0", REFUSED, gigatoken, ("numpy",)),
    Reader("snaptokens", "0.2.6", REFUSED, of_file("snaptokens")),
    Reader("splintr-rs", "0.22.0", REFUSED, splintr),
    Reader("onnxruntime-extensions", "0.15.2", REFUSED, onnxruntime_extensions, ("numpy",)),
    Reader("@lenml/tokenizers", "3.7.2", REFUSED),
)  # fmt: skip


def answers(encode: Encode, texts: Sequence[str]) -> list[Ids | str]:
    """The ids of each text, or what it was refused with."""
    found: list[Ids | str] = []
    for text in texts:
        try:
            found.append(encode(text))
        except Exception as error:  # whatever a reader raises is what it does
            found.append(f"{type(error).__name__}: {error}")
    return found


def compare(
    texts: Mapping[str, Sequence[str]],
    found: Sequence[Ids | str],
    ours: Mapping[str, Sequence[Ids]],
) -> dict[str, str]:
    """What is other than ours, by the kind of text; of names, both ways to read them are right."""
    rest, wrong = iter(found), {}
    for kind, some in texts.items():
        got = [next(rest) for _ in some]
        wanted = [ours[kind]] + ([ours[kind + " as tokens"]] if kind == NAMES else [])
        if got not in wanted:
            pairs = zip(got, wanted[0], strict=True)
            wrong[kind] = f"{sum(a != b for a, b in pairs)} of {len(some)}"
    return wrong


def verdict(answer: Json, texts: Json, ours: Json) -> tuple[str, str]:
    """What a reader does, and the particulars."""
    if "error" in answer:
        return REFUSED, " ".join(answer["error"].split())[:90]
    wrong = compare(texts, answer["ids"], ours)
    return (OTHER, "; ".join(f"{k} {n}" for k, n in wrong.items())) if wrong else (SAME, "")


def our_ids(tokenizer: Any, texts: Mapping[str, Sequence[str]]) -> dict[str, list[Ids]]:
    """The ids of our encoder; of names, also as the tokens they name."""
    ours = {kind: [tokenizer.encode(text) for text in some] for kind, some in texts.items()}
    from jaxchat.tokenizer.bpe import SPECIAL_TOKENS

    ours[NAMES + " as tokens"] = [
        tokenizer.encode(text, allowed_special=SPECIAL_TOKENS) for text in texts[NAMES]
    ]
    return ours


def folder_of(reader: Reader, environments: Path) -> Path:
    """Where a reader's package is kept."""
    name = f"{reader.package.replace('/', '-')}-{reader.version}"
    return environments / ("pip" if reader.read else "npm") / name


def installed(reader: Reader, environments: Path) -> Path:
    """The folder of a reader's package, which is installed where it is missing."""
    folder, pip = folder_of(reader, environments), reader.read is not None
    if not folder.exists():
        folder.mkdir(parents=True)
        pin = f"{reader.package}{'==' if pip else '@'}{reader.version}"
        command = (
            [
                sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), pin,
                *reader.beside, *([] if reader.whole else ["--no-deps"]),
            ]
            if pip
            else [
                "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix",
                str(folder), pin,
            ]
        )  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    return folder


def ask(reader: Reader, place: Path | None, export: Path, texts: Path) -> Json:
    """What a reader answers, in a process of its own: it may end it.

    `place` has the package; None: this environment has it.
    """
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out.json"
        if reader.read is not None:
            files = [str(READERS.index(reader)), str(export), str(texts), str(out)]
            command = [sys.executable, __file__, "--reader", *files]
            environment = os.environ | {"HF_HUB_OFFLINE": "1"}
            if place:
                environment["PYTHONPATH"] = str(place)
        else:
            assert place is not None
            script = place / "read.mjs"
            script.write_text(NODE_FRAME.replace("BODY", NODE[reader.package]))
            command = ["node", str(script), reader.package, str(export), str(texts), str(out)]
            environment = dict(os.environ)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if not out.exists():
            return {"error": f"ends with {done.returncode}: {done.stderr.strip()[-80:]}"}
        return json.loads(out.read_text())


def title(reader: Reader) -> str:
    """A reader as the table names it."""
    return reader.package + ("" if reader.read else " (npm)") + (reader.how and f", {reader.how}")


def documents_of(folder: Path | None) -> list[str]:
    """Documents of Parquet files with a column `text`; none without them."""
    if folder is None or not (paths := sorted(folder.glob("*.parquet"))):
        return []
    import pyarrow.parquet as pq

    group = pq.ParquetFile(paths[0]).read_row_group(0, columns=["text"])
    return [str(text) for text in group["text"].to_pylist()[:2_000]]


def measure(args: argparse.Namespace, work: Path) -> int:
    """Trains, exports, asks all readers; prints the table. The exit code."""
    from jaxchat.tokenizer import train_tokenizer

    documents = documents_of(args.text)
    some = [PROSE, *SCRIPTS.values()] * 20
    tokenizer = train_tokenizer([*some, *documents], VOCABULARY if documents else 700)
    tokenizer.to_huggingface(work / "export")
    texts = texts_of(documents[:100])
    ours = our_ids(tokenizer, texts)
    flat = work / "texts.json"
    flat.write_text(json.dumps([text for some in texts.values() for text in some]))
    count = sum(map(len, texts.values()))
    print(f"vocabulary {tokenizer.vocab_size:,}, {count:,} texts of {len(texts)} kinds\n")
    print("| reader | version | result | texts with other ids |\n|---|---|---|---|")
    failed = 0
    for reader in [one for one in READERS if args.only in ("", one.package)]:
        answer = ask(reader, installed(reader, args.environments), work / "export", flat)
        seen, more = verdict(answer, texts, ours)
        failed += seen != reader.expected
        print(f"| {title(reader)} | {reader.version} | {seen} | {more} |", flush=True)
    return int(bool(failed))


def main() -> int:
    """Measures; or is one reader in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path, help="where the readers are installed")
    parser.add_argument("--text", type=Path, help="Parquet files with a column `text`")
    parser.add_argument("--only", default="", help="readers of this package")
    parser.add_argument("--reader", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reader:
        number, export, texts, out = args.reader
        try:
            read = READERS[int(number)].read
            assert read is not None
            encode = read(Path(export))
            answer: Json = {"ids": answers(encode, json.loads(Path(texts).read_text()))}
        except BaseException as error:  # Rust's panics are no Exception
            answer = {"error": f"{type(error).__name__}: {error}"}
        Path(out).write_text(json.dumps(answer))
        return 0
    if not args.environments:
        parser.error("--environments names a folder to install the readers into")
    with tempfile.TemporaryDirectory() as work:
        return measure(args, Path(work))


if __name__ == "__main__":
    sys.exit(main())
