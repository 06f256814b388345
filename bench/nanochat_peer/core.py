"""The results of nanochat's own CORE evaluator for a model and a bundle of tasks.

    python bench/nanochat_peer/core.py --nanochat CHECKOUT --model MODEL.npz --tokenizer DIR \\
        --bundle DIR --out FILE.json [--task LABEL ...] [--limit N] [--context N]

MODEL.npz holds `weight/NAME`, in nanochat's names and layout, and `settings`: JSON whose `model` is
nanochat's GPTConfig. The tokenizer is a folder of jaxchat's (`bench/core.py` makes all of it), or
"bytes". FILE.json gets per task `seconds` and, per example, `prediction`, `gold` and `losses`: the
mean loss of each choice, null for none.

    python bench/nanochat_peer/core.py --nanochat CHECKOUT --golden tests/golden

regenerates what CI compares with, on a small random model of bytes: nanochat_core.npz there.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from load import bfloat16_is_float32, import_gpt

GOLDEN = {"sequence_len": 1024, "vocab_size": 265, "n_layer": 2, "n_head": 2, "n_kv_head": 1}
GOLDEN |= {"n_embd": 32}
CONTEXTS = (None, 150)  # of the golden numbers


def main() -> None:
    """Parses the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout")
    parser.add_argument("--golden", type=Path, metavar="DIR")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--task", action="append")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--context", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    gpt = import_gpt(options.nanochat)
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.golden:
        write_golden(gpt, options.golden)
        return
    with np.load(options.model, allow_pickle=False) as file:
        arrays = dict(file)
    tokenizer = TheirTokenizer(options.tokenizer)
    with bfloat16_is_float32():  # the classic version's rotary tables
        model = load_model(gpt, json.loads(str(arrays["settings"]))["model"], arrays)
        model.max_seq_len = options.context
        result = {
            task["label"]: evaluate(model, tokenizer, options.bundle, task, options.limit)
            for task in tasks_of(options.bundle, options.task)
        }
    options.out.write_text(json.dumps(result), encoding="utf-8")


def write_golden(gpt: Any, folder: Path) -> None:
    """A random model, and nanochat's results for it, with and without truncation."""
    from golden import lively_model

    model = lively_model(gpt, GOLDEN)
    weights = {f"weight/{n}": p.detach().numpy().astype("f2") for n, p in model.named_parameters()}
    results = []
    for context in CONTEXTS:
        model.max_seq_len = context
        bundle = folder / "core_bundle"
        tasks = {
            task["label"]: evaluate(model, TheirTokenizer("bytes"), bundle, task, None)["examples"]
            for task in tasks_of(bundle, None)
        }
        results.append({"context": context, "tasks": tasks})
    out = folder / "nanochat_core.npz"
    settings = {"model": GOLDEN}
    np.savez_compressed(out, settings=json.dumps(settings), results=json.dumps(results), **weights)
    print(f"{out}: {out.stat().st_size:,} bytes")


def load_model(gpt: Any, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    import torch

    known = gpt.GPTConfig.__dataclass_fields__
    model = gpt.GPT(gpt.GPTConfig(**{k: v for k, v in config.items() if k in known}))
    model.init_weights()
    state = model.state_dict()
    for name, old in state.items():
        if f"weight/{name}" not in arrays:
            continue  # rotary tables
        new = torch.from_numpy(arrays[f"weight/{name}"].astype(np.float32))
        if new.shape != old.shape:  # it pads the vocabulary
            old[: len(new)] = new
            old[len(new) :] = 0
            new = old
        state[name] = new
    model.load_state_dict(state)
    return model.eval()


class TheirTokenizer:
    """The tokenizer interface that core_eval uses, with jaxchat's ids."""

    def __init__(self, folder: str) -> None:
        import tiktoken

        if folder == "bytes":
            ranks = {bytes([i]): i for i in range(256)}
            pattern = r"[\s\S]"
        else:
            text = (Path(folder) / "tokenizer.tiktoken").read_text(encoding="utf-8")
            pairs = (line.split() for line in text.splitlines())
            ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
            settings = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
            pattern = settings["pattern"]
        self.bos = len(ranks)  # the first special token
        self.encoding = tiktoken.Encoding(
            "jaxchat", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|bos|>": self.bos}
        )

    def get_bos_token_id(self) -> int:
        return self.bos

    def __call__(self, texts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend, *ids] for ids in self.encoding.encode_ordinary_batch(texts)]


def tasks_of(bundle: Path, labels: list[str] | None) -> list[dict[str, Any]]:
    import yaml

    tasks = yaml.safe_load((bundle / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
    there = [task for task in tasks if (bundle / "eval_data" / task["dataset_uri"]).is_file()]
    return [task for task in there if labels is None or task["label"] in labels]


def evaluate(
    model: Any, tokenizer: Any, bundle: Path, task: dict[str, Any], limit: int | None
) -> dict[str, Any]:
    """As in its base_eval.py: shuffled, cut, one example after the other."""
    from nanochat import core_eval

    lines = (bundle / "eval_data" / task["dataset_uri"]).read_text(encoding="utf-8").splitlines()
    data = [json.loads(line) for line in lines]
    random.Random(1337).shuffle(data)
    data = data[:limit]
    meta = {
        "task_type": task["icl_task_type"],
        "num_fewshot": task["num_fewshot"][0],
        "continuation_delimiter": task.get("continuation_delimiter", " "),
    }
    seen = Recorder(core_eval, model.max_seq_len)
    examples, seconds, used = [], 0.0, 0.0
    for index in range(len(data)):
        began, processor = time.perf_counter(), processor_seconds()
        right = core_eval.evaluate_example(index, model, tokenizer, data, "cpu", meta)
        seconds += time.perf_counter() - began
        used += processor_seconds() - processor
        judged = seen.judged(task["icl_task_type"], data[index])
        assert (judged["prediction"] == judged["gold"]) == right, "this script misreads nanochat"
        examples.append(judged)
    seen.restore()
    return {"seconds": seconds, "processor_seconds": used, "examples": examples}


def processor_seconds() -> float:
    times = os.times()
    return times.user + times.system


class Recorder:
    """Stores the losses of nanochat's last forward pass, and which of them it used."""

    def __init__(self, module: Any, context: int | None) -> None:
        self.module, self.context = module, context
        self.forward = module.forward_model
        self.batches = {n: getattr(module, n) for n in dir(module) if n.startswith("batch_seq")}
        module.forward_model = self._forward
        for name, function in self.batches.items():
            setattr(module, name, self._batcher(function))

    def _forward(self, model: Any, ids: Any) -> Any:
        self.ids = ids
        self.losses, self.predictions = self.forward(model, ids)
        return self.losses, self.predictions

    def _batcher(self, function: Any) -> Any:
        def recorded(*arguments: Any) -> Any:
            tokens, starts, ends = function(*arguments)
            cuts = [max(0, len(t) - (self.context or len(t))) for t in tokens]
            self.spans = [(s - c, e - c) for s, e, c in zip(starts, ends, cuts, strict=True)]
            return tokens, starts, ends

        return recorded

    def judged(self, kind: str, item: dict[str, Any]) -> dict[str, Any]:
        losses = [
            self.losses[i, s - 1 : e - 1].mean().item() for i, (s, e) in enumerate(self.spans)
        ]
        reported = [None if math.isnan(loss) else loss for loss in losses]
        if kind == "language_modeling":
            ((s, e),) = self.spans
            greedy = bool((self.predictions[0, s - 1 : e - 1] == self.ids[0, s:e]).all())
            return {"prediction": 0 if greedy else -1, "gold": 0, "losses": reported}
        chosen = losses.index(min(losses))
        return {"prediction": chosen, "gold": item["gold"], "losses": reported}

    def restore(self) -> None:
        self.module.forward_model = self.forward
        for name, function in self.batches.items():
            setattr(self.module, name, function)


if __name__ == "__main__":
    main()
