"""A uvicorn application that reads the request and answers the same text to everything, with no engine behind it.

The floor of any gateway on this server: what uvicorn itself costs.
"""

from typing import Any

from bench.gateway.script import completion

_BODY = completion("base")
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(_BODY)).encode())]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})
