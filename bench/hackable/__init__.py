"""A verifier that can be had more cheaply than by being right, and what becomes of it: `python -m bench.hackable`.

`task` holds the verifier and the settings, `client` asks and looks at answers as they are, `run` plays it.
"""
