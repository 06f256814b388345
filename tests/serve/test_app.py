"""The interface, as a client sees it."""

import httpx
import pytest
import tiny_model


def ask(server, question, **body):
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, **body}
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.post(f"{server.api}/chat/completions", json=body)


@pytest.mark.parametrize("question", tiny_model.ANSWERS)
def test_the_model_answers_as_it_was_trained_to(live_server, question):
    answer = tiny_model.ANSWERS[question]
    parts = [{"type": "text", "text": answer}] if isinstance(answer, str) else answer
    message = ask(live_server, question, parts=True).json()["choices"][0]["message"]
    assert message["parts"] == parts
    assert message["content"] == "".join(p["text"] for p in parts if p["type"] == "text")
