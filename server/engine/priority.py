"""How urgent what is asked of an engine is: users first, rounds after them.

Set once by whoever serves nobody who waits (the trainer's process); read by the engines' clients, which send it with
each request. It is a context variable, so that whatever stands between (replicas, wrappers) need not hand it on.
"""

from contextvars import ContextVar

ROLLOUT = -100
"""Of what a round asks. Users' requests say nothing, which engines are told to take for 0; SGLang lets a request take
the place of a running one that is more than 10 below it."""

_asked: ContextVar[int | None] = ContextVar("priority", default=None)


def ask_below_users() -> None:
    """Give all that this context and the tasks it starts ask of an engine the priority of a round."""
    _asked.set(ROLLOUT)


def name_priority() -> dict[str, int]:
    """Give the field of a request that says how urgent it is: none where it is a user's."""
    priority = _asked.get()
    return {} if priority is None else {"priority": priority}
