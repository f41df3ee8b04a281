"""The set-up of "Reflect, Retry, Reward" (arXiv 2505.24726) with a model of your own: `python -m bench.paper --help`.

`countdown` and `xlam` make the problems, `preset` holds the paper's settings and what differs from them, `model` looks
at the model before anything starts, `measure` drives the server as a client does, `journal` remembers so that a run can
go on, `published` and `report` print the rows beside the paper's. Nothing here reaches past the server's API.
"""
