"""lm-eval: generation by chat, and log-likelihoods by completions, with the server's tokenizer."""

import json
import subprocess
import urllib.request
from pathlib import Path

WRONG = "The answer is 887."
TASKS = {
    "generated": "output_type: generate_until\ndoc_to_target: '{{answer}}'\n"
    "generation_kwargs: {until: ['\\n\\n'], max_gen_toks: 32}\n"
    "metric_list: [{metric: exact_match}]\n",
    "chosen": "output_type: multiple_choice\ndoc_to_choice: choices\n"
    "doc_to_target: 0\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]\n",
}


def _run(s, task, kind, *words, **settings):
    data = s.folder / "data.jsonl"
    question = {
        "question": s.question,
        "prompt": s.prompt,
        "answer": s.chat,
        "choices": [s.chat, WRONG],
    }
    data.write_text(json.dumps(question))
    field = "question" if task == "generated" else "prompt"
    (s.folder / f"{task}.yaml").write_text(
        f"task: {task}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        f"test_split: test\nnum_fewshot: 0\ndoc_to_text: '{{{{{field}}}}}'\n{TASKS[task]}"
    )
    out = s.folder / f"out-{task}"
    arguments = ",".join(f"{name}={value}" for name, value in settings.items())
    done = subprocess.run(
        [Path(s.environment) / "bin" / "lm_eval", "--model", kind, "--model_args", arguments,
         "--tasks", task, "--include_path", s.folder, "--output_path", out, "--log_samples",
         *words],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-800:]
    (path,) = out.rglob(f"samples_{task}_*.jsonl")
    return json.loads(path.read_text().splitlines()[0])


def chat(s):
    sample = _run(
        s, "generated", "local-chat-completions", "--apply_chat_template",
        base_url=f"{s.url}/chat/completions", model=s.model,
    )  # fmt: skip
    return [sample["resps"][0][0], sample["exact_match"]], [s.chat, 1.0]


def completions_scored(s):
    """The log-likelihood of each choice, beside the sum of a plain request's log-probabilities."""
    sample = _run(
        s, "chosen", "local-completions", base_url=f"{s.url}/completions", model=s.model,
        max_length=256,
    )  # fmt: skip
    sums = [round(float(answer[0]), 2) for answer in sample["filtered_resps"]]
    return sums, [round(_plain(s, choice), 2) for choice in (s.chat, WRONG)]


def _plain(s, choice):
    body = {
        "model": s.model, "prompt": s.prompt + choice, "max_tokens": 0, "echo": True, "logprobs": 1,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{s.url}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    found = json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["logprobs"]
    pairs = zip(found["text_offset"], found["token_logprobs"], strict=True)
    return sum(value for offset, value in pairs if offset >= len(s.prompt))
