"""The circuit breaker of one verifier in one process: a verifier that keeps breaking is asked no more for a while.

Called by `server.orchestration.verdict_watch` for every verdict, so it is cheap where all is well. Pure: clocks are
given, nothing is awaited. It belongs to one event loop.

    closed      every answer is judged; the causes of the latest verdicts are kept
    stopped     no answer is judged, until a time
    on trial    past that time one answer is judged: good closes it, bad stops it again
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from verifiers.base import Cause

SHARE, AFTER, STOP_S = 0.5, 20, 30.0

_STOPPING = frozenset(cause for cause in Cause if cause.stops)


@dataclass(frozen=True, slots=True)
class StopRule:
    """Of the latest `after` verdicts a `share` that broke stops a verifier for `stop_s` seconds."""

    share: float = SHARE
    after: int = AFTER
    stop_s: float = STOP_S


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a verifier is stopped, by which cause most of all, since when and until when (Unix seconds)."""

    verifier: str
    cause: str
    reason: str
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Change:
    """A verifier was stopped, or is asked again."""

    stop: Stop
    stopped: bool


class Breaker:
    """One verifier's breaker. `clock` counts on (seconds), `now` tells the time (Unix seconds)."""

    __slots__ = ("_broken", "_clock", "_latest", "_now", "_rule", "_tell", "_trying", "_until", "_verifier", "stop")

    def __init__(
        self,
        verifier: str,
        rule: StopRule,
        tell: Callable[[Change], None],
        *,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._verifier, self._rule, self._tell = verifier, rule, tell
        self._clock, self._now = clock, now
        self._latest: deque[str] = deque(maxlen=rule.after)  # "" where the verifier did not break
        self._broken = 0
        self._until = 0.0
        self._trying = False
        self.stop: Stop | None = None

    def try_again(self) -> bool:
        """Ask, of a stopped verifier, whether this one answer may be judged after all: its verdict is the trial."""
        if self._trying or self._clock() < self._until:
            return False
        self._trying = True
        return True

    def forgo(self) -> None:
        """Say that a trial came to nothing: its client left."""
        self._trying = False

    def note(self, cause: str, *, trial: bool) -> None:
        """Take a verdict into account; `cause` is why it abstained, else ""."""
        broke = cause in _STOPPING
        if self.stop is not None:
            if trial:
                self._end_trial(cause if broke else "")
            return  # else it was begun before the stop
        latest = self._latest
        if len(latest) == self._rule.after:
            if not broke and not self._broken:
                return  # all is well, and stays so
            self._broken -= latest[0] != ""
        latest.append(cause if broke else "")
        self._broken += broke
        if broke and len(latest) == self._rule.after and self._broken >= self._rule.share * self._rule.after:
            self._stop()

    def _stop(self) -> None:
        cause, _ = Counter(filter(None, self._latest)).most_common(1)[0]
        share = f"{self._broken} of its latest {self._rule.after} verdicts broke, most often by {cause}"
        self._hold(cause, share, since=self._now())
        assert self.stop is not None
        self._tell(Change(self.stop, stopped=True))

    def _end_trial(self, cause: str) -> None:
        assert self.stop is not None
        self._trying = False
        if cause:
            self._hold(cause, f"the latest trial broke too, by {cause}", since=self.stop.since)
            return
        self._tell(Change(self.stop, stopped=False))
        self.stop, self._broken = None, 0
        self._latest.clear()

    def _hold(self, cause: str, why: str, *, since: float) -> None:
        self._until, until = self._clock() + self._rule.stop_s, self._now() + self._rule.stop_s
        told = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.stop = Stop(self._verifier, cause, f"stopped until {told}: {why}", since, until)
