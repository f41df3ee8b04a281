"""The driver of `mulligan demo`: a client that measures, sends problems, lets rounds run and measures again.

Everything goes over HTTP through the openai SDK, as for any client; nothing of the server is imported. `play` is the
whole demo on one screen, `tasks` holds what is set for each demo task, `client` the calls, `intervals` the statistics,
`report` the table and the JSON, `display` the progress.
"""
