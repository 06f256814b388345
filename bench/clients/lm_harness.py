"""lm-eval's scores of a served model, beside its scores of the export and our own evaluator's.

    python bench/clients/lm_harness.py --home HOME --run cpu --stage rl --bundle EVAL_BUNDLE

Questions of ARC-Easy and COPA become a local task of lm-eval, each beginning with <|bos|>. They are
asked of `jaxchat serve` by lm-eval's `local-completions`, which names no tokenizer and so takes the
server's, and of `jaxchat export` by its `hf`; and the same ids are scored by the evaluator of
`jaxchat eval core`. Every choice has a sum of log-probabilities; the largest differences are
printed, and examples a second. Exits with 1 where they differ by more than 1e-3.

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
import time
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
) -> tuple[dict[str, list[list[float]]], float]:
    """Task -> sums of every choice, and seconds of the whole command."""
    out = folder / model
    began = time.monotonic()
    subprocess.run(
        [
            python, "-m", "lm_eval", "--model", model, "--model_args",
            ",".join(f"{name}={value}" for name, value in settings.items()),
            "--tasks", ",".join(f"our_{task}" for task in TASKS), "--include_path", str(folder),
            "--output_path", str(out), "--log_samples", "--batch_size", str(batch),
            *(("--device", "cpu") if model == "hf" else ()),
        ],
        check=True, cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out)},
    )  # fmt: skip
    seconds = time.monotonic() - began
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
    """The bundle, with so many solved examples before each question."""
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
            warm = ask_harness(python, "local-completions", settings, folder, args.batch)[0]
            del warm
            for path in (folder / "local-completions").rglob("samples_*"):
                path.unlink()
            answered, seconds = ask_harness(
                python, "local-completions", settings, folder, args.batch
            )
            url_version = urllib.request.urlopen(f"{url}/version").read().decode()
        total = sum(map(len, questions.values()))
        speed = own_speed(model, bundle, args.shots, args.examples)
    worst = 0.0
    print(f"\njaxchat {url_version}; {args.run}/{stage}; {args.shots} shots")
    for task, sums in ours.items():
        for label, theirs in (("local-completions", answered), ("hf", exported)):
            count, largest = differences(sums, theirs[task])
            worst = max(worst, largest)
            print(
                f"{task}: {len(sums)} examples, {count} choices: {label} differs by {largest:.2e}"
            )
    print(f"examples a second: jaxchat eval core {speed:.1f}; the whole command of lm-eval: ")
    print(f"  local-completions {total / seconds:.1f}, hf {total / hf_seconds:.1f}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
