"""`mulligan up`: the whole server on one machine."""

import asyncio
import json
import shlex

from rich.console import Console

from server.cli.options import BrokerUrl, DatabaseUrl, DataDir, load_settings
from server.cli.parts import EngineKind, EngineUrl, Host, Model, Port, Workers, with_engine
from server.cli.running import RunningServer, run_server, run_until_signal
from server.cli.show import standard_console
from server.settings import DEMO_MODEL, Settings

_DEMO_QUESTION = "Using the numbers 3, 5 and 2, make 21."
_DEMO_VERIFIER = {"kind": "countdown", "args": {"numbers": [3, 5, 2], "target": 21}}
_PLAIN_QUESTION = "Name one prime number between 20 and 30. Answer with the number alone."
_PLAIN_VERIFIER = {"kind": "regex", "config": {"pattern": r"^(23|29)$"}}


def up(
    *,
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    model: Model = None,
    engine: EngineKind = None,
    engine_url: EngineUrl = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
) -> None:
    """Start everything on this machine.

    That is the engine, the API, the worker and the scheduler; what dies is started again, and Ctrl-C stops it all.
    Without options: the embedded engine with the demo model, SQLite and a queue of files, all in the data folder.
    """
    settings = load_settings(
        note=False,
        data_dir=data_dir,
        host=host,
        port=port,
        workers=workers,
        database_url=database_url,
        broker_url=broker_url,
    )
    settings = with_engine(settings, kind=engine, model=model, urls=engine_url)
    console = standard_console()
    run_until_signal(lambda hurried: _serve(settings, console, hurried, own_engine=not engine_url))


async def _serve(settings: Settings, console: Console, hurried: asyncio.Event, *, own_engine: bool) -> None:
    async with run_server(settings, own_engine=own_engine, console=console, hurried=hurried) as running:
        print_welcome(console, running)
        await asyncio.Event().wait()


def print_welcome(console: Console, running: RunningServer) -> None:
    """Print where the server is, the first key, and lines that work when pasted."""
    settings = running.settings
    key = running.first_key or "$MULLIGAN_API_KEY"

    def say(text: str = "") -> None:
        console.print(text, markup=False, soft_wrap=True)

    say()
    say(f"Mulligan serves at {running.url}/v1")
    say(f"Its dashboard is at {running.url}/admin")
    say(f"model {settings.engine.model} on engine {settings.engine.kind}; data and logs in {settings.data_dir}")
    say()
    if running.first_key:
        say(f"API key (admin, shown only this once): {running.first_key}")
    else:
        say("API keys were made before: export MULLIGAN_API_KEY=..., or `mulligan keys create NAME` makes another.")
    say()
    say(curl_line(running.url, key, settings))
    say()
    for line in sdk_lines(running.url, running.first_key, settings):
        say(line)
    say()
    say("Ctrl-C stops everything.")


def example_body(settings: Settings) -> dict[str, object]:
    """Build a request that a verifier checks; the demo's own kind of problem for the demo's model."""
    demo = settings.engine.model == str(DEMO_MODEL)
    question, verifier = (_DEMO_QUESTION, _DEMO_VERIFIER) if demo else (_PLAIN_QUESTION, _PLAIN_VERIFIER)
    return {"model": "default", "messages": [{"role": "user", "content": question}], "verifiers": [verifier]}


def curl_line(url: str, key: str, settings: Settings) -> str:
    """Build the curl command of the example, to be pasted into a shell."""
    body = shlex.quote(json.dumps(example_body(settings)))
    return (
        f'curl {url}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" -d {body}'
    )


def sdk_lines(url: str, key: str | None, settings: Settings) -> list[str]:
    """Build the same with the OpenAI SDK, to be pasted into Python."""
    body = example_body(settings)
    spelled_key = repr(key) if key else 'os.environ["MULLIGAN_API_KEY"]'
    return [
        *([] if key else ["import os"]),
        "from openai import OpenAI",
        f"client = OpenAI(base_url={url + '/v1'!r}, api_key={spelled_key})",
        f"answer = client.chat.completions.create(model={body['model']!r}, messages={body['messages']!r}, "
        f"extra_body={{'verifiers': {body['verifiers']!r}}})",
        "print(answer.choices[0].message.content, answer.mulligan['outcome'])",
    ]
