"""A small replica of the datasets of the real tiers, served as the hub does.

    python tests/hub_replica.py FOLDER [SHARED]     serves it until Ctrl-C, and says how to use it

With SHARED, a folder with text/, gsm8k/, humaneval/, chat/ and eval_bundle/, its rows and CORE's
tasks are real ones; without, rows are made up here, and the tasks those of the tests.
"""

import gzip
import json
import random
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hub_server import COMMIT, HubServer

from jaxchat.data.registry import SOURCES
from jaxchat.tasks import EVERYDAY_WORDS

SHARDS = 5  # and one more, for validation
DOCUMENTS = 300  # of a shard
ROWS = 60  # of a split of a dataset
BUNDLE = "jaxchat/bundle"  # the repository that stands for the store of CORE's bundle
TASKS = Path(__file__).parent / "golden" / "core_bundle"
Rows = list[dict[str, Any]]


def build(folder: Path, shared: Path | None = None) -> None:
    """Writes FOLDER/REPO/PATH for every source of the registry but ClimbMix."""
    made = _made_up() if shared is None else _real(shared)
    write_bundle(folder / BUNDLE / "eval_bundle.zip", shared / "eval_bundle" if shared else TASKS)
    for name, splits in made.items():
        source = SOURCES[name]
        for split, rows in splits.items():
            # how many files a split has is the repository's business: one is enough
            path = folder / source.repo / source.files_of(split)[0]
            _write(path, rows)
    text = folder / SOURCES["fineweb_edu"].repo
    if shared is None:
        rng = random.Random(0)
        for shard in range(SHARDS + 1):
            rows = [{"text": _sentences(rng, rng.randint(5, 60))} for _ in range(DOCUMENTS)]
            _write(text / f"shard_{shard:05d}.parquet", rows)
        return
    text.mkdir(parents=True, exist_ok=True)
    for shard, path in enumerate(sorted((shared / "text").glob("*.parquet"))):
        shutil.copy(path, text / f"shard_{shard:05d}.parquet")  # shard_val comes last


@contextmanager
def served(folder: Path) -> Iterator[HubServer]:
    """A server of what `build` wrote."""
    with HubServer() as server:
        for repo in sorted(path for owner in folder.iterdir() for path in owner.iterdir()):
            name = repo.relative_to(folder).as_posix()
            commit = next((s.revision for s in SOURCES.values() if s.repo == name), COMMIT)
            server.add_folder(name, repo, COMMIT if commit == "main" else commit)
        yield server


def bundle_url(server: HubServer) -> str:
    """For eval.bundle_url."""
    return f"{server.url}/plain/{BUNDLE}/eval_bundle.zip"


def write_bundle(path: Path, tasks: Path = TASKS, extra: Iterable[tuple[str, str]] = ()) -> Path:
    """A folder of CORE's tasks, and further files, as nanochat packs its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(tasks.rglob("*")):
            if file.is_file():
                archive.write(file, f"eval_bundle/{file.relative_to(tasks)}")
        for name, content in extra:
            archive.writestr(name, content)
    return path


def _write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)


def _sentences(rng: random.Random, count: int) -> str:
    said = (" ".join(rng.choices(EVERYDAY_WORDS, k=rng.randint(4, 12))) for _ in range(count))
    return " ".join(f"{sentence.capitalize()}." for sentence in said)


def _splits(rows: Rows, test: Rows | None = None) -> dict[str, Rows]:
    return {"train": rows, "test": test or rows[:20]}


def _chats(pairs: Sequence[tuple[str, str]]) -> Rows:
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in pairs
    ]


def _arc(rows: Sequence[tuple[str, list[str], int]]) -> Rows:
    return [
        {
            "id": f"Q_{number}",
            "question": question,
            "choices": {"text": choices, "label": list("ABCDE"[: len(choices)])},
            "answerKey": "ABCDE"[answer],
        }
        for number, (question, choices, answer) in enumerate(rows)
    ]


def _mmlu(rows: Sequence[tuple[str, list[str], int]]) -> dict[str, Rows]:
    made = [
        {"question": question, "subject": "science", "choices": choices, "answer": answer}
        for question, choices, answer in rows
        if len(choices) == 4
    ]
    return dict.fromkeys(("auxiliary_train", "test", "validation", "dev"), made)


def _made_up() -> dict[str, dict[str, Rows]]:
    rng = random.Random(1)
    pairs = [(f"Tell me of {word}.", _sentences(rng, 3)) for word in EVERYDAY_WORDS[: 2 * ROWS]]
    choices = [
        (f"Which is {word}?", [*rng.sample(EVERYDAY_WORDS, 3), word], 3)
        for word in EVERYDAY_WORDS[:ROWS]
    ]
    sums = [
        {
            "question": f"Ann has {a} pears and buys {b}. How many has she?",
            "answer": f"She has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} pears.\n#### {a + b}",
        }
        for a, b in (rng.choices(range(2, 60), k=2) for _ in range(ROWS))
    ]
    functions = [
        {
            "task_id": "HumanEval/0",
            "prompt": 'def double(x: int) -> int:\n    """Twice x."""\n',
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    assert candidate(4) == 8\n",
            "entry_point": "double",
        }
    ]
    return {
        "smoltalk": _splits(_chats(pairs)),
        "mmlu": _mmlu(choices),
        "gsm8k": _splits(sums),
        "arc_easy": _splits(_arc(choices)),
        "arc_challenge": _splits(_arc(choices[::-1])),
        "humaneval": {"test": functions},
    }


def _real(shared: Path) -> dict[str, dict[str, Rows]]:
    chat = _lines(next((shared / "chat").glob("*.jsonl")))
    pairs = [(row["prompt"], row["response"]) for row in chat]
    tasks = {
        name: [
            (row["query"].removeprefix("Question: "), row["choices"], row["gold"])
            for row in _lines(shared / "eval_bundle/eval_data/world_knowledge" / f"{name}.jsonl")
        ]
        for name in ("arc_easy", "arc_challenge")
    }
    with gzip.open(next((shared / "humaneval").glob("*.gz")), "rt") as file:
        functions = [json.loads(line) for line in file]
    return {
        "smoltalk": _splits(_chats(pairs[:-500]), _chats(pairs[-500:])),
        "mmlu": _mmlu(tasks["arc_easy"]),
        "gsm8k": {name: _lines(shared / f"gsm8k/{name}.jsonl") for name in ("train", "test")},
        **{name: _splits(_arc(rows)) for name, rows in tasks.items()},
        "humaneval": {"test": functions},
    }


def _lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(folder: Path, shared: Path | None) -> None:
    """Serves until Ctrl-C."""
    if not folder.exists():
        build(folder, shared)
    with served(folder) as server:
        print(f"HF_ENDPOINT={server.url}", flush=True)
        print(f"--set eval.bundle_url={bundle_url(server)} --set eval.vocabularies_url=none")
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
