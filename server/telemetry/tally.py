"""Counts what one process does, in plain dicts: a few microseconds a request, and nothing is formatted before a scrape.

Called by the gate, the walk of a request and the episode log, on the event loop alone. It reads finished episodes and
must never keep anything that was said in one. Why not the library's own counters: docs/decisions/0020.
"""

from bisect import bisect_left
from collections import defaultdict
from typing import Final

from server.domain import Episode, Outcome
from server.errors import MulliganError
from server.telemetry.catalogue import (
    ABSTENTIONS,
    ATTEMPTS,
    CATALOGUE,
    COMMIT_S,
    ENGINE_S,
    EPISODE_S,
    EPISODES,
    ERRORS,
    LOGGED,
    MOST_NAMES,
    OTHER,
    QUEUE_S,
    REFLECTIONS,
    REQUEST_S,
    REQUESTS,
    TOKENS,
    VERDICTS,
    VERIFY_S,
)
from verifiers.base import Cause, Status

Key = tuple[str, ...]
"""A metric's name and the values of its labels."""

Series = dict[Key, float | list[float]]
"""Each series and its value; of a histogram how many fell under each bound, how many over all of them, and the sum."""

GONE: Final = 499
"""What a request counts as whose client went away before it was answered: nginx's number for it."""

_BOUNDS = {metric.name: metric.bounds for metric in CATALOGUE}
_NAMED_ERRORS = frozenset(kind.__name__ for kind in MulliganError.__subclasses__()) | {
    "TimeoutError",
    *(inner.__name__ for kind in MulliganError.__subclasses__() for inner in kind.__subclasses__()),
}


class Names:
    """Tells a bounded number of names apart; the rest is `other`."""

    __slots__ = ("_known", "_most")

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._known: dict[str, str] = {}
        self._most = most

    def read(self, name: str) -> str:
        """Give the label for a name."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= self._most:
                return OTHER
            known = self._known[name] = name
        return known


class Tally:
    """What this process has counted since it started."""

    def __init__(self) -> None:
        self.counts: defaultdict[Key, float] = defaultdict(float)
        self.histograms: dict[Key, list[float]] = {}
        self.tasks, self.verifiers = Names(), Names()

    def count_request(self, surface: str, status: int, duration_s: float | None) -> None:
        """Count an HTTP request; the duration of what generates."""
        self.counts[REQUESTS.name, surface, str(status)] += 1
        if duration_s is not None:
            self.observe((REQUEST_S.name, surface), duration_s)

    def count_queued(self, waited_s: float) -> None:
        """Count a request's wait for room."""
        self.observe((QUEUE_S.name,), waited_s)

    def count_logged(self, place: str, episodes: int, duration_s: float) -> None:
        """Count a commit of the log: to the `database` or the `spool`, or `refused`."""
        self.counts[LOGGED.name, place] += episodes
        self.observe((COMMIT_S.name, place), duration_s)

    def count_episode(self, episode: Episode) -> None:
        """Count a finished episode and all that is in it."""
        counts, outcome, task = self.counts, episode.outcome.value, self.tasks.read(episode.task)
        counts[EPISODES.name, task, outcome] += 1
        self.observe((EPISODE_S.name, outcome), episode.duration_ms / 1000)
        for attempt in episode.attempts:
            part = "attempt" if attempt.number == 1 else "retry"
            counts[ATTEMPTS.name, task, part, str(attempt.status)] += 1
            self._count_engine(
                task, part, attempt.usage.prompt_tokens, attempt.usage.completion_tokens, attempt.engine_ms
            )
            for verdict in attempt.verdicts:
                verifier = self.verifiers.read(verdict.verifier)
                counts[VERDICTS.name, verifier, str(verdict.status), verdict.mode.value] += 1
                if verdict.status == Status.ABSTAINED:
                    counts[ABSTENTIONS.name, verifier, str(verdict.cause)] += 1
                if verdict.status != Status.SKIPPED and verdict.cause != Cause.STOPPED:
                    self.observe((VERIFY_S.name, verifier), verdict.duration_ms / 1000)
        for reflection in episode.reflections:
            counts[REFLECTIONS.name, task] += 1
            usage = reflection.usage
            self._count_engine(task, "reflection", usage.prompt_tokens, usage.completion_tokens, reflection.engine_ms)
        if episode.error:
            self._count_error(episode)

    def observe(self, key: Key, value: float) -> None:
        """Put a value into a histogram."""
        held, bounds = self.histograms.get(key), _BOUNDS[key[0]]
        if held is None:
            held = self.histograms[key] = [0.0] * (len(bounds) + 2)
        held[bisect_left(bounds, value)] += 1
        held[-1] += value

    def read(self) -> Series:
        """Copy everything, so that it can be sent while the counting goes on."""
        return {**self.counts, **{key: list(held) for key, held in self.histograms.items()}}

    def _count_engine(self, task: str, part: str, prompt: int, completion: int, engine_ms: float) -> None:
        self.counts[TOKENS.name, task, part, "prompt"] += prompt
        self.counts[TOKENS.name, task, part, "completion"] += completion
        self.observe((ENGINE_S.name, part), engine_ms / 1000)

    def _count_error(self, episode: Episode) -> None:
        """Count the class of an episode's error, which stands first in it, or after `retry N: `."""
        fatal = episode.outcome is Outcome.ERRORED
        words = episode.error.split(": ", 2)
        name = words[0] if fatal or len(words) == 1 else words[1]
        self.counts[ERRORS.name, name if name in _NAMED_ERRORS else OTHER, str(fatal).lower()] += 1
