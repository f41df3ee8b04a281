"""Puts an episode through the redaction hook, before anything of it is written. Called by the episode log alone.

What training would use must be exactly what was sampled. So an episode in which the redactor changed anything that a
model was shown or wrote never trains, is never asked again by a gate, and keeps no token ids, for these are the text.
"""

from dataclasses import replace
from typing import Any

from server.domain import Attempt, Binding, Episode, LoggedVerdict, Reflection
from server.redaction import Redact, redact_text, redact_value

SHOWN = ("messages", "tools", "prompt", "response_format")
"""The fields of a request that a model is shown."""


def redact_episode(episode: Episode, redact: Redact) -> Episode:
    """Redact an episode; the very same one where there is nothing to redact. Raises: RedactionFailed."""
    if not episode.store or episode.request is None:
        return episode
    request = redact_value(episode.request, redact)
    bindings = tuple(_redact_binding(one, redact) for one in episode.bindings)
    attempts = [_redact_attempt(one, redact) for one in episode.attempts]
    texts = [redact_text(one.text, redact) for one in episode.reflections]
    changed = (
        any(request.get(name) != episode.request.get(name) for name in SHOWN)
        or bindings != episode.bindings
        or any(_differs(new, old) for new, old in zip(attempts, episode.attempts, strict=True))
        or any(text != one.text for text, one in zip(texts, episode.reflections, strict=True))
    )
    error = redact_text(episode.error, redact)
    if not changed:
        same = request == episode.request and attempts == episode.attempts and error == episode.error
        return episode if same else replace(episode, request=request, attempts=attempts, error=error)
    reflections = [
        _without_tokens(replace(one, text=text)) for one, text in zip(episode.reflections, texts, strict=True)
    ]
    attempts = [replace(one, logprobs=None) for one in attempts]  # they spell the answer, token by token
    return replace(
        episode,
        request=request,
        bindings=bindings,
        attempts=attempts,
        reflections=reflections,
        error=error,
        trains=False,
    )


def withhold(episode: Episode) -> Episode:
    """Keep an episode's content out of the log, as `store: false` does: the redactor failed on it."""
    return replace(episode, store=False, request=None, error=episode.error.partition(":")[0])


def _redact_binding(binding: Binding, redact: Redact) -> Binding:
    """Redact what a request gave; a registered verifier's configuration is the operator's."""
    config = binding.config if binding.name else redact_value(dict(binding.config), redact)
    args = redact_value(dict(binding.args), redact, free=True)
    return binding if (config, args) == (binding.config, binding.args) else replace(binding, config=config, args=args)


def _redact_attempt(attempt: Attempt, redact: Redact) -> Attempt:
    answer = redact_value(dict(attempt.answer), redact)
    sampling = redact_value(dict(attempt.sampling), redact)
    verdicts = tuple(_redact_verdict(one, redact) for one in attempt.verdicts)
    reason = redact_text(attempt.reason, redact)
    return replace(attempt, answer=answer, sampling=sampling, verdicts=verdicts, reason=reason)


def _redact_verdict(verdict: LoggedVerdict, redact: Redact) -> LoggedVerdict:
    return replace(verdict, reason=redact_text(verdict.reason, redact), stdout=redact_text(verdict.stdout, redact))


def _differs(new: Attempt, old: Attempt) -> bool:
    """Say whether anything differs that a reflection or a retry was shown, or what the model wrote."""
    return (new.answer, new.sampling, _reasons(new)) != (old.answer, old.sampling, _reasons(old))


def _reasons(attempt: Attempt) -> list[Any]:
    return [one.reason for one in attempt.verdicts]


def _without_tokens(reflection: Reflection) -> Reflection:
    return replace(reflection, prompt_ids=(), token_ids=(), logprobs=())
