"""Which trace the engine's work belongs to: the W3C `traceparent` that goes with each request to it.

Set by `server.telemetry.traced_engine` where traces are on, read by the engine's client. It is a context variable, so
that whatever stands between (replicas, wrappers) need not hand it on.
"""

from contextvars import ContextVar

_traceparent: ContextVar[bytes] = ContextVar("traceparent", default=b"")


def continue_trace(traceparent: str) -> None:
    """Send this with all that this context, and the tasks that it starts, ask of an engine from now on."""
    _traceparent.set(traceparent.encode("ascii"))


def name_trace() -> bytes:
    """Give the header line of a request that says its trace: none where it has none."""
    traceparent = _traceparent.get()
    return b"traceparent: " + traceparent + b"\r\n" if traceparent else b""
