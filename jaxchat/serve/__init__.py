"""The server: OpenAI-compatible interfaces and a chat page over one or more engines.

`app` has the routes, `addresses` other ways to write them, `guard` the checks before them.

The way in: `schema`, `sampling_fields`, `texts` and `responses` have the request bodies, `schema`
the errors; `messages` makes a prompt's ids of messages, `prompt` the engine's request of a body,
`tools` says when a text answers. `models` are those that are served.

`scheduler` is the thread that owns the engines, with `fair_queue` and `scoring` for what waits.

The way back: `streaming` makes chat completions of tokens, `completions` texts, `responses` those
of that interface. `process` has the socket and the signals.
"""
