"""lm-eval's scores of a served model, beside its scores of the export and our own evaluator's.

    python bench/clients/lm_harness.py --home HOME --run cpu --stage rl --bundle EVAL_BUNDLE

Questions of ARC-Easy and COPA become a local task of lm-eval, each beginning with <|bos|>. They are
asked of `jaxchat serve` by lm-eval's `local-completions`, which names no tokenizer and so takes the
server's, and of `jaxchat export` by its `hf`; and the same ids are scored by the evaluator of
`jaxchat eval core`. Every choice has a sum of log-probabilities; the largest differences are
printed, and examples a second: of lm-eval's requests alone, without its start. Exits with 1 where
sums differ by more than 1e-3, or the ids of server, export and evaluator are not the same.

lm-eval, transformers and torch are installed into an environment of their own (`--environment`), or
are those of `--python`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.config.schema import MeshConfig
from jaxchat.evals.core.bundle import Bundle, CoreTask, read_bundle, read_examples
from jaxchat.evals.core.evaluate import evaluate_core
from jaxchat.evals.core.prompts import Choice, draw_shots, prompts, split_rows
from jaxchat.evals.core.scoring import score_rows
from jaxchat.evals.model import EvalModel
from jaxchat.parallel.launch_env import start_jax
from jaxchat.runs.opening import eval_model, find_model
from jaxchat.tokenizer import Tokenizer

TASKS = ("arc_easy", "copa")
PACKAGES = ("lm-eval[api]==0.4.13", "transformers", "torch", "accelerate")
TOLERANCE = 1e-3
BOS = "<|bos|>"
CONFIG = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
num_fewshot: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@dataclass(frozen=True)
class Question:
    """One example: what stands before its choices, the choices, and the right one."""

    context: str
    choices: tuple[str, ...]
    gold: int


def read_questions(task: CoreTask, shots: int, count: int) -> list[Question]:
    """The first examples of a task in the evaluator's order."""
    examples = read_examples(task, count)
    found = []
    for index, example in enumerate(examples):
        whole = prompts(task, example, draw_shots(examples, index, shots))
        context = whole[0].removesuffix(str(example["choices"][0]))
        choices = tuple(text.removeprefix(context) for text in whole)
        found.append(Question(BOS + context, choices, example["gold"]))
    return found


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text with names of special tokens, as transformers reads it."""
    return tokenizer.encode(text, allowed_special=[BOS])


def choices_of(question: Question, tokenizer: Tokenizer) -> list[Choice]:
    """Whole prompts, scored from where lm-eval's context ends: blanks at its end are a choice's."""
    start = len(encode(question.context.rstrip(), tokenizer))
    texts = (question.context + choice for choice in question.choices)
    return [Choice(np.array(encode(text, tokenizer)), start) for text in texts]


def our_sums(questions: Sequence[Question], model: EvalModel) -> list[list[float]]:
    """The evaluator's sum of log-probabilities of every choice."""
    asked = [choices_of(question, model.tokenizer) for question in questions]
    rows = [
        row
        for number, choices in enumerate(asked)
        for row in split_rows(number, choices, model.config.sequence_len)
    ]
    scores = score_rows(rows, model)
    return [
        [-scores[n, c].loss * (len(x.tokens) - x.start) for c, x in enumerate(choices)]
        for n, choices in enumerate(asked)
    ]


def write_tasks(folder: Path, questions: dict[str, list[Question]]) -> None:
    """lm-eval's task files."""
    for name, asked in questions.items():
        data = folder / f"{name}.jsonl"
        lines = (
            json.dumps({"context": q.context, "choices": q.choices, "gold": q.gold}) for q in asked
        )
        data.write_text("\n".join(lines) + "\n")
        (folder / f"{name}.yaml").write_text(CONFIG.format(task=f"our_{name}", data=data))


def ask_harness(
    python: Path, model: str, settings: dict[str, Any], folder: Path, batch: int
) -> tuple[dict[str, list[list[float]]], int]:
    """Task -> sums of every choice, and seconds of the requests, by lm-eval's own progress bar."""
    out = folder / model
    for old in out.rglob("samples_*"):
        old.unlink()
    done = subprocess.run(
        [
            python, "-m", "lm_eval", "--model", model, "--model_args",
            ",".join(f"{name}={value}" for name, value in settings.items()),
            "--tasks", ",".join(f"our_{task}" for task in TASKS), "--include_path", str(folder),
            "--output_path", str(out), "--log_samples", "--batch_size", str(batch),
            *(("--device", "cpu") if model == "hf" else ()),
        ],
        check=True, cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    bars = r"(?:Requesting API|Running loglikelihood requests): 100%.*?\[(\d+):(\d+)<"
    seconds = max((60 * int(m) + int(s) for m, s in re.findall(bars, done.stderr)), default=0)
    found = {}
    for task in TASKS:
        (path,) = out.rglob(f"samples_our_{task}_*.jsonl")
        samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda s: s["doc_id"])
        found[task] = [[float(r[0]) for r in one["filtered_resps"]] for one in samples]
    return found, seconds


@contextmanager
def served(home: Path, run: str, stage: str) -> Iterator[str]:
    """The address of a server."""
    command = [
        sys.executable, "-m", "jaxchat", "serve", "--home", str(home), "--port", "0", "--quiet",
        "--model", f"{run}/{stage}", "--no-warm-up",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = ""
        while "open http" not in line:
            line = process.stdout.readline()
            assert line, "the server has ended"
        yield line.partition("open ")[2].split()[0]
    finally:
        process.terminate()
        process.wait(60)


def same_ids(
    questions: dict[str, list[Question]], tokenizer: Tokenizer, url: str, python: Path, export: Path
) -> tuple[int, int]:
    """Prompts that server, export and evaluator read as the same ids, and prompts."""
    texts = [
        q.context + choice for asked in questions.values() for q in asked for choice in q.choices
    ]
    ours = [encode(text, tokenizer) for text in texts]
    served = []
    for text in texts:
        body = json.dumps({"prompt": text, "add_special_tokens": False}).encode()
        request = urllib.request.Request(
            f"{url}/tokenize", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            served.append(json.load(answer)["tokens"])
    code = (
        "import json, sys, transformers as t; r = t.AutoTokenizer.from_pretrained(sys.argv[1]); "
        "texts = json.load(sys.stdin); "
        "print(json.dumps([r(x, add_special_tokens=False).input_ids for x in texts]))"
    )
    done = subprocess.run(
        [python, "-c", code, str(export)], input=json.dumps(texts), text=True, check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    exported = json.loads(done.stdout.splitlines()[-1])
    return sum(a == b == c for a, b, c in zip(ours, served, exported, strict=True)), len(texts)


def environment(folder: Path) -> Path:
    """The Python of an environment with lm-eval, made where it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def own_speed(model: EvalModel, bundle: Bundle, shots: int, count: int) -> float:
    """Examples a second of `jaxchat eval core`, once everything is compiled."""
    for _ in range(2):
        result = evaluate_core(model, bundle, tasks=TASKS, max_problems=count)
    return sum(len(t.judged) for t in result.tasks) / sum(t.seconds for t in result.tasks)


def our_bundle(source: Path, folder: Path, shots: int) -> Bundle:
    """The bundle, with `shots` solved examples before each question."""
    text = (source / "core.yaml").read_text()
    (folder / "core.yaml").write_text(
        re.sub(r"num_fewshot: \[\d+\]", f"num_fewshot: [{shots}]", text)
    )
    for name in ("eval_data", "eval_meta_data.csv"):
        (folder / name).symlink_to((source / name).resolve())
    return read_bundle(folder)


def differences(ours: list[list[float]], theirs: list[list[float]]) -> tuple[int, float]:
    """Choices compared, and the largest difference of their sums."""
    pairs = [
        abs(a - b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    return len(pairs), max(pairs)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--stage", default="rl")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=500, help="of each task, at most")
    parser.add_argument("--shots", type=int, default=0, help="solved examples before a question")
    parser.add_argument("--batch", type=int, default=32, help="prompts of one request")
    parser.add_argument("--concurrent", type=int, default=4, help="requests at once")
    parser.add_argument("--environment", type=Path, default=Path("lm-eval-environment"))
    parser.add_argument("--python", type=Path, help="with lm-eval, transformers and torch")
    args = parser.parse_args()
    python = (args.python or environment(args.environment)).absolute()
    start_jax(MeshConfig(), args.home / "xla")
    context, stage = find_model(args.home, args.run, args.stage)
    model = eval_model(context, stage)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = our_bundle(args.bundle, folder, args.shots)
        longest = model.config.sequence_len - 1  # lm-eval keeps one position for the answer
        questions = {}
        for task in bundle.select(TASKS):
            asked = read_questions(task, args.shots, args.examples)
            questions[task.label] = [
                q
                for q in asked
                if max(len(c.tokens) for c in choices_of(q, model.tokenizer)) <= longest
            ]
        write_tasks(folder, questions)
        ours = {name: our_sums(asked, model) for name, asked in questions.items()}
        export = [sys.executable, "-m", "jaxchat", "export", "--home", str(args.home)]
        subprocess.run([*export, args.run, stage, str(folder / "export")], check=True)
        exported, hf_seconds = ask_harness(
            python, "hf", {"pretrained": folder / "export", "dtype": "float32"},
            folder, args.batch,
        )  # fmt: skip
        with served(args.home, args.run, stage) as url:
            settings = {
                "base_url": f"{url}/v1/completions", "model": f"{args.run}/{stage}",
                "num_concurrent": args.concurrent, "max_length": model.config.sequence_len,
            }  # fmt: skip
            ask_harness(python, "local-completions", settings, folder, args.batch)  # compiles
            answered, seconds = ask_harness(
                python, "local-completions", settings, folder, args.batch
            )
            same = same_ids(questions, model.tokenizer, url, python, folder / "export")
        total = sum(map(len, questions.values()))
        speed = own_speed(model, bundle, args.shots, args.examples)
    worst = 0.0
    print(f"\n{args.run}/{stage}, {args.shots} shots; equal ids: {same[0]} of {same[1]} prompts")
    for task, sums in ours.items():
        for label, theirs in (("local-completions", answered), ("hf", exported)):
            count, largest = differences(sums, theirs[task])
            worst = max(worst, largest)
            print(
                f"{task}: {len(sums)} examples, {count} choices: {label} differs by {largest:.2e}"
            )
    print(
        f"examples a second: jaxchat eval core {speed:.1f}; lm-eval's local-completions "
        f"{total / max(seconds, 1):.1f} ({args.batch} prompts a request, {args.concurrent} at "
        f"once), its hf {total / max(hf_seconds, 1):.1f}"
    )
    return int(worst > TOLERANCE or same[0] < same[1])


if __name__ == "__main__":
    raise SystemExit(main())
