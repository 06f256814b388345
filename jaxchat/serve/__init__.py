"""The server: an OpenAI-compatible interface and the page over one or more engines.

`app` has the routes, `guard` what every request passes before them, `schema` what a request may
say, `prompt` how it becomes one of the engine's, `scheduler` the thread that owns the engines,
`speech` how tokens become text again, `wire` what is sent, `metrics` what is counted.
"""
