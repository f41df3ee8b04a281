"""Says in plain values where an answer came from and what became of it: what `mulligan lineage` and the API print.

Called by `server.cli.lineage` and `server.api.rest.lineage`. It shows facts only, and never what anybody wrote.
"""

from typing import Any

from server.domain import BindingMode, Episode, Reflection
from server.store.lineage import Trace, TracedAdapter, TracedRound


def describe_trace(trace: Trace) -> dict[str, Any]:
    """Describe a lineage in full."""
    return {
        "object": "mulligan.lineage",
        "kind": trace.kind,
        "id": trace.id,
        "episode": describe_episode(trace.episode) if trace.episode else None,
        "adapter": _describe_adapter(trace.adapter) if trace.adapter else None,
        "rounds": [_describe_round(one) for one in trace.rounds],
    }


def describe_own(episode: Episode) -> dict[str, Any]:
    """Describe of an episode's lineage what its own client may see: the episode, and nothing of rounds or adapters."""
    shown = describe_episode(episode, audits=False)
    return {
        "object": "mulligan.lineage",
        "kind": "episode",
        "id": episode.id,
        "episode": shown,
        "adapter": None,
        "rounds": None,
    }


def describe_episode(episode: Episode, *, audits: bool = True) -> dict[str, Any]:
    """Describe the request, its attempts with their verdicts, and its reflections with what of them is kept."""
    return {
        "id": episode.id,
        "task": episode.task,
        "model": episode.model,
        "base_model": episode.base_model,
        "adapter": episode.adapter,
        "key": episode.key,
        "created_at": episode.created_at,
        "outcome": str(episode.outcome),
        "split": episode.split,
        "trains": episode.trains,
        "store": episode.store,
        "attempts": [
            {
                "number": one.number,
                "status": str(one.status),
                "prompt_tokens": one.usage.prompt_tokens,
                "completion_tokens": one.usage.completion_tokens,
                "verdicts": [
                    {"verifier": verdict.verifier, "status": str(verdict.status), "mode": str(verdict.mode)}
                    for verdict in one.verdicts
                    if audits or verdict.mode != BindingMode.AUDIT
                ],
            }
            for one in episode.attempts
        ],
        "reflections": [_describe_reflection(one) for one in episode.reflections],
    }


def _describe_reflection(reflection: Reflection) -> dict[str, Any]:
    """`kept` says how many prompt ids, token ids and behaviour logprobs are in the log: 0 where none are."""
    return {
        "attempt": reflection.attempt,
        "adapter": reflection.adapter,
        "template_hash": reflection.template_hash,
        "sampling": dict(reflection.sampling),
        "prompt_tokens": reflection.usage.prompt_tokens,
        "completion_tokens": reflection.usage.completion_tokens,
        "kept": {
            "prompt_ids": len(reflection.prompt_ids),
            "token_ids": len(reflection.token_ids),
            "logprobs": len(reflection.logprobs),
        },
    }


def _describe_round(traced: TracedRound) -> dict[str, Any]:
    row = traced.round
    return {
        "id": row.id,
        "task": row.task,
        "number": row.number,
        "state": str(row.state),
        "reason": row.reason,
        "parent": row.parent,
        "objective": row.report.get("objective"),
        "created_at": row.created_at,
        "ended_at": row.ended_at,
        "step": traced.step or None,
        "episodes": {"count": traced.count, "ids": list(traced.episodes)},
        "adapter": _describe_adapter(traced.adapter) if traced.adapter else None,
    }


def _describe_adapter(traced: TracedAdapter) -> dict[str, Any]:
    adapter, served = traced.adapter, traced.served
    return {
        "name": adapter.name,
        "status": str(adapter.status),
        "parent": adapter.parent,
        "forced": adapter.forced,
        "decided_by": adapter.decided_by,
        "comment": adapter.comment,
        "flags": list(adapter.flags),
        "verifiers": list(adapter.verifiers),
        "files": dict(adapter.files),
        "round": adapter.round_id,
        "created_at": adapter.created_at,
        "ancestors": list(traced.ancestors),
        "descendants": list(traced.descendants),
        "served": {
            "count": served.count,
            "first": served.first,
            "first_at": served.first_at,
            "last": served.last,
            "last_at": served.last_at,
        },
    }
