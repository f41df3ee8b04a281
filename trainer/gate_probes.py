"""Reads the plain problems that a gate asks beside its own: what has nothing to do with the task must still go.

Called by trainer.gate. A file of JSON Lines, one problem a line: `messages`, the `kind` and `config` of a verifier, and
`max_tokens`; `topic` is for people. They are asked without the task's tools and sampling, at temperature 1. They are
no benchmark of general ability: only the difference of candidate and champion on them is looked at.
"""

import json
from pathlib import Path
from typing import Any

from server.domain import Attempt, Binding, Episode, RetryPolicy, Usage, VerifyMode
from server.orchestration.verification import bind
from trainer.errors import RoundFailed
from verifiers.base import InvalidVerifier

SHIPPED = Path(__file__).resolve().parent / "probes.jsonl"
MOST_TOKENS = 64


def read_probes(file: str) -> list[Episode]:
    """Read the probes of a file ("": those that are shipped) as problems that can be asked.

    Raises: RoundFailed that names the line and what is wrong with it.
    """
    path = Path(file) if file else SHIPPED
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RoundFailed(f"probes_file {str(path)!r} cannot be read: {error}") from error
    return [_read_line(line, f"{path.name}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _read_line(line: str, place: str) -> Episode:
    try:
        probe: dict[str, Any] = json.loads(line)
        binding = Binding(probe["kind"], probe.get("config") or {}, args=probe.get("args") or {})
        bind((binding,))
        return _make_problem(place, list(probe["messages"]), binding, int(probe.get("max_tokens") or MOST_TOKENS))
    except (ValueError, TypeError, KeyError, AttributeError, InvalidVerifier) as error:
        raise RoundFailed(
            f"probes_file, {place}: {type(error).__name__}: {error}; a line is an object with `messages`, the `kind` "
            "and `config` of a verifier, and `max_tokens`"
        ) from error


def _make_problem(place: str, messages: list[dict[str, Any]], binding: Binding, max_tokens: int) -> Episode:
    sampling = {"temperature": 1.0, "max_completion_tokens": max_tokens}
    asked = Attempt(1, {"content": ""}, "stop", Usage(), "failed", sampling=sampling)
    return Episode(
        id=f"probe:{place}",
        task="probes",
        model="probes",
        base_model="",
        adapter="",
        key="",
        request={"messages": messages},
        bindings=(binding,),
        verify=VerifyMode.OBSERVE,
        retry=RetryPolicy(),
        attempts=[asked],
        split="held_out",
    )
