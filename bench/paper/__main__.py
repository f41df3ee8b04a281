"""The command line: `python -m bench.paper`."""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.paper import countdown, xlam
from bench.paper.journal import Journal
from bench.paper.measure import Measured, Plan, Room, make_task, measure
from bench.paper.model import check_model, longest_context
from bench.paper.preset import PRESETS, TASKS, Chosen, list_deviations, name_prompts
from bench.paper.problems import BadInput
from bench.paper.report import build_figures, print_report
from bench.paper.split import Data, split_problems
from demo.drive.client import Client, DemoBroken
from demo.drive.display import Display
from server.cli.options import load_settings, parse_pairs
from server.cli.parts import with_engine
from server.cli.running import run_server, run_until_signal
from server.errors import MulliganError
from server.settings import Settings
from server.supervisor.first_run import make_key
from trainer.settings import TrainerSettings

DESCRIPTION = """Run the set-up of "Reflect, Retry, Reward" (arXiv 2505.24726) with a model of your own.

For each task and seed: test problems are asked of the model as it is (vanilla first, + reflection second), training
problems are asked and what fails is logged, rounds train on it, and the same test problems are asked again (trained
first, trained second). It all goes through a real server (API, worker, gate, hot swap), which this starts around the
engine that you name. The end is a table a task with the paper's rows below, and a list of what differs from it."""

EPILOG = """examples:
  python -m bench.paper --model Qwen/Qwen2.5-1.5B-Instruct --task countdown
  python -m bench.paper --model Qwen/Qwen2-1.5B-Instruct --task function_call --xlam xlam_function_calling_60k.json
  python -m bench.paper --model demo/model --engine local --preset small --task countdown      alive? A minute
  python -m bench.paper ... --seeds 0 1 2 --json figures.json                     three runs, and their mean
  python -m bench.paper ... --engine-url http://127.0.0.1:30000                   an SGLang that runs already

what you need:
  a GPU with SGLang in an environment of its own, named by MULLIGAN_ENGINE__SGLANG_PYTHON=/path/to/its/python;
  MULLIGAN_ENGINE__COLOCATE=true where engine and trainer share that one GPU; MULLIGAN_ENGINE__TOOL_CALL_PARSER=llama3
  and so on for models that do not call tools as Qwen does. `mulligan doctor` explains what a round complains of.

interrupted? The same command goes on where it stopped; everything is in --out.
bench/paper/README.md says what is measured, what differs from the paper and why."""


@dataclass(frozen=True)
class Run:
    """All that one seed needs beside its problems."""

    settings: Settings
    own_engine: bool
    chosen: Chosen
    options: Mapping[str, Any]
    data: Data
    rounds: int
    training: int
    concurrency: int
    out: Path
    plan: Mapping[str, Any]


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.paper",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder or Hugging Face id; the paper's are Instruct models of 1.5B to 8B")
    add("--task", choices=[*TASKS, "both"], default="both", help="default: both")
    add("--xlam", type=Path, metavar="FILE", help="problems of function_call, in the xlam format (JSON or JSON Lines)")
    add("--countdown", type=Path, metavar="FILE", help='rows {"target", "nums"} instead of drawn problems (JSON Lines)')
    add("--preset", choices=PRESETS, default="paper", help="sizes and settings; default: the paper's")
    add("--problems", type=_positive, metavar="N", help="test problems of each task; default: 15,000 and 12,000")
    add("--training", type=_positive, metavar="N", help="training problems of each task and seed; default: 10,000")
    add("--rounds", type=_positive, metavar="N", help="rounds of each task; default: 3")
    add("--tries", type=_positive, metavar="N", help="ask a training problem up to N times, until it fails; default: 1")
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="a whole run each; default: 0")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="of the trainer, e.g. steps=32; repeatable")
    add("--force-promotion", action="store_true", help="promote what the last gate left inconclusive, marked as forced")
    add(
        "--countdown-prompt",
        metavar="TEXT",
        help="the question, with {target} and {numbers} ([3, 5, 2]) or {listed} (3, 5 and 2)",
    )
    add("--reflect", metavar="TEXT", help="what asks for a reflection; default: the server's own wording")
    add("--retry", metavar="TEXT", help="what asks for the retry; default: the server's own wording")
    add("--engine", choices=["sglang", "local"], default="sglang", help="default: the real SGLang")
    add("--engine-url", metavar="URL", help="an engine that runs already and serves --model")
    add("--context-tokens", type=_positive, metavar="N", help="of the engine; default: 4096, or what the model reaches")
    add("--concurrency", type=_positive, default=64, metavar="N", help="problems that are asked at once; default: 64")
    add("--out", type=Path, default=Path("data/paper"), help="folder of databases, adapters, logs; default: data/paper")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def prepare(arguments: argparse.Namespace, console: Console) -> Run:
    """Check all that was given and make what a run needs. Raises: BadInput, MulliganError."""
    tasks = TASKS if arguments.task == "both" else (arguments.task,)
    if "function_call" in tasks and arguments.xlam is None:
        raise BadInput(
            "function_call needs --xlam FILE: get xlam_function_calling_60k.json from "
            "https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k, or say --task countdown"
        )
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise BadInput(f"--json: there is no folder {arguments.json.absolute().parent}")
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise BadInput("--seeds names a seed twice")
    check_model(arguments.model, tasks)
    preset = PRESETS[arguments.preset]
    preset = replace(preset, tries=arguments.tries or preset.tries)
    options = {**preset.options, **parse_pairs(arguments.option, "--option")}
    TrainerSettings().override(options)
    chosen = Chosen(
        preset=preset,
        tasks=tasks,
        engine=arguments.engine,
        problems={task: arguments.problems or preset.test[task] for task in tasks},
        reflect=arguments.reflect,
        retry=arguments.retry,
        countdown_prompt=arguments.countdown_prompt,
        countdown_file=arguments.countdown is not None,
        force=arguments.force_promotion,
    )
    prompt = arguments.countdown_prompt or countdown.PROMPT
    data = Data(
        countdown_prompt=prompt,
        countdown_file=countdown.read_file(arguments.countdown, prompt) if arguments.countdown else None,
        xlam_file=_read_xlam(arguments.xlam, console) if "function_call" in tasks else None,
    )
    settings = load_settings(note=False, port=0)
    urls = [arguments.engine_url] if arguments.engine_url else None
    settings = with_engine(settings, kind=arguments.engine, urls=urls, model=arguments.model,
                           **_choose_engine(arguments, preset.context_tokens, settings))  # fmt: skip
    rounds, training = arguments.rounds or preset.rounds, arguments.training or preset.training
    plan = {
        "model": arguments.model, "preset": preset.name, "tasks": list(tasks), "problems": chosen.problems,
        "training": training, "rounds": rounds, "tries": preset.tries, "options": options,
        "reflect": arguments.reflect, "retry": arguments.retry, "countdown_prompt": arguments.countdown_prompt,
        "xlam": str(arguments.xlam), "countdown": str(arguments.countdown), "force_promotion": chosen.force,
    }  # fmt: skip
    own = arguments.engine_url is None
    return Run(settings, own, chosen, options, data, rounds, training, arguments.concurrency, arguments.out, plan)


def _read_xlam(path: Path, console: Console) -> xlam.XlamFile:
    found = xlam.read_file(path)
    if found.left_out:
        line, reason = found.left_out[0]
        console.print(
            f"{path}: {len(found.left_out):,} records are left out, because nobody could get them right (line {line}: "
            f"{reason}); {len(found.problems):,} stay", markup=False, soft_wrap=True,
        )  # fmt: skip
    return found


def _choose_engine(arguments: argparse.Namespace, context: int, settings: Settings) -> dict[str, Any]:
    """Choose what the engine is started with, where neither an option nor the environment says it."""
    said = settings.engine.model_fields_set
    chosen: dict[str, Any] = {}
    if arguments.context_tokens or "context_tokens" not in said:
        reach = longest_context(arguments.model)
        chosen["context_tokens"] = arguments.context_tokens or min(context, reach or context)
    if "dtype" not in said:
        chosen["dtype"] = "auto"
    return chosen


async def run_seed(run: Run, seed: int, console: Console, hurried: asyncio.Event) -> list[Measured]:
    """Run one seed against a server of its own. Raises: BadInput, DemoBroken, MulliganError."""
    folder = run.out / f"seed-{seed}"
    journal = Journal(folder, {**run.plan, "seed": seed})
    if journal.resumed:
        console.print(f"seed {seed}: going on with what is in {folder}", markup=False, soft_wrap=True)
    display = Display(console)
    plans = []
    for task in run.chosen.tasks:
        with display.phase(f"{task} problems"):
            test, training = await asyncio.to_thread(
                split_problems, task, run.data, run.chosen.problems[task], run.training, seed
            )
        plans.append(
            Plan(
                task=make_task(task, run.chosen.preset, run.options),
                prompts=name_prompts(run.chosen.reflect, run.chosen.retry),
                test=test,
                training=training,
                rounds=run.rounds,
                tries=run.chosen.preset.tries,
                seed=seed,
                concurrency=run.concurrency,
                force=run.chosen.force,
            )
        )
    display.close()
    settings = load_settings(note=False, engine=run.settings.engine, port=0, data_dir=folder / "data")
    async with run_server(settings, own_engine=run.own_engine, console=console, hurried=hurried) as running:
        key = running.first_key or await make_key(running.settings, "bench.paper")
        client, display = Client(f"{running.url}/v1", key), Display(console)
        try:
            return [await measure(Room(client, journal, display), plan) for plan in plans]
        finally:
            display.close()
            await client.close()


async def run_all(
    run: Run, seeds: Sequence[int], console: Console, hurried: asyncio.Event
) -> dict[int, list[Measured]]:
    """Run one seed after another."""
    return {seed: await run_seed(run, seed, console, hurried) for seed in seeds}


def main(argv: Sequence[str] | None = None) -> int:
    """Run it: 0, 1 where something did not happen, 2 for bad input, 130 where it was interrupted."""
    arguments = build_parser().parse_args(argv)
    console, errors = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)
    try:
        run = prepare(arguments, console)
        results = run_until_signal(lambda hurried: run_all(run, arguments.seeds, console, hurried))
    except (BadInput, MulliganError) as error:
        errors.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    except DemoBroken as error:
        errors.print(f"{error}\nThe same command goes on from here.", style="red", markup=False, soft_wrap=True)
        return 1
    if results is None:
        errors.print("interrupted; the same command goes on from here", markup=False)
        return 130
    figures = build_figures(arguments.model, results, list_deviations(run.chosen, run.options), run.plan)
    print_report(console, figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
        console.print(f"figures in {arguments.json}", markup=False, soft_wrap=True)
    return 1 if any(one.failed for measured in results.values() for one in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
