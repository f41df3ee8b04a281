"""Writes docs/clients.md from the scripts that try the clients. `make docs` runs it; a test keeps the page in step."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "clients.md"
SCRIPTS = ROOT / "tests" / "e2e" / "clients"

CLIENTS = {
    # script: its title, and the packages whose versions are told
    "openai_python.py": ("openai-python", ("openai",)),
    "openai_responses.py": ("openai-python, `/v1/responses`", ("openai",)),
    "openai_node.mjs": ("openai-node", ("openai",)),
    "langchain_client.py": ("langchain-openai", ("langchain-openai",)),
    "litellm_client.py": ("LiteLLM", ("litellm",)),
    "pydantic_ai_client.py": ("pydantic-ai", ("pydantic-ai-slim",)),
    "instructor_client.py": ("instructor", ("instructor",)),
    "llm_cli.sh": ("llm", ("llm",)),
    "ai_sdk.mjs": ("Vercel AI SDK", ("ai", "@ai-sdk/openai-compatible")),
    "curl.sh": ("curl", ()),
    "structured_output.py": ("Structured output", ("openai", "langchain-openai", "pydantic-ai-slim")),
    "structured_instructor.py": ("Structured output with instructor", ("instructor",)),
}
_SDK_ERROR = '`openai.UnprocessableEntityError`, `error.body["mulligan"]`'
SEEN = [
    # client, what Mulligan says of an answer, an error that is a verdict
    ("openai-python", "`completion.mulligan`; headers of `.with_raw_response`", _SDK_ERROR),
    (
        "openai-node",
        "`completion.mulligan`; headers of `.withResponse()`",
        "`OpenAI.UnprocessableEntityError`, `error.error.mulligan`",
    ),
    ("langchain-openai", "headers in `response_metadata` (`include_response_headers=True`)", _SDK_ERROR),
    ("LiteLLM", "`response.mulligan`", '`litellm.BadRequestError`, `error.body["mulligan"]`'),
    ("pydantic-ai", "headers, by a hook of the HTTP client", '`ModelHTTPError`, `error.body["mulligan"]`'),
    (
        "instructor",
        "`object._raw_response.mulligan`",
        "the cause of `InstructorRetryException` is the SDK's own error",
    ),
    ("llm", "`llm logs --json`, of answers that were not streamed", "its message, and exit status 1"),
    (
        "Vercel AI SDK",
        "`providerMetadata.mulligan`, by a `metadataExtractor`",
        "`APICallError`, `JSON.parse(error.responseBody).error.mulligan`",
    ),
    ("curl", "`mulligan` in the body; `x-mulligan-*` headers", "status 422, `error.mulligan` in the body"),
]
LANGUAGES = {".py": "python", ".mjs": "javascript", ".sh": "bash"}

OPENING = """\
<!-- Made by tools/client_docs.py (`make docs`). Do not edit. -->

# Clients

What speaks OpenAI's API speaks to Mulligan: a base URL, a key, and a task's name as the model. The clients on this page
are tried unmodified, in CI, against a running server with the demo model. Each script below is that trial, word for
word: it asks, shows how this client sees why an answer failed, streams, and calls a tool.

| client | what Mulligan says of an answer | an error that is a verdict (422) |
|---|---|---|
{seen}

A client that shows none of these still knows the id of its completion: that of `chatcmpl-1234` is `ep_1234` at
`GET /v1/episodes/ep_1234`, with the same key.

None of these clients sends a 422 again by itself. OpenAI's SDKs do send 408, 409, 429 and 5xx again.

## Before the first script

`make clients` installs all of them. Start a server with the demo model (`make up`); then, in a second terminal:

```bash
source .venv/bin/activate
export MULLIGAN_BASE_URL=http://127.0.0.1:8000/v1
eval "$(bash tests/e2e/clients/setup.sh)"
.venv-clients/bin/python tests/e2e/clients/openai_python.py
```

Every script runs on the embedded engine. The last two, of structured output, are tried on SGLang as well
(`make sglang-cpu`, `mulligan up --engine sglang`): both engines force calls and schemas by a grammar. What each makes
of them is in [engines.md](engines.md).

`setup.sh` makes what the scripts ask for:
"""


def render_page() -> str:
    """Render the page: what to know, what to set up, and every script."""
    seen = "\n".join(f"| {' | '.join(row)} |" for row in SEEN)
    parts = [OPENING.replace("{seen}", seen), _fence("setup.sh")]
    for name, (title, packages) in CLIENTS.items():
        versions = ", ".join(f"{package} {version}" for package in packages for version in read_versions(name, package))
        told = f"\nTried with {versions}.\n" if versions else ""
        parts.append(f"## {title}\n\n`tests/e2e/clients/{name}`\n{told}\n{_fence(name)}")
    return "\n".join(parts)


def read_versions(script: str, package: str) -> list[str]:
    """Read the versions of a package that a script is tried with, newest first."""
    if script.endswith(".mjs"):
        return [json.loads((SCRIPTS / "package.json").read_text())["dependencies"][package]]
    pins = (SCRIPTS / "requirements.txt").read_text() + (SCRIPTS / "requirements-openai2.txt").read_text()
    return re.findall(rf"^{re.escape(package)}==(\S+)", pins, re.MULTILINE)


def _fence(name: str) -> str:
    path = SCRIPTS / name
    return f"```{LANGUAGES[path.suffix]}\n{path.read_text().strip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(render_page())
    sys.stdout.write(f"written: {PAGE}\n")
