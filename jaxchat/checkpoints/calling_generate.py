"""transformers' `generate` with the calculator that the model calls; exports carry a copy.

    model.generate(
        **inputs, tokenizer=tokenizer, custom_generate=FOLDER, trust_remote_code=True
    )

There this file is custom_generate/generate.py, beside a copy of `tools.calculator`. A model calls
the calculator with `<|python_start|>`, an expression and `<|python_end|>`; its value is put behind
that between `<|output_start|>` and `<|output_end|>`, as the engine does, and the answer continues.
"""

from __future__ import annotations

from typing import Any

from jaxchat.tools.calculator import run_tool


def generate(model: Any, inputs: Any = None, tokenizer: Any = None, **options: Any) -> Any:
    """Ids [B, T + N]: the prompts as they were given, and answers with what was calculated.

    The arguments are those of `generate`; rows are answered one after the other. Raises ValueError
    without a tokenizer, and for options that make other results than one answer a row.
    """
    options = {name: value for name, value in options.items() if value is not None}
    for name in ("streamer", "return_dict_in_generate", "inputs_embeds"):
        if options.get(name):
            raise ValueError(f"{name} cannot be used while the calculator runs; leave it out.")
    if options.get("num_return_sequences", 1) != 1:
        raise ValueError("num_return_sequences must be 1; give the prompt several times instead.")
    if tokenizer is None:
        raise ValueError("generate needs tokenizer=... to read what the model wants calculated.")
    prompts = options.pop("input_ids", inputs)
    mask = options.pop("attention_mask", None)
    if mask is None:
        mask = prompts.new_ones(prompts.shape)
    rows = zip(prompts.tolist(), mask.tolist(), strict=True)
    answers = [
        _answer(model, tokenizer, [i for i, seen in zip(*row, strict=True) if seen], options, mask)
        for row in rows
    ]
    longest, pad = max(map(len, answers)), model.generation_config.pad_token_id
    return prompts.new_tensor([
        [*prompt, *answer, *[pad] * (longest - len(answer))]
        for prompt, answer in zip(prompts.tolist(), answers, strict=True)
    ])  # fmt: skip


def _answer(
    model: Any, tokenizer: Any, prompt: list[int], options: dict[str, Any], like: Any
) -> list[int]:
    """The ids of one answer, of which the calculator's are those between its marks."""
    names = ("python_start", "python_end", "output_start", "output_end")
    start, end, opened, closed = (tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in names)
    options = dict(options)
    settings = options.get("generation_config", model.generation_config)
    ends = options.pop("eos_token_id", settings.eos_token_id)
    stops = [*(ends if isinstance(ends, list) else [ends]), end]
    most = options.pop("max_length", settings.max_length) - len(prompt)
    left = options.pop("max_new_tokens", settings.max_new_tokens) or most
    answer: list[int] = []
    while left > len(answer):
        given = like.new_tensor([[*prompt, *answer]])
        made = model.generate(
            input_ids=given, attention_mask=like.new_ones(given.shape), eos_token_id=stops,
            max_length=len(prompt) + left, **options,
        )[0, given.shape[1] :].tolist()  # fmt: skip
        answer += made
        if not made or made[-1] != end or start not in made:
            break
        code = made[len(made) - made[::-1].index(start) : -1]
        value = run_tool(tokenizer.decode(code))
        written = tokenizer.encode(value, add_special_tokens=False, split_special_tokens=True)
        answer += [opened, *written, closed]
    return answer[:left]
