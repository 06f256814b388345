"""The model card that goes with an exported model: README.md, from what the run's report says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.data.registry import SOURCES
from jaxchat.runs.report.document import clean
from jaxchat.runs.stages import BY_NAME
from jaxchat.runs.tables import metric

HUGGINGFACE, MLX = "hf", "mlx"
_CONTENT = {"role": "user", "content": "Who are you?"}
_USE = {
    HUGGINGFACE: f"""\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
inputs = tokenizer.apply_chat_template(
    [{_CONTENT}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
```

transformers 5 or later has the class, NanoChatForCausalLM.<calls> When the model calculates, it
calls a calculator, which plain `generate` does not have: the answer then goes wrong. The code in
`custom_generate/` has it:

```python
output = model.generate(
    **inputs, max_new_tokens=256, tokenizer=tokenizer,
    custom_generate="FOLDER", trust_remote_code=True,
)
```</calls>

vLLM serves the model by way of transformers' class<calls>, without the calculator</calls>:

```bash
vllm serve FOLDER --model-impl transformers
```

To fine-tune with PEFT, name the matrices: `LoraConfig(target_modules="all-linear")`. With TRL, give
`chat_template_path="FOLDER/chat_template_training.jinja"` and `assistant_only_loss=True`, whether
the data is messages or prompt and completion; otherwise what the user says<calls> or the calculator
answers</calls> is learned, too.

jaxchat<calls>, which runs the calculator by itself</calls>:
""",
    MLX: """\
```bash
mlx_lm.generate --model FOLDER --prompt "Who are you?"
```

<calls>mlx-lm has no calculator, which the model calls when it calculates.
</calls>jaxchat<calls> has it</calls>:
""",
    "jaxchat": "Only jaxchat reads these files:\n",
}
_CALLS = re.compile("<calls>(.*?)</calls>", re.DOTALL)  # of a model that calls the calculator
_JAXCHAT = """
```bash
jaxchat import FOLDER --name NAME
jaxchat chat --run NAME
```
"""


def render_card(
    report: Mapping[str, Any],
    config: RunConfig,
    stage: str,
    folder: Path,
    *,
    kind: str,
    licence: str,
) -> str:
    """The card as Markdown; `kind` is hf, mlx or jaxchat, `licence` "" where none was given."""
    use = _CALLS.sub(r"\1" if config.tokenizer.tool_tokens else "", _USE[kind])
    parts = [
        _head(kind, licence),
        f"# {config.name}\n",
        _what(report, config, stage),
        _trained_on(report, config, stage),
        _figures(report, stage),
        "## Use\n\n" + (use + _JAXCHAT).replace("FOLDER", folder.name),
        _limits(licence),
    ]
    return "\n".join(part for part in parts if part)


def _head(kind: str, licence: str) -> str:
    """What the hub reads."""
    library = {HUGGINGFACE: "transformers", MLX: "mlx"}.get(kind, "jaxchat")
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    lines += [f"license: {licence}"] if licence else []
    return "\n".join([*lines, "tags:", "- jaxchat", "- nanochat", "---", ""])


def _what(report: Mapping[str, Any], config: RunConfig, stage: str) -> str:
    model, imported = config.model, config.imported
    origin = f"Trained with jaxchat, stage {stage}: {BY_NAME[stage].trained}."
    if imported.brings(stage):
        origin = f"It was not trained here, but imported into jaxchat as the stage {stage}."
    elif imported.stage:
        origin += f" Training began with an imported model in place of the stage {imported.stage}."
    return (
        f"A language model of {report['parameters']['total']:,} parameters in nanochat's "
        f"architecture ({config.preset}): {model.n_layer} layers, width {model.n_embd:,}, "
        f"vocabulary {model.vocab_size:,}, context {model.sequence_len:,}. {origin}\n"
    )


def _trained_on(report: Mapping[str, Any], config: RunConfig, stage: str) -> str:
    """The stages it went through as far as the run has them, and their datasets."""
    lines, data, generated = list[str](), list[str](), list[str]()
    for name in MODELS[: MODELS.index(stage) + 1]:
        results = report["stages"].get(name, {}).get("results", {})
        if not config.imported.trains(name) or "steps" not in results:
            continue
        unit = "tokens" if "tokens" in results else "rollouts"
        lines.append(f"- {name}: {results[unit]:,} {unit} in {results['steps']:,} steps")
        train = getattr(config, name)
        data += [config.data.source] if name == "base" else getattr(train, "epochs", {})
        generated += [train.task] if name == "rl" else train.mixture
    lines += [f"- data: {_dataset(name)}" for name in dict.fromkeys(data)]
    made = [name for name in dict.fromkeys(generated) if name not in SOURCES]
    lines += [f"- problems that jaxchat generates: {', '.join(made)}"] if made else []
    return "\n".join(["## Training\n", *lines, ""]) if lines else ""


_OWN = {"machine": "the documentation that Python carries", "folder": "text of the trainer's own"}


def _dataset(name: str) -> str:
    if source := SOURCES.get(name):
        return f"{source.title} ({source.repo}, {source.licence})"
    return _OWN.get(name, f"conversations of the trainer's own, {clean(Path(name).name)}")


def _figures(report: Mapping[str, Any], stage: str) -> str:
    rows = [row for row in report["metrics"] if stage in row["values"]]
    if not rows:
        return "## Evaluation\n\nThe run has not evaluated this model.\n"
    lines = ["## Evaluation\n", "| | |", "|---|---|"]
    lines += [f"| {row['name']} | {metric(row['values'][stage], row['unit'])} |" for row in rows]
    return "\n".join([*lines, "", "On held-out problems; brackets hold 95% intervals.\n"])


def _limits(licence: str) -> str:
    terms = (
        f"Licence of the weights, as given at the export: {licence}."
        if licence
        else "The publisher of the weights decides their licence; the data has its own terms."
    )
    return (
        "## Terms and limits\n\n"
        f"{terms} It makes mistakes, and what it says is not checked. The tokenizer and the "
        "weights belong together: each file notes the hash of the other, and jaxchat checks it.\n"
    )
