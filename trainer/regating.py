"""Gates the champion that is there anew, without training: for a task whose reflection prompts were changed.

Called by trainer.round for a round with the option `gate_only`. The champion stands against the base model on held-out
problems, under the task's prompts of today. It moves nothing: the champion stays, and is no longer flagged where it
passed; what else to do is said in words, for a human.
"""

from collections.abc import Sequence
from dataclasses import replace

from server.domain import BASE_ADAPTER, Binding, RoundState
from server.orchestration.fingerprints import REFLECTION_TEMPLATE, hash_template
from trainer import gate_round
from trainer.desk import Desk, insist
from trainer.errors import RoundFailed
from trainer.weighing import Decision
from trainer.yielding import come_second, find_courtesy


async def regate(desk: Desk, audits: Sequence[Binding]) -> tuple[RoundState, str]:
    """Gate the task's champion against the base model under the prompts of today.

    Raises: RoundFailed where the base model serves; Fenced, the engine's errors.
    """
    task = desk.task
    if task.champion == BASE_ADAPTER:
        raise RoundFailed(f"task {task.name!r} is served by the base model: there is no champion to gate")
    await desk.note(phase="gate", parent=BASE_ADAPTER)
    logged = await desk.stores.episodes.held_out(task.name, limit=desk.options.gate_problems)
    held_out = [replace(one, prompts=task.prompts) for one in logged]
    engine = come_second(desk.engine, lambda _usage: None, await find_courtesy(desk.settings, desk.stores.presence))
    against_base = replace(desk, task=replace(task, champion=BASE_ADAPTER))
    report = await gate_round.judge(
        against_base, task.champion, engine, held_out, audits=audits, seconds_left=lambda: None
    )
    await desk.tell(gate_only=True, **report)
    said = f"{task.champion} against the base model, under the prompts of today: {report['reason']}"
    if report["decision"] == Decision.PROMOTED:
        template = {REFLECTION_TEMPLATE: hash_template(task)}
        await insist(lambda: desk.stores.adapters.add_fingerprints(task.champion, template, epoch_of_round=desk.held))
        return RoundState.PROMOTED, f"stays champion: {said}"
    if report["decision"] == Decision.REGRESSED:
        return RoundState.REGRESSED, f"the base model is better: `mulligan adapters rollback {task.name}` ({said})"
    return RoundState.INCONCLUSIVE, f"stays flagged: {said}"
