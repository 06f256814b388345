"""What the engine packs for a dispatch is the device's: it is never written to again."""

import pytest
from handed_over import HandedOver

from jaxchat.inference import jitted
from jaxchat.inference.engine import Engine, Request
from jaxchat.inference.grammar import Grammar

PROMPT = tuple(range(5, 45))


def test_no_packed_array_is_written_to_once_it_is_handed_over(
    config, params, tokenizer, monkeypatch
):
    pytest.importorskip("llguidance")
    handed = {}
    for name in ("prefill", "insert", "decode_steps"):
        handed[name] = HandedOver()
        monkeypatch.setattr(jitted, name, handed[name].watch(getattr(jitted, name)))
    engine = Engine(params, config, tokenizer, slots=3, steps_per_dispatch=2)
    dates = Grammar("regex", r"[0-9]{4}-[0-9]{2}-[0-9]{2}").compile(tokenizer)
    engine.generate(
        [
            Request(PROMPT, 24, temperature=1.0, presence_penalty=0.5, seed=1),
            Request((*PROMPT, 7), 24, temperature=1.0, grammar=dates),
            Request(PROMPT[1:] * 4, 24, logit_bias=((5, 1.0),)),
        ]
    )
    handed["decode_steps"].check(calls=4)
    handed["insert"].check(calls=3)
    handed["prefill"].check(calls=3)
