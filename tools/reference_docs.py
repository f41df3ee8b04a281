"""Writes docs/api.md, openai-compatibility.md and verifier-kinds.md from the code that they describe.

`make docs` runs it; a test keeps the pages in step.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.api.rest.application import build_rest
from tools.compatibility_docs import render_compatibility
from verifiers.registry import kinds

DOCS = Path(__file__).resolve().parent.parent / "docs"
MARK = "<!-- Made by tools/reference_docs.py (`make docs`). Do not edit. -->\n\n"

CHAT = """# The API

Chat completions, responses, completions, embeddings and models are OpenAI's; the other routes under `/v1` are our own.
A running server shows the schemas of all of them at `/docs` and `/openapi.json`. Every request but the public ones
carries `Authorization: Bearer mk-...`.

What becomes of each field of OpenAI's requests, what they mean where answers are verified, and the table of errors:
[openai-compatibility.md](openai-compatibility.md).
"""

OURS = """
## Ours, in `extra_body`

```python
client.chat.completions.create(
    model="sql",  # a task; or the base model with `task` beside it
    messages=[...],
    extra_body={
        "verifiers": [
            "shape",  # a registered verifier: the version that the task pins, or the key, else the latest
            "shape@2",  # this version
            {"name": "countdown", "args": {"numbers": [3, 5, 2], "target": 21}},
            {"kind": "regex", "config": {"pattern": "^SELECT"}, "when": {"answer": "text"}},  # inline
        ],
        "verify": "enforce",  # off | observe | enforce
        "retry": {
            "max_retries": 2,
            "max_seconds": 20,
            "max_total_tokens": 4000,
            "reflection_max_tokens": 256,
            "show": "verdict",  # or "reason": what of a verdict the model is shown
            "on_failure": "return_last",  # or "error": 422
            "on_abstain": "return",  # or "error": 422
        },
    },
)
```

All verifiers have to pass. They stand in for those that the task enforces; what the task observes or audits with is
asked beside them, with the arguments of its namesake here, or of the only verifier that has some, and never counts.
Without `verifiers` the task's are asked, and the key's own where the task enforces none. A version that was revoked or
archived is refused (`verifier_revoked`, `verifier_archived`); one that a task pins and that has no version before it
abstains.
`when` says when one applies: `answer` is `text` or `tool_call`, `last_role` is `user` or
`tool`; else its verdict is `skipped`. At most 16 verifiers a request, inline configurations of at most 64 KiB; inline
verifiers need the scope `inline_verifiers`, and code among them `register_code` ([keys.md](keys.md)).

The response carries `mulligan`: `episode_id`, `outcome`, `adapter`, `attempts` (`number`, `verdict`, `score`, `reason`,
`verdicts` of the single verifiers, `usage`) and `reflections` (`attempt`, `text`, `usage`).
"""

TASKS = """
## A task and a round

```sh
curl -sS http://127.0.0.1:8000/v1/tasks -H "authorization: Bearer $KEY" -H "content-type: application/json" -d '{
  "name": "support",
  "verifiers": ["polite@1", {"name": "calls", "when": {"answer": "tool_call"}, "mode": "observe"}],
  "retry": {"max_retries": 2},
  "training": {"train_on_new_failures": 200, "promotion": "approve", "options": {"steps": 8}}
}'
curl -sS http://127.0.0.1:8000/v1/tasks/support/rounds -H "authorization: Bearer $KEY" \\
  -H "content-type: application/json" -d '{"options": {"steps": 2}}'
```

Only `name` has to be there. How to make the verifier: [verifiers.md](verifiers.md). `PATCH /v1/tasks/support` takes
the same fields, and leaves alone what it does not name. `options` are those of [settings.md](settings.md#rounds): a
name that there is not, or a value that does not go, is a 400 with its `param`.
"""

STREAMS = """
## Streams

With enforcing verifiers, `stream: true` holds the answer until it is verified; comments keep the connection alive
meanwhile, and `stream_options: {"include_attempts": true}` shows failed attempts and reflections as `reasoning_content`
deltas as they come. `unverified_stream: true` asks for live tokens instead, with the verdict in the last chunk. Without
verifiers the engine's chunks pass through untouched but for the last, which carries `mulligan`.

## Headers

`x-mulligan-episode`, `x-mulligan-outcome` and `x-mulligan-adapter` say what `mulligan` in the body says (in a stream
that has begun, the outcome is in the last chunk); `x-request-id` is on every response; `retry-after` on 429 and 503;
`x-ratelimit-*` on answers to a key whose requests or tokens are limited.
"""


def render_api() -> str:
    """Render the page of the API: our own fields, streams, headers, routes."""
    return MARK + CHAT + OURS + TASKS + STREAMS + "\n## Routes\n\n" + _render_routes() + "\n"


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def _render_routes() -> str:
    rows = [
        f"| `{method.upper()} {path}` | {_first_line(route.get('description'))} |"
        for path, methods in build_rest().openapi()["paths"].items()
        for method, route in methods.items()
    ]
    return "\n".join(["| route | |", "|---|---|", *rows])


def render_verifiers() -> str:
    """Render the page of the kinds of verifiers."""
    sections = [
        "# The kinds of verifiers\n\nA kind has a configuration, which is part of a version and never changes, and "
        "arguments, which come with each request. Both are checked against these schemas; `mulligan verifiers run` and "
        "`POST /v1/verifiers/{name}/run` try one on a sample answer.\n"
    ]
    for kind in kinds().values():
        sections.append(f"## `{kind.name}`\n\n{kind.summary}\n")
        sections.append(_render_schema("Configuration", kind.config_schema))
        sections.append(_render_schema("Arguments of a request", kind.args_schema))
    return MARK + "\n".join(sections)


def _render_schema(title: str, schema: Mapping[str, Any]) -> str:
    return f"{title}:\n\n```json\n{json.dumps(schema, indent=2)}\n```\n"


PAGES = {
    "api.md": render_api,
    "openai-compatibility.md": lambda: MARK + render_compatibility(),
    "verifier-kinds.md": render_verifiers,
}

if __name__ == "__main__":
    for name, render in PAGES.items():
        (DOCS / name).write_text(render())
        sys.stdout.write(f"written: {DOCS / name}\n")
