"""Writes docs/settings.md from server/settings.py and trainer/settings.py, for `make docs`; a test keeps them in step.

What a setting is for is said by the comment at the end of its line, or by ABOUT for those whose name says most of it.
"""

import ast
import inspect
import sys
import tokenize
import types
import typing
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from server.settings import DEMO_MODEL, Settings
from trainer.settings import TrainerSettings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
INTRODUCTION = """<!-- Made by tools/settings_docs.py (`make docs`). Do not edit. -->

# Settings

Every setting is a variable of the environment; where a command has an option for it, the option wins. A task overrides
settings of training by its `training.options`, one round by its own `--option`; the name of such an option is the
variable's in small letters, without `MULLIGAN_TRAINER__`: `kl_beta`. How they are used together:
[deployment.md](deployment.md).

- Two underscores lead into a section: `MULLIGAN_ENGINE__URL`. A section can also be given whole, as JSON:
  `MULLIGAN_LOG='{"commit_interval_ms": 2}'`.
- Lists and tables are JSON: `MULLIGAN_ENGINE__LORA_TARGET_MODULES='["q_proj", "v_proj"]'`.
- All parts of one server (API, worker, scheduler) get the same settings. `mulligan up` sees to that by itself.
- Values marked *secret* are never logged and never shown by the API.
"""
SECTIONS = {
    "": "The server",
    "ENGINE": "The engine",
    "LOG": "The episode log",
    "LIMITS": "What a request may ask for",
    "VERIFIERS": "What verifiers may reach",
    "TELEMETRY": "Metrics, traces and logs",
    "TRAINER": "Rounds",
}
ABOUT = {
    "MULLIGAN_DATA_DIR": "folder of adapters, rounds, spool and logs, and of the embedded database and queue",
    "MULLIGAN_HOST": "address that the API listens on",
    "MULLIGAN_PORT": "port that the API listens on; 0: a free one",
    "MULLIGAN_WORKER_HEARTBEAT_S": "how often a worker says that its round lives",
    "MULLIGAN_LOG_LEVEL": "what is logged, at least; `debug` may show what was said in requests",
    "MULLIGAN_LOG_JSON": "whether logs are lines of JSON",
    "MULLIGAN_ENGINE__KIND": "the embedded engine, or SGLang",
    "MULLIGAN_ENGINE__URL": "where the engine listens",
    "MULLIGAN_ENGINE__MODEL": "folder or Hugging Face id of the model",
    "MULLIGAN_ENGINE__DEVICE": "what the engine computes on",
    "MULLIGAN_ENGINE__DTYPE": "number format of weights and activations",
    "MULLIGAN_ENGINE__CONTEXT_TOKENS": "most tokens of a prompt and its answer together",
    "MULLIGAN_ENGINE__MAX_RUNNING_REQUESTS": "most sequences that decode at once",
    "MULLIGAN_ENGINE__MAX_LORA_RANK": "largest rank of an adapter; its pools are sized by it",
    "MULLIGAN_ENGINE__MAX_LORAS_PER_BATCH": "adapters that one batch may mix; one slot is the base's own",
    "MULLIGAN_ENGINE__MAX_LOADED_LORAS": "adapters that the engine holds",
    "MULLIGAN_ENGINE__LORA_TARGET_MODULES": "which layers adapters change, in the engine and in training",
    "MULLIGAN_ENGINE__TOOL_CALL_PARSER": "SGLang's: how tool calls are read from the text",
    "MULLIGAN_ENGINE__REQUEST_TIMEOUT_S": "longest wait for one answer of the engine",
    "MULLIGAN_ENGINE__START_TIMEOUT_S": "how long `mulligan up` waits for the engine to be ready",
    "MULLIGAN_LOG__COMMIT_MAX_EPISODES": "most episodes of one commit",
    "MULLIGAN_LOG__SPOOL_MAX_BYTES": "most bytes that wait on disk while the database is away",
    "MULLIGAN_LIMITS__BODY_MAX_BYTES": "largest body of a request",
    "MULLIGAN_LIMITS__MAX_MESSAGES": "most messages of a request",
    "MULLIGAN_LIMITS__MAX_RETRIES": "most retries that a request or a task may ask for",
    "MULLIGAN_LIMITS__DEADLINE_S": "longest time that a request may take",
    "MULLIGAN_TRAINER__SEED": "seed of what is drawn at random",
    "MULLIGAN_TRAINER__LEARNING_RATE": "step size of the optimiser (AdamW)",
    "MULLIGAN_TRAINER__CLIP_LOW": "how far the ratio may fall below 1 before it is clipped",
    "MULLIGAN_TRAINER__CLIP_HIGH": "how far the ratio may rise above 1 before it is clipped",
    "MULLIGAN_TRAINER__MAX_GRAD_NORM": "gradients are scaled down to this norm",
    "MULLIGAN_TRAINER__ADAM_BETA2": "decay of the optimiser's second moment",
    "MULLIGAN_TRAINER__LORA_RANK": "rank of adapters; at most the engine's",
    "MULLIGAN_TRAINER__LORA_ALPHA": "scale of adapters",
    "MULLIGAN_TRAINER__DEVICE": "what the trainer computes on",
    "MULLIGAN_TRAINER__BOOTSTRAP_DRAWS": "resamples of the held-out problems for the gate's interval",
    "MULLIGAN_TRAINER__DRAIN_TIMEOUT_S": "how long a hot swap waits for episodes on the former champion",
}


class Row(typing.NamedTuple):
    """One variable: its section's prefix, and what the table shows of it."""

    section: str
    name: str
    kind: str
    default: str
    about: str


def rows() -> Iterator[Row]:
    """List every variable, in the order of the code."""
    yield from _rows_of(Settings, "MULLIGAN_", "")
    yield from _rows_of(TrainerSettings, "MULLIGAN_TRAINER__", "TRAINER")


def _rows_of(model: type[BaseModel], prefix: str, section: str) -> Iterator[Row]:
    comments = _read_comments(model)
    nested: list[tuple[str, type[BaseModel]]] = []
    for field_name, field in model.model_fields.items():
        name = prefix + field_name.upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested.append((field_name.upper(), field.annotation))
            continue
        about = comments.get(field_name) or ABOUT.get(name, "")
        secret = "" if field.repr else " *secret*"
        yield Row(section, name, _spell_type(field.annotation), _spell_default(name, field), about + secret)
    for inner, inner_model in nested:
        yield from _rows_of(inner_model, f"{prefix}{inner}__", inner)


def _read_comments(model: type[BaseModel]) -> dict[str, str]:
    """Read the comment at the end of each field's lines, by the name of the field; those of base classes, too."""
    found = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and not kind.__module__.startswith("pydantic"):
            found |= _read_own_comments(kind)
    return found


def _read_own_comments(model: type[BaseModel]) -> dict[str, str]:
    source = inspect.cleandoc("\n" + inspect.getsource(model))
    at_line = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.line.lstrip().startswith("#") and "fmt:" not in token.string
    }
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            said = [at_line[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in at_line]
            found[node.target.id] = " ".join(said)
    return found


def _spell_type(annotation: object) -> str:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spell_type(value) for value in inside)
    if origin is tuple:
        return "list"
    if origin is dict:
        return "table"
    names = {str: "text", int: "whole number", float: "number", bool: "true, false", Path: "path", type(None): "none"}
    return names[annotation]  # type: ignore[index]


def _spell_default(name: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if not field.repr or value in ({}, "", None):
        return "none"
    if value == str(DEMO_MODEL):
        return "the demo model"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def render_page() -> str:
    """Render the page."""
    listed = list(rows())
    parts = [INTRODUCTION]
    for section, title in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| variable | value | default | |\n|---|---|---|---|\n")
        parts += [
            f"| `{row.name}` | {row.kind} | {row.default} | {_escape(row.about)} |\n"
            for row in listed
            if row.section == section
        ]
    return "".join(parts)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render_page())
    sys.stdout.write(f"written: {PAGE}\n")
