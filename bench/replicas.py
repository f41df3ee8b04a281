"""What choosing a replica costs a request: one engine asked directly, as a list of one, and as a list of three.

The engine answers at once from memory, so that nothing else is in the figure; beside it stands the cheapest request
there is, one over loopback HTTP to a server that does nothing. `python bench/replicas.py --help` teaches.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, cast

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from server.domain import Usage
from server.engine.base import Completion, Engine
from server.engine.replicas import Replicas
from server.engine.upstream import Upstream

ANSWER = Completion({"role": "assistant", "content": "yes"}, "stop", Usage(10, 1))
CHUNKS = 16
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Instant:
    """An engine that answers at once."""

    async def complete(self, body: Any, adapter: str, *, with_tokens: bool = False) -> Completion:
        """Answer."""
        return ANSWER

    async def stream(self, body: Any, adapter: str) -> Any:
        """Answer in chunks."""
        for _ in range(CHUNKS):
            yield b"{}"


def make_body(number: int) -> dict[str, Any]:
    """Make a request with a system prompt and a question of its own."""
    return {
        "messages": [{"role": "system", "content": "be kind " * 50}, {"role": "user", "content": f"{number} " * 40}]
    }


async def time_each(ask: Callable[[Any], Awaitable[object]], bodies: list[Any]) -> float:
    """Time one request after the other; microseconds of CPU each."""
    begun = time.process_time()
    for body in bodies:
        await ask(body)
    return 1e6 * (time.process_time() - begun) / len(bodies)


async def read_all(events: Any) -> None:
    """Read a stream to its end."""
    async for _ in events:
        pass


async def serve_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request with two bytes."""
    with suppress(asyncio.IncompleteReadError):  # the client is done
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(REPLY)
    writer.close()


async def measure(requests: int, rounds: int) -> dict[str, float]:
    """Measure everything in turns; microseconds of CPU a request, the median of the rounds."""
    engines = [cast(Engine, Instant()) for _ in range(3)]
    direct = engines[0]
    one, three = Replicas({"one": direct}), Replicas({str(index): engine for index, engine in enumerate(engines)})
    server = await asyncio.start_server(serve_nothing, "127.0.0.1", 0)
    upstream = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=10)
    ways: dict[str, Callable[[Any], Awaitable[object]]] = {
        "whole: asked directly": lambda body: direct.complete(body, ""),
        "whole: a list of one": lambda body: one.complete(body, ""),
        "whole: a list of three": lambda body: three.complete(body, ""),
        f"stream of {CHUNKS}: asked directly": lambda body: read_all(direct.stream(body, "")),
        f"stream of {CHUNKS}: a list of one": lambda body: read_all(one.stream(body, "")),
        f"stream of {CHUNKS}: a list of three": lambda body: read_all(three.stream(body, "")),
        "beside it: one empty HTTP request": lambda _: upstream.exchange("GET", "/"),
    }
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        bodies = [make_body(number) for number in range(requests)]
        for name, ask in ways.items():
            seen[name].append(await time_each(ask, bodies))
    await upstream.close()
    await asyncio.sleep(0.05)
    server.close()
    return {name: median(values) for name, values in seen.items()}


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3000, help="a round; default 3000")
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.requests, arguments.rounds))
    table = Table(title="CPU-us a request, and the ratio to asking directly", title_justify="left")
    for column in ("request", "CPU us", "ratio", "added us"):
        table.add_column(column, justify="left" if column == "request" else "right")
    for name, value in figures.items():
        base = figures.get(f"{name.partition(':')[0]}: asked directly", value)
        table.add_row(name, f"{value:.2f}", f"{value / base:.2f}", f"{value - base:.2f}")
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
