"""Looks, with the trainer's own eyes, whether what it makes can be served: `python -m trainer.preflight`.

Run by the worker's job when the doctor asks for it, and by every round before it trains. It needs the tokenizer and the
folders of the worker's machine, which the server never opens: the tokenizer and the chat template are compared with
the engine's, a probe adapter is written where rounds write and loaded from there, and a round also compares what the
base model itself says. It leaves nothing behind, in the engine or on disk.
"""

import argparse
import asyncio
import json
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.adapters.model_files import fingerprint_model
from server.adapters.preflight import check_disk, check_engine, explain_refusal, failed, passed
from server.domain import BASE_ADAPTER, Check, CheckState, Task
from server.engine.inspection import describe_failure, inspect_engine, tokenize_texts
from server.engine.sglang import SGLangEngine
from server.errors import AdapterRefused, MulliganError
from server.orchestration.fingerprints import (
    BASE_MODEL,
    CHAT_TEMPLATE,
    PROBE_CONVERSATIONS,
    PROBE_TEXTS,
    REFLECTION_TEMPLATE,
    TOKENIZER,
    hash_template,
    hash_tokens,
)
from server.settings import Settings
from server.store.database import Database
from server.store.tasks import TaskStore
from trainer.errors import RoundFailed
from trainer.settings import TrainerSettings
from trainer.spreading import SpreadRefused, read_spread

ENGINE_TOKENS = 16
_GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "max_new_tokens": ENGINE_TOKENS}


def take_fingerprints(model_path: str, tokenizer: Any) -> dict[str, str]:
    """Take the fingerprints of the trainer's own model folder."""
    prints = {TOKENIZER: hash_tokens(_tokenize(tokenizer)), CHAT_TEMPLATE: hash_tokens(_render(tokenizer))}
    weights = fingerprint_model(_find_folder(model_path))
    return prints if weights is None else {**prints, BASE_MODEL: weights}


def take_all_fingerprints(model_path: str, tokenizer: Any, task: Task) -> dict[str, str]:
    """Take those that an adapter of `task` is saved with: the model's, and the task's prompts."""
    return {**take_fingerprints(model_path, tokenizer), REFLECTION_TEMPLATE: hash_template(task)}


def _find_folder(model_path: str) -> str:
    """Find the folder of a model that is named by its id; the name itself where it is not here."""
    if Path(model_path).is_dir():
        return model_path
    from transformers.utils.hub import cached_file  # noqa: PLC0415 -- seconds to import

    with suppress(OSError, ValueError):
        found = cached_file(model_path, "config.json", local_files_only=True)
        return str(Path(found).parent) if found else model_path
    return model_path


def _tokenize(tokenizer: Any) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False) for text in PROBE_TEXTS]


def _render(tokenizer: Any) -> list[list[int]]:
    return [
        list(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )
        for messages in PROBE_CONVERSATIONS
    ]


async def check_tokens(url: str, tokenizer: Any, model_path: str) -> list[Check]:
    """Compare an engine's tokenizer and chat template with ours, by what they make of fixed texts."""
    names = "engine has our tokenizer", "engine has our chat template"
    try:
        texts, chats = await tokenize_texts(url, PROBE_TEXTS, PROBE_CONVERSATIONS)
    except MulliganError as error:
        return [failed(names[0], describe_failure(url, error), "see the engine's log")]
    remedies = (
        f"start the engine with --model-path (and --tokenizer-path) {model_path}",
        f"start the engine without --chat-template, or with the template of {model_path}",
    )
    checks = []
    for name, theirs, ours, remedy in zip(
        names, (texts, chats), (_tokenize(tokenizer), _render(tokenizer)), remedies, strict=True
    ):
        prints = hash_tokens(theirs), hash_tokens(ours)
        if prints[0] == prints[1]:
            checks.append(passed(name, f"{url}: {prints[0]}"))
            continue
        if checks and checks[0].state is CheckState.FAILED:
            checks.append(Check(name, CheckState.SKIPPED, "cannot be compared with another tokenizer"))
            continue
        where = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if list(a) != list(b))
        told = f"{url} makes {len(theirs[where])} tokens of probe {where + 1}, the trainer {len(ours[where])}"
        checks.append(failed(name, f"{told}: other ones ({prints[0]} and {prints[1]})", remedy))
    return checks


async def check_shared_folder(url: str, settings: Settings, options: TrainerSettings) -> Check:
    """Write an adapter where rounds write, let the engine load it and answer with it, and take it back."""
    from trainer.lora import write_probe_adapter  # noqa: PLC0415 -- torch

    name = "engine reads the trainer's folder"
    adapter = f"preflight@0.0-{secrets.token_hex(3)}"
    folder = settings.rounds_dir / "preflight" / adapter
    engine = SGLangEngine(url, model_name=settings.engine.model_name, timeout_s=60)
    try:
        model, targets = settings.engine.model, settings.engine.lora_target_modules
        await asyncio.to_thread(write_probe_adapter, model, targets, options, folder)
        await engine.load_adapter(adapter, str(folder))
        try:
            await engine.complete_ids([1, 2, 3], adapter, {**_GREEDY, "max_new_tokens": 1})
        finally:
            await engine.unload_adapter(adapter)
        return passed(name, f"{url} loaded a probe adapter from {folder.parent} and answered with it")
    except AdapterRefused as error:
        return failed(name, *explain_refusal(error, settings.data_dir, url))
    except OSError as error:
        return failed(name, f"the trainer cannot write to {folder}: {error}", "let the worker's user write there")
    except MulliganError as error:
        return failed(name, describe_failure(url, error), "see the engine's log")
    finally:
        await engine.close()
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def check_weights(url: str, settings: Settings, model: Any, tokenizer: Any) -> Check:
    """Compare what the engine's base model says of a fixed conversation with what ours says of the same tokens."""
    import torch  # noqa: PLC0415 -- seconds to import

    from trainer.lora import HALF_TOLERANCE, TOLERANCE, score_base  # noqa: PLC0415

    name = "engine has our weights"
    engine = SGLangEngine(url, model_name=settings.engine.model_name, timeout_s=60)
    prompt = _render(tokenizer)[0]
    try:
        answer = await engine.complete_ids(prompt, BASE_ADAPTER, _GREEDY)
    except MulliganError as error:
        return failed(name, describe_failure(url, error), "see the engine's log")
    finally:
        await engine.close()
    if not answer.token_ids:
        return Check(name, CheckState.SKIPPED, f"{url} said nothing")
    ours = await asyncio.to_thread(score_base, model, prompt, answer.token_ids)
    exact = next(model.parameters()).dtype is torch.float32 and settings.engine.dtype == "float32"
    tolerance = TOLERANCE[torch.float32] if exact else HALF_TOLERANCE
    gap = sum(abs(a - b) for a, b in zip(ours, answer.logprobs, strict=True)) / len(ours)
    says = f"{url} differs by {gap:.4f} nats a token from the trainer's base model, {tolerance:g} are allowed"
    if gap <= tolerance:
        return passed(name, says)
    return failed(name, says, f"start the engine with --model-path {settings.engine.model}, of the same revision")


async def examine_round(
    settings: Settings, options: TrainerSettings, task: Task, model: Any, tokenizer: Any
) -> list[Check]:
    """Check all that a round needs of its engines, but for the folder: its first push is the proof of that one."""
    checks = []
    for url in settings.engine.every_url:
        try:
            facts = await inspect_engine(url)
        except MulliganError as error:
            checks.append(failed("engine answers", describe_failure(url, error), "start it, or name another"))
            continue
        ranks = {task.name: options.lora_rank}
        checks += check_engine(facts, settings.engine, ranks=ranks, tool_tasks=())
        checks += await check_tokens(url, tokenizer, settings.engine.model)
        checks.append(await check_weights(url, settings, model, tokenizer))
    return [*checks, *check_disk({"rounds": settings.rounds_dir})]


async def refuse_unfit(settings: Settings, options: TrainerSettings, task: Task, model: Any, tokenizer: Any) -> None:
    """Let a round begin only where what it makes can be served. Raises: RoundFailed with every reason and remedy."""
    checks = await examine_round(settings, options, task, model, tokenizer)
    if bad := [check for check in checks if check.state is CheckState.FAILED]:
        said = "; ".join(f"{check.says}: {check.remedy}" for check in bad)
        raise RoundFailed(f"the preflight failed (`mulligan doctor` shows all of it): {said}")


def check_spread(options: TrainerSettings) -> list[Check]:
    """Check accelerate's config, and that there is a GPU for each process; nothing where one process trains."""
    name = "several GPUs"
    try:
        spread = read_spread(options.accelerate_config)
    except SpreadRefused as error:
        return [failed(name, error.says, error.remedy)]
    if spread is None:
        return []
    if options.device == "cpu":
        return [passed(name, f"{spread.processes} processes, which compute on the CPU (device is cpu)")]
    import torch  # noqa: PLC0415 -- seconds to import

    there, says = torch.cuda.device_count(), f"{spread.processes} processes, {torch.cuda.device_count()} visible GPUs"
    if there < spread.processes:
        return [failed(name, says, f"lower num_processes in {spread.config}, or let the worker see more GPUs")]
    return [passed(name, f"{says}, data parallel")]


async def examine(settings: Settings, options: TrainerSettings) -> list[Check]:
    """Check all that can be looked at without the model's weights; fingerprints stand in a check of their own."""
    try:
        tokenizer = await asyncio.to_thread(open_tokenizer, settings.engine.model)
    except RoundFailed as error:
        remedy = "name a folder that the worker can read, or an id: MULLIGAN_ENGINE__MODEL"
        return [failed("trainer's model", str(error), remedy)]
    prints = await asyncio.to_thread(take_fingerprints, settings.engine.model, tokenizer)
    checks = [passed("trainer's model", json.dumps({"path": settings.engine.model, **prints}))]
    most = options.model_copy(update={"lora_rank": max((await _read_ranks(settings, options)).values())})
    for url in settings.engine.every_url:
        try:
            facts = await inspect_engine(url)
        except MulliganError as error:
            checks.append(failed("engine answers", describe_failure(url, error), "start it, or name another"))
            continue
        checks += await check_tokens(url, tokenizer, settings.engine.model)
        if facts.lora:
            checks.append(await check_shared_folder(url, settings, most))
    return [*checks, *check_spread(options), *check_disk({"rounds": settings.rounds_dir})]


def open_tokenizer(model_path: str) -> Any:
    """Open the tokenizer of the trainer's model. Raises: RoundFailed."""
    from transformers import AutoTokenizer  # noqa: PLC0415 -- seconds to import

    try:
        return AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError, KeyError) as error:
        raise RoundFailed(f"the trainer cannot open model {model_path}: {error}") from error


async def _read_ranks(settings: Settings, options: TrainerSettings) -> Mapping[str, int]:
    """Read the rank that each task trains; what a round alone may change is not known yet."""
    ranks = {"": options.lora_rank}
    database = Database(settings.database_url)
    try:
        with suppress(MulliganError):
            for task in await TaskStore(database).list():
                ranks[task.name] = int(task.training.options.get("lora_rank", options.lora_rank))
    finally:
        await database.close()
    return ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found, as JSON, on standard output; exit status 1 where something failed."""
    about = "Look whether what this machine's worker makes can be served; prints JSON."
    argparse.ArgumentParser(prog="python -m trainer.preflight", description=about).parse_args(argv)
    checks = asyncio.run(examine(Settings(), TrainerSettings()))
    json.dump([asdict(check) for check in checks], sys.stdout)
    return int(any(check.state is CheckState.FAILED for check in checks))


if __name__ == "__main__":
    sys.exit(main())
