"""The request's body as the plain proxies read it. Runs in `.venv-bench` too: nothing of the server's is imported."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class ChatBody(BaseModel):
    """A chat request; what is not named here is let through."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[dict[str, Any]]
    stream: bool = False
