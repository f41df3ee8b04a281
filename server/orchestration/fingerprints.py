"""Fingerprints: short hashes by which a model, a tokenizer, a chat template and the reflection prompts are told apart.

Pure. The engine's are computed from what it answers (`server.engine.inspection`), the trainer's from its own model
folder (`trainer.preflight`); adapters carry those that they were made for. Tokenizers are compared by the tokens of
fixed texts, chat templates by the tokens of fixed conversations: whatever renders the same is the same to a model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from server.domain import Adapter, Task
from server.orchestration.reflection import Prompts, hash_prompts

BASE_MODEL, TOKENIZER, CHAT_TEMPLATE = "base_model", "tokenizer", "chat_template"
REFLECTION_TEMPLATE = "reflection_template"

PROBE_TEXTS = (
    "The quick brown fox jumps over 12345.678 lazy dogs.",
    "  two  spaces,\ta tab\nand a line\n\n  indented",
    "Größe, naïve, 東京, привет, 🙂",
    'SELECT "a" FROM t WHERE x >= 10; {"k": [1, null]}',
)
"""What tokenizers are told apart by: words, numbers, white space, other scripts, code."""

PROBE_CONVERSATIONS: tuple[tuple[Mapping[str, str], ...], ...] = (
    ({"role": "user", "content": "Using the numbers 3, 5 and 2, make 21."},),
    (
        {"role": "user", "content": "Say one."},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Reflect.\nThen say it again."},
    ),
)
"""What chat templates are told apart by. No system message: templates that have none refuse it."""

_SHOWN = 16


def hash_tokens(rows: Sequence[Sequence[int]]) -> str:
    """Hash lists of token ids."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()[:_SHOWN]


def hash_template(task: Task) -> str:
    """Hash the wording and the shape of a task's two prompts."""
    return hash_prompts(Prompts(**task.prompts))


def list_doubts(adapter: Adapter, task: Task, present: Mapping[str, str] | None = None) -> list[str]:
    """Say what an adapter was made for and no longer finds: other reflection prompts, another model under it.

    `present` holds the trainer's fingerprints of today, where they are known. What an adapter does not carry is not
    doubted: it is from before there were fingerprints.
    """
    doubts = []
    gated = adapter.fingerprints.get(REFLECTION_TEMPLATE)
    if gated is not None and gated != hash_template(task):
        doubts.append(
            f"gated under other reflection prompts: run `mulligan round start {task.name} --gate-only`, "
            "or put the prompts back"
        )
    for name in (BASE_MODEL, TOKENIZER, CHAT_TEMPLATE):
        made, now = adapter.fingerprints.get(name), (present or {}).get(name)
        if made is not None and now is not None and made != now:
            said = name.replace("_", " ")
            doubts.append(
                f"trained on another {said}: serve that one again, or `mulligan adapters rollback {task.name}`"
            )
    return doubts


def flag_doubts(adapters: Sequence[Adapter], tasks: Sequence[Task]) -> list[Adapter]:
    """Add to the flags of each task's champion what is doubtful about it today; the others stay as they are."""
    owners = {task.champion: task for task in tasks}
    return [
        replace(one, flags=(*one.flags, *list_doubts(one, owners[one.name]))) if one.name in owners else one
        for one in adapters
    ]
