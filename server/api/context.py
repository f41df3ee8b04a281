"""What the API works with: every client, store and counter of this process, opened by `server.app` and handed down.

Routes take it with `Rooms`; the chat endpoint is given it. It holds no request.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from server.api.auth import Keyring
from server.api.deletion_runner import DeletionRunner
from server.api.limits import KeyLimiter
from server.api.replay import Replays
from server.api.roster import Roster
from server.api.sessions import Sessions
from server.api.traffic import Traffic
from server.api.watch import Readiness
from server.doorbell import Doorbell
from server.engine.replicas import Replicas
from server.orchestration.verdict_watch import VerdictWatch
from server.redaction import Redact
from server.settings import RoundSizes, Settings
from server.store.adapters import AdapterStore
from server.store.audit import AuditStore
from server.store.backtests import BacktestStore
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.feedback import FeedbackStore
from server.store.holds import HoldStore
from server.store.keys import KeyStore
from server.store.presence import PresenceStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from server.store.verdict_counts import VerdictCountStore
from server.store.verifiers import VerifierStore
from server.telemetry.meter import Meter
from server.telemetry.tally import Series
from server.telemetry.traces import Traces


@dataclass(frozen=True, slots=True)
class Context:
    """One API process's rooms."""

    settings: Settings
    database: Database
    engine: Replicas
    log: EpisodeLog
    episodes: EpisodeStore
    feedback: FeedbackStore
    audit: AuditStore
    tasks: TaskStore
    verifiers: VerifierStore
    verdict_counts: VerdictCountStore
    backtests: BacktestStore
    adapters: AdapterStore
    rounds: RoundStore
    keys: KeyStore
    events: EventStore
    presence: PresenceStore
    holds: HoldStore
    doorbell: Doorbell
    keyring: Keyring
    sessions: Sessions
    limiter: KeyLimiter
    roster: Roster
    traffic: Traffic
    readiness: Readiness
    replays: Replays
    deletions: DeletionRunner
    redact: Redact | None = None
    watch: VerdictWatch = field(default_factory=VerdictWatch)
    round_sizes: RoundSizes = field(default_factory=RoundSizes)
    meter: Meter | None = None
    vital_signs: Callable[[], Awaitable[Series]] | None = None
    traces: Traces | None = None


async def read_context(request: Request) -> Context:
    """Find the context of the application that serves this request."""
    return request.app.state.context


Rooms = Annotated[Context, Depends(read_context)]
