"""The server: an OpenAI-compatible interface and a chat page over one or more engines.

`app` has the routes, `guard` the checks before them, `schema` the request bodies and errors,
`prompt` the way from a request to the engine's, `models` the models that are served, `scheduler`
the thread that owns the engines, `streaming` the way back from tokens to responses, and `process`
the socket and the signals.
"""
