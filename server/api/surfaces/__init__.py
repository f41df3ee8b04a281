"""The ways in which OpenAI's clients ask: chat completions, completions, responses.

Each reads a request into one `Ask` and renders finished episodes in its own shapes; the walk in between
(`server.api.serve`) is the same for all.
"""
