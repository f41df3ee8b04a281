"""A round's loop on a GPU beside plain TRL GRPO: `python -m bench.gpu`, or `--tiny` on a CPU to see that it runs.

Both do the same work on the same random weights, one after the other: reflections, a retry after each, verdicts, and
one optimiser update a step. Ours samples by an engine that serves beside the trainer (the embedded engine, or SGLang
with `--engine sglang`) and pushes the weights to it after every step; TRL generates with transformers in the trainer's
own process. Told are tokens a second of sampling and of training, seconds a step, what a swap takes (push and probe),
and the memory of each process. Figures of one run compare with each other and with nothing else.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.gpu.work import SHAPES, TINY_WORK, Work, make_model
from server.engine.launch import engine_command
from server.engine.sglang import SGLangEngine
from server.settings import EngineSettings

ROOT = Path(__file__).resolve().parents[2]
CONTEXT_TOKENS = 2048
MEASURED = ("step_s", "rollout_tokens_s", "train_tokens_s", "rollout_s", "train_s", "push_s")


@contextmanager
def serve(settings: EngineSettings, folder: Path) -> Iterator[str]:
    """Start the engine as the supervisor does, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv, environment = engine_command(settings, port)
    with (folder / "engine.log").open("w") as log:
        engine = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
    try:
        if not asyncio.run(_wait_until_ready(f"http://127.0.0.1:{port}", engine, settings.start_timeout_s)):
            raise SystemExit(f"the engine did not start:\n{(folder / 'engine.log').read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)
        engine.wait(30)


async def _wait_until_ready(url: str, process: subprocess.Popen[bytes], within_s: float) -> bool:
    client, deadline = SGLangEngine(url), time.monotonic() + within_s
    try:
        while not await client.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.3)
        return True
    finally:
        await client.close()


def run_side(module: str, *arguments: str) -> dict[str, Any]:
    """Run one side in a process of its own, so that its memory is its own; give what it tells."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *arguments],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=False,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{module} failed (exit {done.returncode}): what it said stands above")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(side: dict[str, Any]) -> dict[str, float]:
    """Add a side's steps up: tokens a second over all of them, seconds as means."""
    rows = side["steps"]
    total = {name: sum(row.get(name, 0.0) for row in rows) for name in {name for row in rows for name in row}}
    told = {
        "rollout_tokens_s": total["rollout_tokens"] / total["rollout_s"],
        "train_tokens_s": total["trained_tokens"] / total["train_s"],
        "step_s": sum(total.get(name, 0.0) for name in ("rollout_s", "train_s", "push_s")) / len(rows),
    }
    return told | {name: value / len(rows) for name, value in total.items()}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the model, and let both sides do the work."""
    import torch  # noqa: PLC0415 -- takes seconds, and --help needs none of it

    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    half = device == "cuda"
    told: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if half else "cpu",
        "shape": options.shape,
        "engine": options.engine,
        "weights": make_model(options.shape, folder / "model", half=half),
    }
    work = TINY_WORK if options.tiny else replace(Work(), steps=options.steps, microbatch=options.microbatch)
    work.save(folder / "work.json")
    settings = EngineSettings(
        kind=options.engine,
        model=str(folder / "model"),
        device=device,
        dtype="bfloat16" if half else "float32",
        context_tokens=CONTEXT_TOKENS,
        max_running_requests=work.concurrency,
        colocate=half,
        **({"sglang_python": options.sglang_python} if options.sglang_python else {}),
    )
    side = str(folder / "work.json"), str(folder / "model")
    sides: dict[str, Any] = {}
    if options.only != "plain":
        with serve(settings, folder) as url:
            sides["mulligan"] = run_side("bench.gpu.ours", *side, url, device, str(folder / "ours"))
    if options.only != "mulligan":
        sides["plain TRL"] = run_side("bench.gpu.plain", *side, device, str(folder / "plain"))
    told["sides"] = {name: {**summarise(one), **one["memory"]} for name, one in sides.items()}
    if "mulligan" in sides:
        told["swap"] = sides["mulligan"]["swap"]
    return told


def print_report(told: dict[str, Any]) -> None:
    """Print the table."""
    sides = told["sides"]
    names = [*MEASURED, *sorted({name for one in sides.values() for name in one if name.endswith("_mib")})]
    title = f"{told['shape']}, {told['weights']:,} random weights, {told['engine']} engine, on {told['device']}"
    table = Table("", *sides, title=title)
    for name in names:
        table.add_row(name, *(f"{one[name]:,.2f}" if name in one else "" for one in sides.values()))
    console = Console()
    console.print(table)
    for name, value in told.get("swap", {}).items():
        console.print(f"swap: {name} {value:.4f}" if isinstance(value, float) else f"swap: {name} {value}")


def main() -> None:
    """Measure and print; `--json` for machines."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["local", "sglang"], default="local")
    parser.add_argument("--sglang-python", default="", help="the interpreter that has SGLang")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.5b", help="whose shape the random model has")
    parser.add_argument("--steps", type=int, default=4, help="steps that are measured, after one to warm up")
    parser.add_argument("--microbatch", type=int, default=8, help="sequences of one forward and backward pass")
    parser.add_argument("--only", choices=["mulligan", "plain"], help="one side alone")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and tiny work: is it alive?")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, though there be a GPU")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.shape = "tiny"
    with tempfile.TemporaryDirectory(prefix="mulligan-gpu-") as folder:
        told = measure(options, Path(folder))
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print_report(told)


if __name__ == "__main__":
    main()
