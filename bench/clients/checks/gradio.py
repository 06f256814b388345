"""gradio's `load_chat`: a page's chat with this server behind it."""

import gradio as gr


def stream(s):
    demo = gr.load_chat(s.url, model=s.model, token="none")
    pieces = list(demo.fn({"text": s.question, "files": []}, []))
    return [_text(pieces[-1]), len(pieces) > 2], [s.chat, True]


def _text(piece):
    return piece
