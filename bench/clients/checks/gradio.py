"""gradio's `load_chat`: a page's chat with this server behind it."""

import gradio as gr
import openai
from gradio_client import Client


def _part(text):
    return [{"type": "text", "text": text}]


def stream(s):
    """Through the server of the page."""
    options = {"file_types": None, "api_name": "chat"}
    demo = gr.load_chat(s.url, model=s.model, token="none", **options)
    _, base, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        job = Client(base, verbose=False).submit(s.question, api_name="/chat")
        return [job.result(), len(job.outputs()) > 2], [s.chat, True]
    finally:
        demo.close()


def chat(s):
    demo = gr.load_chat(s.url, model=s.model, token="none", streaming=False)
    return demo.fn({"text": s.question, "files": []}, []), s.chat


def chat_history(s):
    """With earlier messages as the page keeps them."""
    history = [
        {"role": "user", "content": _part("Hello"), "metadata": None, "options": None},
        {"role": "assistant", "content": _part("Hello!"), "metadata": None, "options": None},
    ]
    demo = gr.load_chat(s.url, model=s.model, token="none", streaming=False)
    plain = openai.OpenAI(base_url=s.url, api_key="none").chat.completions.create(
        model=s.model, temperature=0,
        messages=[
            {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": s.question},
        ],
    )  # fmt: skip
    seen = demo.fn({"text": s.question, "files": []}, history)
    return seen, plain.choices[0].message.content
