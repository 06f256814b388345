"""An export in transformers, TRL and PEFT: batches, masks of what is learned, adapters, and back.

    python bench/exports.py --home HOME --run cpu --stage rl

Exports the model, trains it for a few steps with TRL's SFTTrainer (messages with
`assistant_only_loss`, prompt and completion, LoRA on all matrices), merges the adapter and imports
the result again. Prints a table of what is expected and what was seen, with the versions, and exits
with 1 where they differ.

The packages are installed into an environment of their own (`--environment`, some 8 GB with CUDA's
torch), or are those of `--python`. Everything else is written into a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("transformers==5.24.0", "trl==1.16.0", "peft==0.21.2", "torch")
TRAINING = "chat_template_training.jinja"
QUESTIONS = (
    "Who are you?",
    "What is 37 * 24?",
    "Spell out the word strawberry.",
    "Ann has 12 apples, gets 30 more and loses 7. How many apples are left?",
)
CALCULATED = QUESTIONS[1], "The answer is 888."
CONVERSATIONS = 48

Json = Any
Check = Callable[[Path, Json], tuple[str, str]]  # (folder, what ours has) -> expected, seen


def our_rows() -> list[Json]:
    """Conversations with their ids and mask, as `jaxchat` renders them for SFT."""
    from jaxchat.tasks import EVERYDAY_WORDS, make_tasks

    names = ("identity", "arithmetic", "counting", "arithmetic_two_step")
    tasks = make_tasks(names, 0, EVERYDAY_WORDS).values()
    single = [
        task.problem("train", number).conversation["messages"]
        for number in range(CONVERSATIONS // len(names))
        for task in tasks
    ]
    system = {"role": "system", "content": "Be brief."}
    longer = [[system, *single[i], *single[i + 1]] for i in range(0, len(single), 2)]
    return [{"messages": messages} for messages in (*single, *longer)]


def write_rows(export: Path) -> None:
    """Adds ids and mask to the conversations, and puts them beside the export."""
    from jaxchat.runs.import_run import read_model
    from jaxchat.tokenizer import render

    tokenizer, rows = read_model(export, None, None).tokenizer, our_rows()
    for row in rows:
        row["ids"], mask = render({"messages": row["messages"]}, tokenizer)
        row["mask"] = [int(weight > 0) for weight in mask]
    (export.parent / "rows.json").write_text(json.dumps(rows))


def in_parts(messages: Json) -> Json:
    """The same with every content as parts: a column of a dataset has one type."""
    text = [m["content"] for m in messages]
    parts = [[{"type": "text", "text": t}] if isinstance(t, str) else t for t in text]
    return [m | {"content": p} for m, p in zip(messages, parts, strict=True)]


# The checks, which run where transformers, TRL and PEFT are.


def batched_answers(folder: Path, rows: Json) -> tuple[str, str]:
    """Greedy answers of four questions at once, the calculator included."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def answers(questions: list[str], **options: Json) -> list[str]:
        chats = [[{"role": "user", "content": text}] for text in questions]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        found = model.generate(**inputs, max_new_tokens=64, do_sample=False, **options)
        new = found[:, inputs["input_ids"].shape[1] :]
        return [text.rstrip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    calling = {"custom_generate": str(folder), "trust_remote_code": True, "tokenizer": tokenizer}
    for options in ({}, calling):
        together = answers(list(QUESTIONS), **options)
        alone = [answers([text], **options)[0] for text in QUESTIONS]
        if together != alone:
            return "4 of 4 equal to single ones", f"{together} for {alone}"
    right = together[QUESTIONS.index(CALCULATED[0])].endswith(CALCULATED[1])
    return f"4 of 4, {CALCULATED[1]}", f"4 of 4, {CALCULATED[1] if right else together}"


def masks_of_transformers(folder: Path, rows: Json) -> tuple[str, str]:
    """`return_assistant_tokens_mask` with the training template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = (folder / TRAINING).read_text()
    same = 0
    for row in rows:
        found = tokenizer.apply_chat_template(
            row["messages"], chat_template=template, tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        same += (found["input_ids"], found["assistant_masks"]) == (row["ids"], row["mask"])
    return f"{len(rows)} of {len(rows)}", f"{same} of {len(rows)}"


def trainer(folder: Path, data: Json, **settings: Json) -> Json:
    """TRL's SFTTrainer of the export on some rows, for four steps of 8."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    peft = settings.pop("peft_config", None)
    config = SFTConfig(
        output_dir=str(folder.parent / "trl"), max_steps=4, per_device_train_batch_size=8,
        learning_rate=1e-3, logging_steps=1, report_to="none", use_cpu=True, bf16=False,
        save_strategy="no", max_length=256, disable_tqdm=True, gradient_checkpointing=False,
        **settings,
    )  # fmt: skip
    return SFTTrainer(
        model=str(folder), args=config, train_dataset=Dataset.from_list(data), peft_config=peft
    )


def learned(made: Json) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and mask of each row as the trainer's batches have them: labels other than -100."""
    for row in made.train_dataset:
        batch = made.data_collator([row])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        yield ids, [int(label != -100) for label in labels]


def as_ours(made: Json, rows: Json) -> tuple[str, str]:
    """The number of rows whose ids and mask are ours, and whether the loss falls."""
    found = list(learned(made))
    same = sum(pair == (r["ids"], r["mask"]) for pair, r in zip(found, rows, strict=True))
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    finite = len(losses) == 4 and all(map(math.isfinite, losses))
    expected = f"{len(rows)} of {len(rows)} rows, 4 finite losses"
    return expected, f"{same} of {len(rows)} rows, {'4 finite losses' if finite else losses}"


def trl_messages(folder: Path, rows: Json) -> tuple[str, str]:
    """Messages with `assistant_only_loss`."""
    data = [{"messages": in_parts(row["messages"])} for row in rows]
    made = trainer(
        folder, data, assistant_only_loss=True, chat_template_path=str(folder / TRAINING)
    )
    return as_ours(made, rows)


def completions(rows: Json) -> tuple[Json, Json]:
    """Conversations of one answer, and the same as prompt and completion."""
    single = [row for row in rows if len(row["messages"]) == 2]
    pairs = [in_parts(row["messages"]) for row in single]
    return single, [{"prompt": pair[:1], "completion": pair[1:]} for pair in pairs]


def trl_completions(folder: Path, rows: Json) -> tuple[str, str]:
    """Prompt and completion alone: the whole answer is learned, what the calculator said too."""
    single, data = completions(rows)
    whole = []
    for row in single:
        begins = row["mask"].index(1)
        whole.append(row | {"mask": [int(i >= begins) for i in range(len(row["ids"]))]})
    return as_ours(trainer(folder, data), whole)


def trl_completions_marked(folder: Path, rows: Json) -> tuple[str, str]:
    """Prompt and completion with `assistant_only_loss`."""
    single, data = completions(rows)
    template = str(folder / TRAINING)
    made = trainer(folder, data, assistant_only_loss=True, chat_template_path=template)
    return as_ours(made, single)


def peft_targets(folder: Path, rows: Json) -> tuple[str, str]:
    """PEFT without `target_modules`, which its own table would have to know."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    try:
        get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    except ValueError:
        return "ValueError", "ValueError"
    return "ValueError", "an adapter"


def peft_merged(folder: Path, rows: Json) -> tuple[str, str]:
    """LoRA on all matrices, trained with TRL, merged, saved: the logits of the adapter."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = [{"messages": in_parts(row["messages"])} for row in rows]
    made = trainer(
        folder, data, assistant_only_loss=True, chat_template_path=str(folder / TRAINING),
        peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    made.train()
    model = made.model.eval()
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    ids = torch.tensor([rows[0]["ids"]])
    with torch.no_grad():
        adapted = model(ids).logits
    merged = folder.parent / "merged"
    model.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(folder).save_pretrained(merged)
    with torch.no_grad():
        again, plain = (
            AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (merged, folder)
        )
    close = (again - adapted).abs().max().item() < 1e-4
    moved = (again - plain).abs().max().item() > 1e-3
    seen = "the adapter's" if close else "other logits"
    return "the adapter's logits, moved", f"{seen} logits, {'moved' if moved else 'as before'}" + (
        "" if count else " (nothing trainable)"
    )


CHECKS: dict[str, Check] = {
    "transformers: answers of a batch of 4, plain and with the calculator": batched_answers,
    "transformers: mask of the training template is SFT's": masks_of_transformers,
    "TRL: messages, assistant_only_loss": trl_messages,
    "TRL: prompt and completion; the calculator's results are learned, too": trl_completions,
    "TRL: prompt and completion, assistant_only_loss": trl_completions_marked,
    "PEFT: LoraConfig without target_modules": peft_targets,
    'PEFT: target_modules="all-linear", trained by TRL, merged': peft_merged,
}


def run_checks(folder: Path) -> None:
    """Runs all checks in this environment; a line of JSON each, behind a mark."""
    from importlib.metadata import version

    rows = json.loads((folder.parent / "rows.json").read_text())
    names = ("transformers", "trl", "peft", "torch", "tokenizers", "datasets")
    print("RESULT", json.dumps({"versions": {name: version(name) for name in names}}))
    for name, check in CHECKS.items():
        try:
            expected, seen = check(folder, rows)
        except Exception as error:  # a row of the table, not the end of it
            expected, seen = "no error", f"{type(error).__name__}: {error}"[:300]
        print("RESULT", json.dumps({"check": name, "expected": expected, "seen": seen}), flush=True)


# What this environment does around them.


def jaxchat(home: Path, command: str, *arguments: str) -> str:
    """What a command of jaxchat prints. Raises CalledProcessError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxchat", command, *arguments, "--home", str(home)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout


def imported(work: Path) -> Json:
    """The merged model as a run of a home of its own, and its answer."""
    jaxchat(work / "home", "import", str(work / "merged"), "--name", "again", "--stage", "rl")
    said = jaxchat(work / "home", "chat", "--run", "again", "-p", CALCULATED[0])
    right = CALCULATED[1] in said
    return {
        "check": "jaxchat import of the merged model: its answer", "expected": CALCULATED[1],
        "seen": CALCULATED[1] if right else said.strip()[-80:],
    }  # fmt: skip


def python_of(args: argparse.Namespace, work: Path) -> str:
    """An interpreter that has the packages."""
    if args.python:
        return args.python
    folder = args.environment or work / "environment"
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", *PACKAGES], check=True)
    return str(folder / "bin" / "python")


def measure(args: argparse.Namespace, work: Path) -> int:
    """Exports, checks, imports; prints the table. The exit code."""
    export = work / "export"
    jaxchat(args.home, "export", args.run, args.stage, str(export))
    write_rows(export)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf"), "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    log = work / "log"
    with log.open("w") as errors:
        done = subprocess.run(
            [python_of(args, work), __file__, "--checks", str(export)],
            env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        print(log.read_text()[-2_000:], file=sys.stderr)
        return 1
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if "RESULT" in line]
    versions, *results = map(json.loads, lines)
    if (work / "merged").exists():
        results.append(imported(work))
    print(", ".join(f"{name} {version}" for name, version in versions["versions"].items()))
    print("\n| | expected | seen |\n|---|---|---|")
    for row in results:
        print(f"| {row['check']} | {row['expected']} | {row['seen']} |")
    wrong = sum(row["expected"] != row["seen"] for row in results)
    print(f"\n{len(results) - wrong} of {len(CHECKS) + 1} as expected")
    return int(bool(wrong or len(results) <= len(CHECKS)))


def main() -> int:
    """Measures; or, inside the environment, runs the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, help="with the run")
    parser.add_argument("--run", default="cpu")
    parser.add_argument("--stage", default="rl")
    parser.add_argument("--python", help="an interpreter with the packages")
    parser.add_argument("--environment", type=Path, help="kept, and made where it is missing")
    parser.add_argument("--checks", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.checks:
        run_checks(args.checks)
        return 0
    if not args.home:
        parser.error("--home names the folder with the run")
    with tempfile.TemporaryDirectory() as work:
        return measure(args, Path(work))


if __name__ == "__main__":
    sys.exit(main())
