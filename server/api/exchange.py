"""One chat request on its way: what was asked, the episode, and the connection. Made by `server.api.chat`."""

from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from server.api.context import Context
from server.api.wire import Receive, Send, until_gone
from server.domain import Attempt, Binding, Episode, LoggedVerdict, Outcome, Reflection
from server.orchestration.episode import Progress, run
from server.orchestration.verification import VerifierSet


@dataclass(frozen=True, slots=True)
class Exchange:
    """One chat request and the connection that it came over."""

    context: Context
    episode: Episode
    verify: VerifierSet
    body: dict[str, Any]
    include_usage: bool
    deadline_at: float
    keep_alive_s: float
    receive: Receive
    send: Send

    async def run_logged(self, progress: Progress | None = None) -> None:
        """Run the episode to its end, or until the client goes away, and log it whatever happened.

        `progress` is told of every attempt and reflection as soon as it is whole.

        Raises: ClientGone, StoreUnavailable, the engine's errors.
        """
        await self.log_after(
            run(
                self.episode,
                engine=self.context.engine,
                verify=self.verify,
                body=self.body,
                deadline_at=self.deadline_at,
                progress=progress,
            )
        )

    async def log_after(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do work until the client goes away, and log the episode whatever happened."""
        try:
            await until_gone(self.receive, work)
        finally:
            await self.record()

    async def record(self) -> None:
        """Log the episode; it is safe when this returns. Raises: StoreUnavailable."""
        await self.context.log.record(self.episode if self.episode.store else without_content(self.episode))


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
