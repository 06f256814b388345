"""gradio's `load_chat`: a page's chat with this server behind it, asked through the page's API."""

import gradio as gr
from gradio_client import Client


def stream(s):
    demo = gr.load_chat(s.url, model=s.model, token="none", file_types=None, api_name="chat")
    _, base, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        client = Client(base, verbose=False)
        job = client.submit(s.question, api_name="/chat")
        last = job.result()
        again = client.submit(s.question, api_name="/chat").result()  # with a history
        return [last, len(job.outputs()) > 2, bool(again)], [s.chat, True, True]
    finally:
        demo.close()


def chat(s):
    demo = gr.load_chat(s.url, model=s.model, token="none", streaming=False)
    return demo.fn({"text": s.question, "files": []}, []), s.chat
