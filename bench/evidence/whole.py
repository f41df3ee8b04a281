"""GRPO on the whole second try: a round's own way, on the same failures with fresh rollouts.

What differs from a round: the retry's tokens carry the loss too, with the advantage of their reflection.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from bench.evidence.ground import Ground
from server.adapters.loading import push
from server.domain import Attempt
from server.engine.base import Completion, Engine
from server.errors import MulliganError
from server.orchestration.episode import attempt
from server.orchestration.reflection import retry_messages
from trainer import dataset
from trainer.grpo import ReflectionTrainer
from trainer.lora import write_adapter
from trainer.rollout import Deck, Sampler
from trainer.samples import Failure, Member
from trainer.settings import TrainerSettings

T = TypeVar("T")


@dataclass
class WholeSampler(Sampler):
    """Samples as a round does, and keeps the retries as members of their own, with their reflections' rewards."""

    engine: Engine
    settings: TrainerSettings
    retries: list[Member] = field(default_factory=list)
    _seen: dict[Any, Completion] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.engine, self.settings)

    async def _sample_member(self, number: int, failure: Failure, adapter: str) -> Member | MulliganError | None:
        member = await super()._sample_member(number, failure, adapter)
        seen = self._seen.pop(asyncio.current_task(), None)
        if isinstance(member, Member) and seen is not None and seen.token_ids:
            ids = {"prompt_ids": seen.prompt_ids, "token_ids": seen.token_ids, "logprobs": seen.logprobs}
            self.retries.append(replace(member, **ids))
        return member

    async def _retry(self, failure: Failure, reflection: str, adapter: str) -> tuple[Attempt | None, Sequence[int]]:
        messages = retry_messages(failure.messages, failure.failed, reflection, failure.prompts, failure.reason)
        body = {**failure.body, "messages": failure.messages}
        mine = asyncio.current_task()

        def keep(completion: Completion) -> None:
            self._seen[mine] = completion

        how = {"adapter": adapter, "verify": failure.verifiers, "messages": messages}
        return await self._ask(lambda: attempt(2, body, engine=self.engine, keep_tokens=keep, **how)), ()


async def learn_whole(ground: Ground, engine: Engine) -> dict[str, Any]:
    """Train as a round does, retries and all; return the notes."""
    order, options, loop = ground.order, ground.options, asyncio.get_running_loop()
    revoked = await ground.stores.verifiers.revoked()
    selected = await dataset.select(order.task, ground.stores.episodes, ground.tokenizer, options, revoked)
    deck, sampler = Deck(selected.failures, options.seed), WholeSampler(engine, options)
    pushed: list[str] = []
    figures: list[dict[str, float]] = []

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    with TemporaryDirectory(dir=order.target.parent) as folder:

        async def push_weights(step: int) -> None:
            name = f"{order.adapter}.{step}"
            await asyncio.to_thread(write_adapter, ground.model, Path(folder) / name)
            await push(engine, name, str(Path(folder) / name))
            pushed.append(name)
            for old in pushed[:-1]:
                await engine.unload_adapter(old)
            del pushed[:-1]

        async def draw(step: int) -> list[Member]:
            if not pushed:
                await push_weights(step - 1)
            sampler.retries.clear()
            members = await sampler.sample_step(deck.deal(options.step_failures), pushed[-1])
            deck.look_at(members)
            return [*members, *sampler.retries]

        async def tell(step: int, told: dict[str, float], *, changed: bool) -> None:
            figures.append(told)
            if changed:
                await push_weights(step)

        trainer = ReflectionTrainer(
            ground.model,
            ground.tokenizer,
            options,
            sample=lambda step: wait(draw(step)),
            step_done=lambda step, told, changed: wait(tell(step, told, changed=changed)),
            output_dir=Path(folder) / "trl",
            on_cpu=True,
        )
        await asyncio.to_thread(trainer.run)
        for name in pushed:
            await engine.unload_adapter(name)
    rewards = [round(one["reward"], 4) for one in figures]
    return {"updates": trainer.updates, "steps": trainer.steps_taken, "rewards": rewards}
