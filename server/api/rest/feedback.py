"""`POST /v1/feedback`: what turned out later about an answer. A client key speaks of its own episodes only."""

from fastapi import APIRouter, Depends

from server.api.auth import APPROVE, INFERENCE, READ_ALL, may
from server.api.context import Context, Rooms
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import FeedbackBody
from server.domain import ApiKey, Feedback
from server.errors import NotFound
from server.redaction import WITHHELD, RedactionFailed, redact_text

router = APIRouter(prefix="/v1/feedback", tags=["feedback"])


@router.post("", dependencies=[Depends(needs(INFERENCE, APPROVE))])
async def give_feedback(body: FeedbackBody, rooms: Rooms, key: Caller) -> Feedback:
    """Say later whether an episode's answer was right, once for each `source`; the same again changes nothing.

    What contradicts a former word of the same source is a 409, unless `replace` is true; the former one is kept in the
    audit log. `trains` in the answer says whether rounds heed it: whether the task trusts this key's feedback.
    """
    found = await rooms.episodes.find_owner(body.episode_id)
    if found is None or not (may(key, READ_ALL) or found.key == key.id):
        raise NotFound(
            f"There is no episode {body.episode_id!r}. One is there once its answer has ended; what was answered while "
            "the database was away comes a few seconds after it is back.",
            param="episode_id",
            code="episode_not_found",
        )
    given = Feedback(
        body.episode_id,
        body.source,
        key.id,
        passed=body.passed,
        score=body.score,
        comment=_redact(body.comment, rooms) if found.store else "",  # it may tell what was said
        trains=await _is_trusted(key, found.task, rooms),
    )
    return await rooms.feedback.give(given, overwrite=body.replace, own_only=not may(key, APPROVE))


def _redact(comment: str, rooms: Context) -> str:
    if rooms.redact is None:
        return comment
    try:
        return redact_text(comment, rooms.redact)
    except RedactionFailed:
        return WITHHELD


async def _is_trusted(key: ApiKey, task: str, rooms: Context) -> bool:
    found = await rooms.tasks.get(task)  # not the snapshot: it may be a moment old
    return found is not None and key.id in found.training.trust_feedback
