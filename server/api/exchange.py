"""One request on its way: what was asked, the episodes that answer it, the connection. Made by `server.api.serve`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from server.api.context import Context
from server.api.render import Headers, end_headers, start_headers
from server.api.surfaces.base import Ask, Surface
from server.api.telemetry import log_episode, trace_engine
from server.api.wire import Receive, Send, until_gone
from server.domain import Attempt, Binding, Episode, LoggedVerdict, Outcome, Reflection
from server.engine.base import Engine
from server.orchestration.episode import run
from server.orchestration.verification import VerifierSet
from server.telemetry.traces import EpisodeTrace

Progress = Callable[[int, Attempt | Reflection], Awaitable[None]]
"""Is told of every attempt and reflection as soon as it is whole, with the index of its choice."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Exchange:
    """One request and the connection that it came over."""

    context: Context
    surface: Surface
    ask: Ask
    episodes: tuple[Episode, ...]
    verify: VerifierSet
    deadline_at: float
    keep_alive_s: float
    receive: Receive
    send: Send
    headers: Headers
    """What the key's limits add to the answer's headers."""
    traces: tuple[EpisodeTrace, ...] = ()
    """Of each episode, where traces are on."""

    def start_headers(self) -> Headers:
        """Headers that are known when the episodes begin."""
        return [*start_headers(self.episodes), *self.headers]

    def end_headers(self) -> Headers:
        """Headers of the finished episodes."""
        return [*end_headers(self.episodes), *self.headers]

    async def run_logged(self, progress: Progress | None = None) -> None:
        """Run the episodes to their end, or until the client goes away, and log them whatever happened.

        `progress` is told of every attempt and reflection as soon as it is whole.

        Raises: ClientGone, StoreUnavailable, the engine's errors.
        """
        await self.log_after(self.for_each(partial(self._run, progress)))

    async def for_each(self, work: Callable[[int], Coroutine[Any, Any, Any]]) -> None:
        """Do work for each choice, side by side. What goes wrong with one ends them all, and is raised."""
        if len(self.episodes) == 1:
            await work(0)
            return
        jobs = [asyncio.ensure_future(work(index)) for index in range(len(self.episodes))]
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_EXCEPTION)
            for job in done:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def log_after(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do work until the client goes away, and log the episodes whatever happened."""
        try:
            await until_gone(self.receive, work)
        finally:
            await self.record()

    async def record(self) -> None:
        """Log the episodes; they are safe when this returns. Raises: StoreUnavailable."""
        began_ns, logged = time.time_ns(), False
        kept = [episode if episode.store else without_content(episode) for episode in self.episodes]
        try:
            if len(kept) == 1:
                await self.context.log.record(kept[0])
            else:
                await asyncio.gather(*map(self.context.log.record, kept))
            logged = True
        finally:
            self._tell(began_ns, logged=logged)

    def name_in_logs(self, index: int) -> None:
        """Let every line that this task logs from now on say which episode it is about."""
        structlog.contextvars.bind_contextvars(episode=self.episodes[index].id)

    def engine_of(self, index: int) -> Engine:
        """Give the engine that the episode of a choice asks."""
        return trace_engine(self.context.engine, self.traces, index)

    def _tell(self, log_began_ns: int, *, logged: bool) -> None:
        """Count and trace the episodes that are over. The answer goes first: nothing here may stand in its way."""
        meter, lines = self.context.meter, self.context.settings.telemetry.episode_lines
        try:
            for episode in self.episodes:
                if meter is not None:
                    meter.tally.count_episode(episode)
                if lines:
                    log_episode(episode)
            for trace in self.traces:
                trace.end(log_began_ns, logged=logged)
        except Exception:  # noqa: BLE001 -- the client's answer is whole
            _log.exception("telemetry_broke")

    async def _run(self, progress: Progress | None, index: int) -> None:
        self.name_in_logs(index)
        await run(
            self.episodes[index],
            engine=self.engine_of(index),
            verify=self.verify,
            body=self.ask.choices[index].body,
            deadline_at=self.deadline_at,
            progress=None if progress is None else partial(progress, index),
        )


def without_content(episode: Episode) -> Episode:
    """Copy an episode without anything that was said: what `store: false` leaves in the log."""
    return replace(
        episode,
        request=None,
        bindings=tuple(_bare_binding(binding) for binding in episode.bindings),
        attempts=[_bare_attempt(attempt) for attempt in episode.attempts],
        reflections=[_bare_reflection(reflection) for reflection in episode.reflections],
        error=episode.error.partition(":")[0] if episode.outcome is not Outcome.ERRORED else episode.error,
    )


def _bare_binding(binding: Binding) -> Binding:
    return replace(binding, args={}, config=binding.config if binding.name else {})


def _bare_verdict(verdict: LoggedVerdict) -> LoggedVerdict:
    return replace(verdict, reason="", stdout="")


def _bare_attempt(attempt: Attempt) -> Attempt:
    verdicts = tuple(_bare_verdict(verdict) for verdict in attempt.verdicts)
    said = ("tools", "tool_choice", "response_format", "stop", "logit_bias")
    sampling = {name: value for name, value in attempt.sampling.items() if name not in said}
    return replace(attempt, answer={}, reason="", verdicts=verdicts, sampling=sampling, logprobs=None)


def _bare_reflection(reflection: Reflection) -> Reflection:
    return replace(reflection, text="", prompt_ids=(), token_ids=(), logprobs=())
