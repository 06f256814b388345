"""Fields of other servers that would change an answer, and that this one does not know.

Each is refused unless it asks for nothing: many clients send every field they know, at the value
that has no effect. What is in neither this table nor a body's class changes no answer elsewhere
(`user`, `metadata`), or is nobody's, and is ignored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel

from jaxchat.serve.schema import bad_request

NAMED_OTHERWISE = "this server calls it {}"
TRUNCATES = "tokens are chosen by temperature, top_k, top_p and min_p"
BEAMS = "answers are sampled"
PLAIN_TEXT = "the model reads and writes text"


class Field(NamedTuple):
    """Why a field is refused, and the value that asks for nothing."""

    why: str
    neutral: tuple[Any, ...] = ()


FIELDS = {
    # OpenAI's
    "modalities": Field(PLAIN_TEXT, (["text"],)),
    "audio": Field(PLAIN_TEXT),
    "web_search_options": Field("the model searches nothing"),
    "function_call": Field("the model cannot be made to call a function", ("none", "auto")),
    "suffix": Field("a text is only continued"),
    "best_of": Field("answers are not ranked; ask for n", (1,)),
    "echo": Field("only /v1/completions repeats a prompt", (False,)),
    # vLLM's
    "use_beam_search": Field(BEAMS, (False,)),
    "num_beams": Field(BEAMS, (1,)),
    "length_penalty": Field(BEAMS, (1,)),
    "early_stopping": Field(BEAMS, (False,)),
    "allowed_token_ids": Field("use logit_bias or a grammar"),
    "bad_words": Field("give tokens a logit_bias of -100"),
    "prompt_logprobs": Field("log-probabilities of a prompt are /v1/completions' echo"),
    "truncate_prompt_tokens": Field("a prompt is never cut", (-1,)),
    "skip_special_tokens": Field("special tokens are no text", (True,)),
    "return_tokens_as_token_ids": Field("tokens are named by their text", (False,)),
    "return_token_ids": Field("an entry of logprobs has its token's id", (False,)),
    "logits_processors": Field("a request brings no code"),
    "documents": Field("put them into a message"),
    "chat_template": Field("conversations are written as in training"),
    "mm_processor_kwargs": Field(PLAIN_TEXT),
    "guided_json_object": Field(NAMED_OTHERWISE.format("response_format"), (False,)),
    # llama.cpp's, and those of its kin
    "grammar": Field("give a regular expression or a schema as structured_outputs"),
    "json_schema": Field(NAMED_OTHERWISE.format("response_format")),
    "n_predict": Field(NAMED_OTHERWISE.format("max_tokens"), (-1,)),
    "num_predict": Field(NAMED_OTHERWISE.format("max_tokens"), (-1,)),
    "max_new_tokens": Field(NAMED_OTHERWISE.format("max_tokens")),
    "max_length": Field(NAMED_OTHERWISE.format("max_tokens")),
    "repeat_penalty": Field(NAMED_OTHERWISE.format("repetition_penalty"), (1,)),
    "stop_sequences": Field(NAMED_OTHERWISE.format("stop")),
    "n_probs": Field(NAMED_OTHERWISE.format("logprobs"), (0,)),
    "typical_p": Field(TRUNCATES, (1,)),
    "typ_p": Field(TRUNCATES, (1,)),
    "tfs_z": Field(TRUNCATES, (1,)),
    "tfs": Field(TRUNCATES, (1,)),
    "top_a": Field(TRUNCATES, (0,)),
    "top_n_sigma": Field(TRUNCATES, (-1, 0)),
    "nsigma": Field(TRUNCATES, (-1, 0)),
    "epsilon_cutoff": Field(TRUNCATES, (0,)),
    "eta_cutoff": Field(TRUNCATES, (0,)),
    "mirostat": Field(TRUNCATES, (0,)),
    "mirostat_mode": Field(TRUNCATES, (0,)),
    "xtc_probability": Field(TRUNCATES, (0,)),
    "dynatemp_range": Field(TRUNCATES, (0,)),
    "smoothing_factor": Field(TRUNCATES, (0,)),
    "samplers": Field(TRUNCATES),
    "sampler_order": Field(TRUNCATES),
    "dry_multiplier": Field("use repetition_penalty", (0,)),
    "no_repeat_ngram_size": Field("use repetition_penalty", (0,)),
    "encoder_repetition_penalty": Field("use repetition_penalty", (1,)),
    "penalty_alpha": Field(TRUNCATES, (0,)),
    "guidance_scale": Field("there is one prompt", (1,)),
    "negative_prompt": Field("there is one prompt"),
    "do_sample": Field("for the likeliest token give a temperature of 0", (True,)),
    "ban_eos_token": Field(NAMED_OTHERWISE.format("ignore_eos"), (False,)),
    "custom_token_bans": Field("give tokens a logit_bias of -100"),
    "lora": Field("there is one set of weights"),
    "options": Field("give its fields beside the messages, by their names here"),
}
NOTHING: tuple[Any, ...] = (None, "", [], {})


def check_unsupported(body: BaseModel) -> None:
    """Raises ApiError 400 for the first field that asks for what is not done here."""
    for name, value in (body.model_extra or {}).items():
        field = FIELDS.get(name)
        if field is not None and value not in (*NOTHING, *field.neutral):
            raise bad_request(f"{name} is not supported: {field.why}; leave it out.", name)
