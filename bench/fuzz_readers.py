"""Random files for every reader, compared with the counts of independent parsers.

    python bench/fuzz_readers.py                           20,000 inputs per reader, seed 0
    python bench/fuzz_readers.py --inputs 500 --seed 7 --only parquet,talks

A reader must either refuse an input with one of the documented errors, or return as many
characters (and, of Parquet, rows without text) as plain Python counts: `str.decode`, `json`,
`gzip`, `tomllib`, and `pyarrow.parquet.read_table`. An intact input must be read. An input that
violates this is written to --keep; its number and the seed reproduce it.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from jaxchat.data.files import table, text
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals.core import bundle
from jaxchat.tasks.conversations import Custom
from jaxchat.tasks.persona import read_persona

INPUTS = 20_000  # a reader
MARK = b"\xef\xbb\xbf"
WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
PIECES = (
    *"a b word  \t \n \n \r \r\n ä é グ 🙂 {}\" \\ , \0 \x0b \x0c \x1a".split(" "),
    *"\x85 \ufeff \u2028 \xa0".split(" "),
    " ", "it was the best of times ", "語" * 30, "\n\n",
)  # fmt: skip
KNOWN = (ArtifactError, ConfigError)  # which users see as one message

Draw = random.Random
REFUSED = None  # instead of counts


@dataclass(frozen=True)
class Case:
    """An input, and what is known of it.

    Attributes:
        path: the file, or the folder of a bundle.
        expected: (characters, rows or conversations); REFUSED; "any" where no oracle exists.
        data: what is written; of a bundle, its files.
        lenient: it may be refused, too, as what is in it is for us to judge.
    """

    path: Path
    expected: Any
    data: bytes
    lenient: bool = False


class Broken(Exception):
    """A reader violated its contract."""


# ---------------------------------------------------------------------------- bytes


def words(draw: Draw, most: int = 12) -> str:
    """Some text."""
    return "".join(draw.choices(PIECES, k=draw.randrange(most)))


def encode(draw: Draw, plain: str) -> bytes:
    """Text in UTF-8, with a mark or not; seldom in another encoding."""
    kind = draw.random()
    if kind < 0.1:
        return MARK + plain.encode()
    if kind > 0.96:
        return plain.encode(draw.choice(WIDE))
    if kind > 0.94:
        return plain.encode("latin-1", "replace")
    return plain.encode()


def hurt(draw: Draw, data: bytes) -> bytes:
    """The bytes after an accident."""
    if not data:
        return data
    at = draw.randrange(len(data))
    accident = draw.randrange(5)
    if accident == 0:
        return data[:at]
    if accident == 1:
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if accident == 2:
        return data[:at] + draw.randbytes(draw.randrange(1, 9)) + data[at:]
    if accident == 3:
        return data + draw.randbytes(draw.randrange(1, 9))
    return data[:at] + bytes(min(8, len(data) - at)) + data[at + 8 :]


def decoded(data: bytes) -> str | None:
    """The text of a file; None if it is not UTF-8."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:4] == b"\0\0\xfe\xff":
        return None
    zeros = [byte == 0 for byte in data[:4]]
    if zeros in ([0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 0]):
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def compress(draw: Draw, data: bytes, suffix: str) -> bytes:
    """In one member or frame, or in two."""
    at = draw.randrange(len(data) + 1)
    parts = [data] if draw.random() < 0.7 else [data[:at], data[at:]]
    if suffix.endswith("gz"):
        return b"".join(gzip.compress(part, 1) for part in parts)
    return b"".join(pyarrow.compress(part, codec="zstd", asbytes=True) for part in parts)


def decompressed(data: bytes, suffix: str) -> Any:
    """The content as another program has it; None for damage, "any" where none is asked."""
    if suffix.endswith("gz"):
        if not data:
            return None
        try:
            return gzip.decompress(data)
        except Exception:
            return None
    if shutil.which("zstd") is None or zlib.crc32(data) % 50:
        return "any"
    done = subprocess.run(["zstd", "-dqc"], input=data, capture_output=True)
    return done.stdout if done.returncode == 0 else None


def written(
    draw: Draw,
    folder: Path,
    kind: str,
    plain: bytes,
    count: Callable[..., Any],
    judged: bool = False,
) -> Case:
    """A file of this kind that holds `plain`, unless it is hurt; `count` is of its content.

    `judged`: what was hurt may be refused although the count succeeds.
    """
    packed = kind.partition(".")[2]
    name = draw.choice((f"x.{kind}", f"x.{kind}", f"X.{kind.upper()}"))
    if not packed:
        data = hurt(draw, plain) if draw.random() < 0.2 else plain
        content: Any = data
    else:
        content = hurt(draw, plain) if draw.random() < 0.1 else plain
        data = compress(draw, content, packed)
        if draw.random() < 0.2:
            data = hurt(draw, data)
            content = decompressed(data, packed)
    path = folder / name
    path.write_bytes(data)
    expected = content if content in ("any", REFUSED) else count(content)
    return Case(path, expected, data, judged and content != plain)


# ---------------------------------------------------------------------------- text


def count_plain(data: bytes) -> Any:
    """Characters of plain text."""
    plain = decoded(data)
    return REFUSED if plain is None else (len(plain), 0)


def count_lines(data: bytes) -> Any:
    """Characters of the texts in JSON lines."""
    total = 0
    try:
        for value in parsed(data):
            total += len(value["text"].encode().decode())
    except Exception:
        return REFUSED
    return total, 0


def parsed(data: bytes) -> list[Any]:
    """The values of JSON lines. Raises Exception for invalid JSON."""
    plain = decoded(data)
    assert plain is not None
    assert all(len(line) <= text.MAX_RECORD for line in io.BytesIO(data))
    lines = (line.lstrip("\ufeff") for line in plain.split("\n"))
    return [json.loads(line) for line in lines if line.strip(" \t\r\v\f")]


def plain_case(draw: Draw, folder: Path, kind: str) -> Case:
    """A file of plain text."""
    return written(draw, folder, kind, encode(draw, words(draw, 40)), count_plain)


def record(draw: Draw) -> str:
    """One line of JSON, seldom a bad one."""
    bad = draw.random()
    if bad < 0.04:
        return draw.choice(
            ('{"text": 1}', "[]", "3", "{", '{"txt": ""}', '{"text": "\\ud800"}', "\0")
        )
    fields: dict[str, Any] = {"text": words(draw)}
    if draw.random() < 0.3:
        fields["id"] = draw.choice((1, None, [1], {"text": "inner"}, "ä", 1e400))
    line = json.dumps(fields, ensure_ascii=draw.random() < 0.5)
    return draw.choice(("", "", "", " ", "\ufeff")) + line


def lines_case(draw: Draw, folder: Path, kind: str) -> Case:
    """A file of JSON lines."""
    found = [
        record(draw) if draw.random() < 0.9 else draw.choice(("", "  ", "\t"))
        for _ in range(draw.randrange(6))
    ]
    end = draw.choice(("\n", "\n", "\r\n"))
    whole = end.join(found) + draw.choice(("", end))
    return written(draw, folder, kind, encode(draw, whole), count_lines)


def read_text_file(case: Case) -> Any:
    """(characters, rows without text) as our reader has them."""
    files = TextFiles.of([case.path])
    characters = sum(map(len, files))
    return characters, sum(files.nulls.values())


def read_stdin(case: Case) -> Any:
    """The same, through stdin."""
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(case.data))
    try:
        return sum(map(len, TextFiles(["-"]))), 0
    finally:
        sys.stdin = stdin


def stdin_case(draw: Draw, folder: Path, kind: str) -> Case:
    """Plain text for stdin."""
    del kind
    return plain_case(draw, folder, "txt")


def parquet_case(draw: Draw, folder: Path, kind: str) -> Case:
    """A Parquet file of one to three row groups."""
    count = draw.randrange(9)
    texts = [None if draw.random() < 0.1 else words(draw) for _ in range(count)]
    kinds = (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.int32())
    type_ = draw.choices(kinds, (6, 2, 2, 1))[0]
    values = [len(t or "") for t in texts] if type_ == kinds[3] else texts
    if type_ == kinds[2]:
        values = [None if t is None else encode(draw, t) for t in texts]
    name = draw.choice(("text",) * 9 + ("txt",))
    sink = io.BytesIO()
    parquet.write_table(
        pyarrow.table({name: pyarrow.array(values, type_), "n": list(range(count))}), sink,
        compression=draw.choice(("snappy", "zstd", "gzip", "none", "lz4")), row_group_size=4,
        use_dictionary=draw.random() < 0.5, write_page_checksum=draw.random() < 0.5,
    )  # fmt: skip
    whole = sink.getvalue()
    data = hurt(draw, whole) if draw.random() < 0.3 else whole
    path = folder / draw.choice((f"x.{kind}", f"X.{kind.upper()}"))
    path.write_bytes(data)
    if data == whole:
        expected = REFUSED if name == "txt" or type_ == kinds[3] else count_values(values)
    else:
        expected = count_parquet(data)  # which does not look at the other column's name
    return Case(path, expected, data, data != whole)


def count_values(values: list[Any]) -> Any:
    """Characters and rows without text."""
    try:
        plain = [v.decode() if isinstance(v, bytes) else v for v in values]
    except UnicodeDecodeError:
        return REFUSED
    return sum(len(v) for v in plain if v is not None), plain.count(None)


def count_parquet(data: bytes) -> Any:
    """(characters, rows without text) of the table as pyarrow reads it at once; or REFUSED."""
    try:
        found = parquet.read_table(
            io.BytesIO(data), columns=["text"], page_checksum_verification=True
        )
        column = found.column("text")
        return (
            REFUSED if pyarrow.types.is_integer(column.type) else count_values(column.to_pylist())
        )
    except Exception:
        return REFUSED


# ---------------------------------------------------------------------------- other readers


def talk(draw: Draw) -> Any:
    """A conversation, seldom a bad one."""
    turns: list[Any] = [{"role": "system", "content": "Be brief."}] * (draw.random() < 0.2)
    for _ in range(draw.randrange(1, 3)):
        turns.append({"role": "user", "content": words(draw) + "?"})
        turns.append({"role": "assistant", "content": words(draw) + "."})
    if draw.random() < 0.1:
        turns[-1] = draw.choice(
            (3, {}, {"role": "bot", "content": ""}, {"role": "assistant"}, None)
        )
    return turns if draw.random() < 0.4 else {"messages": turns, "id": words(draw)}


def said(turns: Any) -> int:
    """Characters of a conversation."""
    turns = turns["messages"] if isinstance(turns, dict) else turns
    assert all(turn["role"] in ("system", "user", "assistant") for turn in turns)
    return sum(len(turn["content"].encode().decode()) for turn in turns)


def count_talks(data: bytes) -> Any:
    """Characters of all conversations, and how many they are."""
    try:
        found = parsed(data)
        return (sum(map(said, found)), len(found)) if found else REFUSED
    except Exception:
        return REFUSED


def talks_case(draw: Draw, folder: Path, kind: str) -> Case:
    """A file of conversations."""
    kind = draw.choice((kind, f"{kind}.gz", f"{kind}.zst"))
    found = [
        json.dumps(talk(draw), ensure_ascii=draw.random() < 0.5) for _ in range(draw.randrange(4))
    ]
    return written(draw, folder, kind, encode(draw, "\n".join(found)), count_talks, True)


def read_talks(case: Case) -> Any:
    """Characters and number of conversations."""
    read = Custom([case.path])
    return sum(said(read.conversation(n)) for n in range(len(read))), len(read)


EXAMPLES: dict[str, Callable[[Draw], Any]] = {
    "multiple_choice": lambda draw: {
        "query": words(draw), "choices": ["a", "b"], "gold": draw.randrange(2)
    },
    "schema": lambda draw: {"context_options": ["a", "b"], "continuation": words(draw), "gold": 1},
    "language_modeling": lambda draw: {"context": words(draw), "continuation": words(draw)},
}  # fmt: skip


def bundle_case(draw: Draw, folder: Path, kind: str) -> Case:
    """A bundle of one task, one of whose three files may be hurt."""
    del kind
    task = draw.choice(list(EXAMPLES))
    config = (
        "icl_tasks:\n- {label: t, dataset_uri: t.jsonl, num_fewshot: [0], "
        f"icl_task_type: {task}}}\n"
    )
    lines = [json.dumps(EXAMPLES[task](draw)) for _ in range(draw.randrange(1, 4))]
    files = {
        "core.yaml": config.encode(),
        "eval_meta_data.csv": b"Eval Task,Random baseline\r\nt,25\r\n",
        "eval_data/t.jsonl": encode(draw, draw.choice(("\n", "\n\n")).join(lines)),
    }
    expected: Any = count_examples(files["eval_data/t.jsonl"])
    lenient = draw.random() < 0.4
    if lenient:
        name = draw.choice(list(files))
        files[name] = draw.choice((hurt(draw, files[name]), MARK + files[name]))
        data = files["eval_data/t.jsonl"]
        expected = count_examples(data) if name.endswith("jsonl") else "any"
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return Case(folder, expected, b"\n---\n".join(files.values()), lenient)


def count_examples(data: bytes) -> Any:
    """Characters of the texts in examples; whether they are complete is ours to judge."""
    try:
        found = parsed(data)
        return sum(len(json.dumps(one)) for one in found), len(found)
    except Exception:
        return REFUSED


def read_examples(case: Case) -> Any:
    """The same as our reader has them."""
    examples = bundle.read_examples(bundle.read_bundle(case.path).tasks[0])
    return sum(len(json.dumps(one)) for one in examples), len(examples)


def persona_case(draw: Draw, folder: Path, kind: str) -> Case:
    """A persona, often whole."""
    del kind
    name = draw.choice(("Ada", "Zoë", "語", "A. B.", " x"))
    lines = [f"name = {json.dumps(name)}", "[answers]", 'who_made_you = "Mia, in her kitchen."']
    lines += [
        "[[more]]",
        f'questions = ["Q{draw.randrange(9)}?", "{draw.choice("äbc")}"]',
        'answer = "Yes."',
    ]
    count = draw.choice((1, 2, 3, 6, 6, 6, 4, 5))
    plain = encode(draw, draw.choice(("\n", "\r\n")).join(lines[:count]))
    data = hurt(draw, plain) if draw.random() < 0.3 else plain
    path = folder / "persona.toml"
    path.write_bytes(data)
    try:
        content = decoded(data)
        assert content is not None
        content = content.replace("\r\n", "\n").replace("\r", "\n")  # as text files are opened
        expected: Any = json.dumps(tomllib.loads(content), default=str)
    except Exception:
        expected = REFUSED
    return Case(path, expected, data, data != plain or count in (4, 5) or name == " x")


def read_persona_file(case: Case) -> Any:
    """The document."""
    return json.dumps(read_persona(case.path), default=str)


Maker = Callable[[Draw, Path, str], Case]
READERS: dict[str, tuple[Maker, Callable[[Case], Any]]] = {
    "txt": (plain_case, read_text_file),
    "txt.gz": (plain_case, read_text_file),
    "txt.zst": (plain_case, read_text_file),
    "jsonl": (lines_case, read_text_file),
    "jsonl.gz": (lines_case, read_text_file),
    "jsonl.zst": (lines_case, read_text_file),
    "parquet": (parquet_case, read_text_file),
    "stdin": (stdin_case, read_stdin),
    "talks": (talks_case, read_talks),
    "bundle": (bundle_case, read_examples),
    "persona": (persona_case, read_persona_file),
}
KINDS = {"talks": "jsonl"}  # the ending where it is not the reader's name


def check(name: str, seed: int, number: int, folder: Path) -> str:
    """Makes an input and reads it: "read" or "refused". Raises Broken, with the input's path."""
    draw = Draw(f"{seed} {name} {number}")  # also of the limits, so that small files meet them
    text.CHUNK = draw.choice((4, 5, 6, 7, 64, 1 << 20))
    text.MAX_RECORD = table.MAX_RECORD = draw.choice((60, *[1 << 26] * 4))
    make, read = READERS[name]
    case = make(draw, folder, KINDS.get(name, name))
    try:
        got = read(case)
    except KNOWN as error:
        if "\n" in str(error) and name != "talks":
            raise Broken(f"several lines: {error}") from error
        if not case.lenient and case.expected not in ("any", REFUSED):
            raise Broken(f"refused ({error}), though others read {case.expected}") from error
        return "refused"
    except Exception as error:
        raise Broken(traceback.format_exc()) from error
    if case.expected != "any" and got != case.expected:
        raise Broken(f"read {got}, but others {case.expected}: {case.data[:300]!r}")
    return "read"


def fuzz(
    name: str, seed: int, inputs: int, keep: Path | None = None
) -> tuple[Counter[str], list[str]]:
    """Counts of inputs that a reader read and refused, and the faults of the others."""
    counts: Counter[str] = Counter()
    broken = []
    limits = text.CHUNK, text.MAX_RECORD, table.MAX_RECORD
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as work:
        try:
            for number in range(inputs):
                folder = Path(work)
                try:
                    counts[check(name, seed, number, folder)] += 1
                except Broken as error:
                    counts["broken"] += 1
                    broken.append(f"{name}, seed {seed}, number {number}: {error}")
                    if keep is not None:
                        shutil.copytree(folder, keep / f"{name}-{number}", dirs_exist_ok=True)
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            text.CHUNK, text.MAX_RECORD, table.MAX_RECORD = limits
    return counts, broken


def main() -> int:
    """Fuzzes the readers and prints the counts; 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=INPUTS, help="per reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(READERS), help="readers, separated by commas")
    parser.add_argument("--keep", type=Path, help="a folder for inputs that expose a fault")
    args = parser.parse_args()
    total: Counter[str] = Counter()
    for name in args.only.split(","):
        began = time.monotonic()
        counts, broken = fuzz(name, args.seed, args.inputs, args.keep)
        total += counts
        print(f"{name:<10} {dict(counts)}, {time.monotonic() - began:.0f} s", flush=True)
        print(*broken[:5], sep="\n", end="\n" * bool(broken), flush=True)
    print(f"all        {dict(total)}, seed {args.seed}")
    return 1 if total["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
