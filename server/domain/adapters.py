"""An adapter, and what was served before and after it became champion."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from server.domain.names import BASE_ADAPTER


class AdapterStatus(StrEnum):
    """Where an adapter stands."""

    CANDIDATE = "candidate"
    CANARY = "canary"
    CHAMPION = "champion"
    RETIRED = "retired"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, immutable, `<task>@<round number>`. `files` maps each file's name to its SHA-256.

    `verifiers` are the pins whose verdicts it was trained on; `flags` say what was found out about it afterwards, for
    example that one of them was revoked. `fingerprints` say what it was made for, as
    `server.orchestration.fingerprints` names it; empty for adapters from before there were any. `decided_by` and
    `comment` are whose hand last moved it, and why: "" where no human did.
    """

    name: str
    task: str
    path: str
    files: Mapping[str, str]
    status: AdapterStatus = AdapterStatus.CANDIDATE
    round_id: str = ""
    parent: str = BASE_ADAPTER
    forced: bool = False
    created_at: float = 0.0
    verifiers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    decided_by: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Promotion:
    """What was served before and after an adapter became champion: episodes that were judged, and the solved of them.

    Solved by the second try at most. `expected` is the gain that the gate measured, with its standard error; both are
    0 where there is no gate's report. `examples` are solved episodes from after it.
    """

    adapter: str
    at: float
    expected: float = 0.0
    error: float = 0.0
    before: int = 0
    before_solved: int = 0
    after: int = 0
    after_solved: int = 0
    examples: tuple[str, ...] = ()
