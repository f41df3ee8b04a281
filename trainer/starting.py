"""Where a round begins: the adapter that it goes on from, and whether an earlier lease's work is taken over.

Called by trainer.round. It reads and decides; the one thing it writes is whose the kept rollouts are.
"""

import hashlib
import json
from typing import Any

import structlog

from server.domain import BASE_ADAPTER, Adapter, AdapterStatus, RoundState
from server.store.withdrawals import TRAINED_ON_REVOKED
from trainer.desk import Desk, insist
from trainer.leftovers import discard
from trainer.settings import TrainerSettings

_LEARNING = frozenset(TrainerSettings.model_fields) - {
    # What neither changes a step's updates nor what the kept rollouts mean.
    *("max_minutes", "max_tokens", "max_disk_mb", "concurrency", "push_every"),
    *("max_failures", "min_failures", "replay_share", "settled_after", "step_groups"),
    *(name for name in TrainerSettings.model_fields if name.startswith("gate_")),
    *("first_try_margin", "bootstrap_draws", "drain_timeout_s"),
    *("accelerate_config", "rank_timeout_s"),  # what counts is how many ranks there are
}

_log = structlog.get_logger(__name__)


async def find_start(desk: Desk) -> Adapter | None:
    """Find the adapter to go on from; None: the base model.

    That is the champion, but where the last round that came to a decision was inconclusive: then it is the candidate
    that it kept, if that is still compared with the same champion. Rounds that failed or were cancelled do not end such
    a line, one that regressed does. Never a candidate whose rewards came from a verifier that was revoked.
    """
    task, adapters = desk.task, desk.stores.adapters
    last = await desk.stores.rounds.last_decided(task.name)
    if last and last.state is RoundState.INCONCLUSIVE and last.adapter:
        kept = await adapters.get(last.adapter)
        tainted = kept is not None and any(flag.startswith(TRAINED_ON_REVOKED) for flag in kept.flags)
        if kept and not tainted and kept.parent == task.champion and kept.status is AdapterStatus.CANDIDATE:
            return kept
    return await adapters.get(task.champion) if task.champion != BASE_ADAPTER else None


async def describe_objective(desk: Desk, start: Adapter | None) -> dict[str, Any]:
    """Say what the round trains, and by which other objectives the weights that it goes on from were trained."""
    options = desk.options
    told: dict[str, Any] = {"name": options.objective}
    if options.distils:
        told["first_try_weight"] = options.first_try_weight
    made_by = await desk.stores.rounds.get(start.round_id) if start and start.round_id else None
    if made_by is not None:
        earlier = made_by.report.get("objective", {"name": "reflection"})
        told["before"] = sorted({earlier["name"], *earlier.get("before", ())})
    return told


def fingerprint(desk: Desk, start: Adapter | None) -> str:
    """Hash what the updates of a round follow from, beside its rollouts: options, base model, and where it begins."""
    engine, options = desk.settings.engine, desk.options.model_dump(include=set(_LEARNING), mode="json")
    begins = {"name": start.name, "files": dict(start.files)} if start else {}
    told: list[Any] = [options, engine.model, sorted(engine.lora_target_modules), begins]
    if desk.ranks.size > 1:  # sums over more ranks are rounded otherwise
        told.append(desk.ranks.size)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


async def take_over(desk: Desk, start: Adapter | None) -> int:
    """Take an earlier lease's work over; return the last step whose rollouts were kept, 0 where none may be used.

    They are forgotten where what the updates follow from has changed since. What the earlier lease has saved already is
    thrown away: it is made once more.

    Raises: Fenced.
    """
    recipe, before = fingerprint(desk, start), desk.round.report.get("recipe")
    if desk.round.adapter:
        await discard(desk.round.adapter, desk.stores.adapters)
        await desk.note(adapter="")
    if before == recipe:
        kept = await insist(lambda: desk.stores.rollouts.take_over(desk.held))
        _log.info("taken_over", round=desk.round.id, steps=kept)
    else:
        kept = 0
        await insist(lambda: desk.stores.rollouts.forget(desk.held))
        if before is not None:
            _log.warning("begun_from_nothing", round=desk.round.id, why="options, model, ranks or first adapter")
    await desk.tell(recipe=recipe, **({"replayed_steps": kept} if kept else {}))
    return kept
