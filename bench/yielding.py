"""What users wait while a round samples: `python -m bench.yielding`, on the embedded engine, or `--engine sglang`.

Users are `--users` clients that ask one after the other with a pause between, on the base model; the round is
trainer.rollout's own sampler, on an adapter, with `--concurrency` requests in flight. Parts take turns in one run, so
that what else the machine does falls on all alike, and the figures are ratios to the users alone and to the rollouts
alone:

- alone: users without a round
- equal: a round whose requests have the users' priority
- yield: a round that asks below users (what is done)
- pause: a round on an engine that knows no priorities, held back on our side while users are served
- rollouts: the round without users

The optimiser, which shares a small machine's cores with the engine, is not part of it.
"""

import argparse
import asyncio
import contextvars
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.problems import problems
from server.domain import Binding, Usage
from server.engine.launch import engine_command
from server.engine.priority import ask_below_users
from server.engine.sglang import SGLangEngine
from server.orchestration.reflection import Prompts
from server.orchestration.verification import bind
from server.settings import EngineSettings
from server.store.presence import Presence
from trainer.rollout import Sampler
from trainer.samples import Failure
from trainer.settings import TrainerSettings
from trainer.yielding import Courtesy, come_second

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("alone", "equal", "yield", "pause", "rollouts")


@dataclass
class Seen:
    """What one part saw: seconds of each answer to users, and the tokens that rollouts took."""

    answers_s: list[float] = field(default_factory=list)
    rollout_tokens: int = 0
    seconds: float = 0.0

    def count(self, usage: Usage) -> None:
        """Count an answer to a rollout."""
        self.rollout_tokens += usage.completion_tokens


class Room:
    """Says who is served, as the presence table would."""

    def __init__(self) -> None:
        self.serving = 0

    async def live(self, max_age_s: float) -> list[Presence]:
        """Give the one process that there is."""
        del max_age_s
        return [Presence("bench", {}, {"": self.serving})]


async def ask_as_user(engine: SGLangEngine, room: Room, seen: Seen, rng: random.Random, pause_s: float) -> None:
    """Ask one problem after the other for ever."""
    for problem in problems("countdown", "training", rng.randrange(2**31)):
        await asyncio.sleep(rng.expovariate(1 / pause_s))
        body = {"messages": problem.messages, "temperature": 1.0, "max_completion_tokens": 32}
        room.serving += 1
        began = time.monotonic()
        try:
            await engine.complete(body, "")
        finally:
            room.serving -= 1
        seen.answers_s.append(time.monotonic() - began)


async def roll_out(sampler: Sampler, failures: list[Failure], adapter: str) -> None:
    """Sample one step after the other for ever."""
    while True:
        await sampler.sample_step(failures, adapter)


def make_failures(tokenizer: object, count: int) -> list[Failure]:
    """Make failures of the demo's kind, as a round would select them."""
    made = []
    verifiers = bind((Binding("countdown", {}, args={"numbers": [1, 2, 3], "target": 99}),))
    for number, problem in zip(range(count), problems("countdown", "training", 7), strict=False):
        told = [*problem.messages, {"role": "assistant", "content": "1 + 1"}, {"role": "user", "content": "Reflect."}]
        ids = tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=True, return_dict=False)  # type: ignore[attr-defined]
        made.append(
            Failure(
                episode_id=f"ep_{number}",
                messages=problem.messages,
                body={"temperature": 1.0, "max_completion_tokens": 32},
                failed={"role": "assistant", "content": "1 + 1"},
                reason=None,
                prompts=Prompts(),
                verifiers=verifiers,
                prompt_ids=tuple(ids),
                reflection_max_tokens=96,
            )
        )
    return made


async def run_part(part: str, engine: SGLangEngine, failures: list[Failure], options: argparse.Namespace) -> Seen:
    """Run one part for its seconds."""
    seen, room, rng = Seen(), Room(), random.Random(11)
    tasks = []
    if part != "rollouts":
        users = [random.Random(rng.random()) for _ in range(options.users)]
        tasks += [asyncio.create_task(ask_as_user(engine, room, seen, one, options.pause_s)) for one in users]
    if part != "alone":
        settings = TrainerSettings(group_size=8, concurrency=options.concurrency)
        guest = come_second(engine, seen.count, Courtesy(room) if part == "pause" else None)

        def start() -> asyncio.Task[None]:
            if part in ("yield", "rollouts"):
                ask_below_users()
            return asyncio.create_task(roll_out(Sampler(guest, settings), failures, "bench@1.0-000000"))

        tasks.append(contextvars.copy_context().run(start))
    await asyncio.sleep(options.warm_s)
    seen.answers_s.clear()
    seen.rollout_tokens, began = 0, time.monotonic()
    await asyncio.wait(tasks, timeout=options.part_s, return_when=asyncio.FIRST_COMPLETED)
    seen.seconds = time.monotonic() - began
    done = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()  # none ends by itself but by an error
    return seen


async def run_parts(url: str, adapter: Path, tokenizer: object, options: argparse.Namespace) -> dict[str, Seen]:
    """Run all parts, again and again in turn, and add up what each saw."""
    engine = SGLangEngine(url)
    total = {part: Seen() for part in PARTS}
    try:
        while not await engine.ready():  # noqa: ASYNC110 -- it starts in another process
            await asyncio.sleep(0.5)
        await engine.load_adapter("bench@1.0-000000", str(adapter))
        failures = make_failures(tokenizer, 8)
        for _ in range(options.rounds):
            for part in PARTS:
                seen = await run_part(part, engine, failures, options)
                total[part].answers_s += seen.answers_s
                total[part].rollout_tokens += seen.rollout_tokens
                total[part].seconds += seen.seconds
    finally:
        await engine.close()
    return total


def report(total: dict[str, Seen]) -> list[dict[str, float | str]]:
    """Put what was seen into ratios."""
    alone = statistics.median(total["alone"].answers_s)
    free = total["rollouts"].rollout_tokens / total["rollouts"].seconds
    rows: list[dict[str, float | str]] = []
    for part, seen in total.items():
        row: dict[str, float | str] = {"part": part}
        if seen.answers_s:
            p50, p95 = statistics.median(seen.answers_s), statistics.quantiles(seen.answers_s, n=20)[-1]
            row |= {"answers": len(seen.answers_s), "p50_ms": p50 * 1e3, "p95_ms": p95 * 1e3, "p50_ratio": p50 / alone}
        if part != "alone":
            rate = seen.rollout_tokens / seen.seconds
            row |= {"rollout_tokens_s": rate, "rollout_share": rate / free}
        rows.append(row)
    return rows


def serve(kind: str, folder: Path, work: Callable[[str, Path, object], Awaitable[dict[str, Seen]]]) -> dict[str, Seen]:
    """Start the engine and make the adapter, work with them, and stop it."""
    from trainer.lora import open_model, write_adapter  # noqa: PLC0415 -- torch takes seconds

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = EngineSettings(kind=kind, device="cpu", threads=1)  # type: ignore[arg-type]
    argv, environment = engine_command(settings, port)
    with (folder / "engine.log").open("w") as log:
        engine = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
    try:
        model, tokenizer = open_model(
            settings.model, None, settings.lora_target_modules, TrainerSettings(lora_rank=8, lora_alpha=16)
        )
        write_adapter(model, folder / "bench@1.0-000000")
        return asyncio.run(work(f"http://127.0.0.1:{port}", folder / "bench@1.0-000000", tokenizer))  # type: ignore[arg-type]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)
        engine.wait(20)


def main() -> None:
    """Measure and print the table; `--json` for machines."""
    parser = argparse.ArgumentParser(prog="python -m bench.yielding", description=__doc__)
    parser.add_argument("--engine", choices=["local", "sglang"], default="local")
    parser.add_argument("--users", type=int, default=4, help="clients that ask one after the other")
    parser.add_argument("--pause-s", type=float, default=0.5, help="mean pause of a client between two requests")
    parser.add_argument("--concurrency", type=int, default=64, help="requests of the round in flight")
    parser.add_argument("--part-s", type=float, default=6.0, help="seconds of each part")
    parser.add_argument("--warm-s", type=float, default=1.5, help="seconds before a part counts")
    parser.add_argument("--rounds", type=int, default=3, help="how often the parts take turns")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    async def work(url: str, adapter: Path, tokenizer: object) -> dict[str, Seen]:
        return await run_parts(url, adapter, tokenizer, options)

    with tempfile.TemporaryDirectory(prefix="mulligan-yielding-") as folder:
        rows = report(serve(options.engine, Path(folder), work))
    if options.json:
        json.dump(rows, sys.stdout, indent=2)
        return
    columns = ("part", "answers", "p50_ms", "p95_ms", "p50_ratio", "rollout_tokens_s", "rollout_share")
    table = Table(*columns, title=f"{options.engine}: {options.users} users, {options.concurrency} rollouts in flight")
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
