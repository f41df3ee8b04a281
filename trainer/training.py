"""The steps of a round: what each samples is kept before it is trained on, and replayed where a lease was lost.

Called by trainer.round. TRL trains in a thread and calls back here for its rollouts and after each step.

How a round is begun again. A step's rollouts are written in one transaction, read back, and only then handed to the
optimiser. A trainer that takes a round over begins with the weights that the round began with, and goes through the
kept steps once more without asking the engine; from the first step that was not kept it samples anew. With the same
seed and the same rollouts the same updates follow, so on one machine, in float32 and on one thread, the weights are
those of the round that was never interrupted, wherever it was: there is nothing else to restore. It costs the
optimising again, and none of the sampling.
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import structlog

from server.domain import Step
from trainer.budget import Budget, measure_folder
from trainer.dataset import Selection
from trainer.desk import Desk, insist
from trainer.errors import RoundFailed
from trainer.following import encode_members
from trainer.grpo import ReflectionTrainer
from trainer.lora import choose_device
from trainer.promotion import Candidate
from trainer.rollout import Deck, Sampler
from trainer.samples import Member

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass
class RoundSteps:
    """The steps of one round under way. `kept` is the last one that an earlier lease sampled; 0: none."""

    desk: Desk
    candidate: Candidate
    selection: Selection
    sampler: Sampler
    budget: Budget
    kept: int = 0
    _deck: Deck = field(init=False)
    _alike: dict[str, tuple[str, ...]] = field(init=False)
    _begun_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._deck = Deck(self.selection.failures, self.desk.options.seed)
        self._alike = {one.episode_id: one.alike for one in self.selection.failures}

    async def draw(self, number: int) -> list[Member] | None:
        """Give the members of a step, kept ones or fresh ones that are kept first; None where the budget is used up.

        Raises: Fenced, RoundFailed, the engine's errors.
        """
        self._begun_at = time.monotonic()
        if number <= self.kept:
            members = await self._read(number)
            self._deck.look_at(members)
            return members
        if not self.budget.allows_step(self._weigh_push()):
            _log.info("training_stopped", round=self.desk.round.id, why=self.budget.stopped)
            return None
        sampled = await self._sample(number)
        if sampled is None:
            return None
        await self._keep(number, sampled)
        members = await self._read(number)
        self._deck.look_at(members)
        return members

    async def tell(self, number: int, figures: dict[str, float], changed: bool) -> None:
        """Log a step live, and push the weights that it made, if the next step is sampled with them.

        Raises: Fenced, the engine's errors.
        """
        started = time.monotonic()
        candidate = self.candidate
        candidate.stale = candidate.stale or changed
        due = number % self.desk.options.push_every == 0 or not candidate.name
        if candidate.stale and due and number >= self.kept:
            await candidate.push(number)
            figures = {**figures, "push_s": time.monotonic() - started}
        _log.info("step", number=number, **{name: round(value, 4) for name, value in figures.items()})
        step = Step(self.desk.round.id, number, figures, time.time())
        await insist(lambda: self.desk.stores.rounds.add_step(*self.desk.held, step))
        self.budget.note_step(time.monotonic() - self._begun_at)
        self.selection.note_settled(*self._deck.settled)
        await self.desk.tell(selection=self.selection.describe(), budget=self.budget.describe())

    async def _sample(self, number: int) -> list[Member] | None:
        if not self.candidate.name:
            await self.candidate.push(number - 1)
        hand = self._deck.deal(self.desk.options.step_failures)
        before, began = self.budget.tokens, time.monotonic()
        try:
            async with asyncio.timeout(self.budget.seconds_for_step):
                members = await self.sampler.sample_step(hand, self.candidate.name)
        except TimeoutError:
            self.budget.stopped = (
                f"max_minutes: step {number} was still sampling when no more than the gate's time was left"
            )
            return None
        fresh = sum(not member.logged for member in members)
        self.budget.note_sampled(fresh, time.monotonic() - began, self.budget.tokens - before)
        return members

    async def _keep(self, number: int, members: list[Member]) -> None:
        """Write down, before it is trained on, what was sampled and the episodes that it was sampled on."""
        used = dict.fromkeys(member.episode_id for member in members)
        ids = [one for episode in used for one in (episode, *self._alike.get(episode, ()))]
        stores, kept = self.desk.stores, [member.keep() for member in members]
        await insist(lambda: stores.lineage.record(self.desk.held, number, ids))
        await insist(lambda: stores.rollouts.record(self.desk.held, number, kept))

    async def _read(self, number: int) -> list[Member]:
        kept = await insist(lambda: self.desk.stores.rollouts.replay(self.desk.round.id, number))
        return [Member.of(one) for one in kept]

    def _weigh_push(self) -> int:
        """Say how many bytes a push takes: the last one's, or what the weights that are trained weigh."""
        if self.candidate.name:
            return measure_folder(self.candidate.path)
        weights = (one for one in self.candidate.model.parameters() if one.requires_grad)
        return sum(one.numel() * one.element_size() for one in weights)


async def train(steps: RoundSteps, tokenizer: Any) -> None:
    """Take the steps, and leave the weights that they made in the engine.

    Raises: RoundFailed, Fenced, the engine's errors.
    """
    loop, options, candidate, ranks = asyncio.get_running_loop(), steps.desk.options, steps.candidate, steps.desk.ranks

    def draw(number: int) -> list[Member] | None:
        members = wait(steps.draw(number))
        ranks.tell(encode_members(members))
        return members

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    trainer = ReflectionTrainer(
        candidate.model,
        tokenizer,
        options,
        sample=draw,
        step_done=lambda number, figures, changed: wait(steps.tell(number, figures, changed)),
        output_dir=steps.desk.folder / "trl",
        on_cpu=choose_device(options).type == "cpu",
        ranks=ranks,
    )
    await asyncio.to_thread(trainer.run)
    if trainer.stopped:
        _log.warning("training_stopped", round=steps.desk.round.id, **asdict(trainer.stopped))
        await steps.desk.tell(stopped=asdict(trainer.stopped))
    if not trainer.updates:
        raise RoundFailed(steps.budget.stopped or (trainer.stopped.words if trainer.stopped else NOTHING_LEARNT))
    if candidate.stale:
        await candidate.push(trainer.steps_taken)


NOTHING_LEARNT = (
    "nothing could be learnt: in every group the retries all passed or all failed; "
    "more failures, a larger group_size or another base model would help"
)
