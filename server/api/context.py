"""What the API works with: every client, store and counter of this process, opened by `server.app` and handed down.

Routes take it with `Rooms`; the chat endpoint is given it. It holds no request.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from server.api.auth import Keyring
from server.api.limits import KeyLimiter
from server.api.replay import Replays
from server.api.roster import Roster
from server.api.traffic import Traffic
from server.api.watch import Readiness
from server.doorbell import Doorbell
from server.engine.base import Engine
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.keys import KeyStore
from server.store.presence import PresenceStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore


@dataclass(frozen=True, slots=True)
class Context:
    """One API process's rooms."""

    settings: Settings
    database: Database
    engine: Engine
    log: EpisodeLog
    episodes: EpisodeStore
    tasks: TaskStore
    verifiers: VerifierStore
    adapters: AdapterStore
    rounds: RoundStore
    keys: KeyStore
    events: EventStore
    presence: PresenceStore
    doorbell: Doorbell
    keyring: Keyring
    limiter: KeyLimiter
    roster: Roster
    traffic: Traffic
    readiness: Readiness
    replays: Replays


async def read_context(request: Request) -> Context:
    """Find the context of the application that serves this request."""
    return request.app.state.context


Rooms = Annotated[Context, Depends(read_context)]
