"""What a hostile case is: a verifier, the answer it judges, and what has to come of the two."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Hostile:
    """One case. It ends in one of `ends`, or, where there are none, is refused with a 400 that names `refused`.

    `ends` are `passed`, `failed` or the causes of an abstention: several only where it is chance which fence is hit
    first. `says` is a part of the message or of the reason. `config` and `answer` may be a `Text`.
    """

    kind: str
    config: Any
    ends: tuple[str, ...] = ()
    refused: str = ""
    says: str = ""
    answer: Any = "an answer"
    args: Mapping[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """JSON that is sent as it stands: deeper than Python would write it, or with a key twice."""

    json: str
