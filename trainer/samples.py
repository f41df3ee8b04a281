"""What the trainer's rooms hand to each other: a failure to reflect on, and the members of its group.

Made by trainer.dataset and trainer.rollout, read by trainer.grpo and trainer.promotion. Plain values, no I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from server.domain import Rollout
from server.orchestration.reflection import Message, Prompts
from server.orchestration.verification import VerifierSet
from verifiers.base import Status


@dataclass(frozen=True, slots=True)
class LoggedReflection:
    """A reflection that was written while serving, with the verdict on the retry that followed (None: no verdict)."""

    token_ids: Sequence[int]  # (T,)
    logprobs: Sequence[float]  # (T,) under the adapter that wrote it, at temperature 1
    reward: float | None


@dataclass(frozen=True, slots=True)
class Failure:
    """One logged failed attempt: everything that is needed to reflect on it, to retry and to judge the retry.

    `body` is what the engine is asked for a retry, without messages; `reason` is what the model may be shown.
    `tokenised` marks a failure that was logged without a reflection: its prompt ids were made here, from text.
    """

    episode_id: str
    messages: Sequence[Message]
    body: Mapping[str, Any]
    failed: Message
    reason: str | None
    prompts: Prompts
    verifiers: VerifierSet
    prompt_ids: Sequence[int]  # (P,) the reflection prompt
    reflection_max_tokens: int
    logged: tuple[LoggedReflection, ...] = ()
    recovered: bool = False
    tokenised: bool = False
    raw: bool = False  # asked as a raw text, which no chat prompt stands for
    alike: tuple[str, ...] = ()  # other episodes that failed the same, whose reflections are among `logged`


@dataclass(frozen=True, slots=True)
class Member:
    """One reflection in a group, as it was sampled. `reward` is None where no verdict was reached.

    What stands behind `logged` is not trained on, but kept with it: the failure, the retry and its verdict, the adapter
    that sampled, and the tokens that both answers took, prompts included. The last two are trained on where the
    objective says so (trainer.first_try): the first prompt as the engine renders it, the same for the whole group, and
    the tokens that the retry was sampled as.
    """

    group: int  # members with the same number reflect on the same failed attempt
    prompt_ids: Sequence[int]  # (P,)
    token_ids: Sequence[int]  # (T,), at least one
    logprobs: Sequence[float]  # (T,) the behaviour policy's
    reward: float | None
    logged: bool = False  # written while serving: stays out of the baseline
    episode_id: str = ""
    verdict: str = ""
    retry: Message | None = None
    adapter: str = ""
    tokens: int = 0
    first_prompt_ids: Sequence[int] = ()  # (Q,)
    retry_ids: Sequence[int] = ()  # (A,)

    @classmethod
    def of(cls, kept: Rollout) -> "Member":
        """Make a member of what was kept of it."""
        return cls(**{one.name: getattr(kept, one.name) for one in fields(kept)})

    def keep(self) -> Rollout:
        """Say what is kept of it."""
        return Rollout(**{one.name: getattr(self, one.name) for one in fields(self)})


def read_reward(status: str) -> float | None:
    """Turn the verdict on a retry into the reward of its reflection: None where nothing was judged."""
    return {Status.PASSED: 1.0, Status.FAILED: 0.0}.get(Status(status))
