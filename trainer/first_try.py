"""What the objective `reflection+first_try` adds: successful retries, learnt as answers to the first prompt.

Called by trainer.steps and trainer.grpo. A retry that passed is taken as it was sampled, by its token ids, and stands
behind the prompt that the request was first asked with: no reflection, no failed attempt. Plain numbers: no torch, no
engine.
"""

from collections.abc import Sequence

from trainer.groups import Weighed
from trainer.samples import Member


def pick_answers(members: Sequence[Member]) -> list[Weighed]:
    """Pick the retries to distil, as members whose prompt is the first prompt and whose tokens are the retry's.

    Those that passed their verifiers, each answer to a prompt once. Logged members have none: their retries' tokens are
    not in the log. The advantage is of no use here.
    """
    answers: dict[tuple[tuple[int, ...], tuple[int, ...]], Weighed] = {}
    for one in members:
        if one.reward and one.retry_ids and one.first_prompt_ids and not one.logged:
            prompt, tokens = tuple(one.first_prompt_ids), tuple(one.retry_ids)
            answer = Member(one.group, prompt, tokens, [0.0] * len(tokens), None, episode_id=one.episode_id)
            answers.setdefault((prompt, tokens), (answer, 0.0))
    return list(answers.values())


def deal_answers(answers: Sequence[Weighed], updates: int) -> list[list[Weighed]]:
    """Deal answers evenly to a step's updates (at least one); in each, those to the same prompt lie together."""
    return [sorted(answers[first::updates], key=_by_prompt) for first in range(updates)]


def count_tokens(answers: Sequence[Weighed]) -> int:
    """Count the tokens that answers are learnt on."""
    return sum(len(answer.token_ids) for answer, _ in answers)


def _by_prompt(one: Weighed) -> tuple[int, Sequence[int]]:
    return len(one[0].prompt_ids), one[0].prompt_ids
