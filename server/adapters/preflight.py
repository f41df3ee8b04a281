"""Checks what adapters need before one is trained or served: the engine's flags, the champions' files, room on disk.

Called by the doctor and the API's start (`server.api.preflight`) and by the trainer before a round. It reads and
compares, and says for each failure the exact flag or setting to change; it changes nothing.
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from server.adapters.files import check_files
from server.adapters.model_files import fingerprint_model
from server.domain import BASE_ADAPTER, Adapter, Check, CheckState, Task
from server.engine.inspection import EngineFacts
from server.errors import AdapterRefused
from server.settings import EngineSettings

LEAST_FREE_BYTES = 2**30
WISHED_FREE_BYTES = 5 * 2**30


def passed(name: str, says: str) -> Check:
    """Make a check that found all well."""
    return Check(name, CheckState.OK, says)


def failed(name: str, says: str, remedy: str) -> Check:
    """Make a check that found something that stops work."""
    return Check(name, CheckState.FAILED, says, remedy)


def warned(name: str, says: str, remedy: str) -> Check:
    """Make a check that found something worse than it could be."""
    return Check(name, CheckState.WARNED, says, remedy)


def check_engine(
    facts: EngineFacts, settings: EngineSettings, *, ranks: Mapping[str, int], tool_tasks: Collection[str]
) -> list[Check]:
    """Compare how an engine was started with what we train and serve.

    `ranks` are the LoRA ranks that tasks train, by task; `tool_tasks` the tasks whose answers call tools.
    """
    checks = [_check_model(facts, settings)]
    if facts.lora:
        checks += [passed("engine takes adapters", f"{facts.url} has LoRA enabled"), _check_rank(facts, ranks)]
        checks.append(_check_modules(facts, settings.lora_target_modules))
    else:
        rank = max(ranks.values(), default=settings.max_lora_rank)
        modules = " ".join(settings.lora_target_modules)
        checks.append(
            failed(
                "engine takes adapters",
                f"{facts.url} was started without LoRA: nothing that is trained could be served",
                f"start it with --enable-lora --max-lora-rank {rank} --lora-target-modules {modules}",
            )
        )
    return [*checks, _check_parser(facts, settings, tool_tasks)]


def _check_model(facts: EngineFacts, settings: EngineSettings) -> Check:
    name = "engine serves our model"
    ours, theirs = settings.model, facts.model_path
    if ours == theirs or (Path(ours).exists() and Path(theirs).exists() and Path(ours).samefile(theirs)):
        return passed(name, theirs)
    told = f"{facts.url} serves {theirs}, the trainer trains {ours}"
    remedy = f"start the engine with --model-path {ours}, or set MULLIGAN_ENGINE__MODEL={theirs}"
    prints = fingerprint_model(ours), fingerprint_model(theirs)
    if None in prints:
        return warned(name, f"{told}; they cannot be compared from here, a round does it before it trains", remedy)
    if prints[0] == prints[1]:
        return passed(name, f"{told}: the same files ({prints[0]})")
    return failed(name, f"{told}: other weights ({prints[1]} and {prints[0]})", remedy)


def _check_rank(facts: EngineFacts, ranks: Mapping[str, int]) -> Check:
    name = "engine's LoRA rank"
    if facts.max_lora_rank is None:
        return Check(name, CheckState.SKIPPED, f"{facts.url} does not tell it")
    above = {task: rank for task, rank in ranks.items() if rank > facts.max_lora_rank}
    if not above:
        return passed(name, f"{facts.max_lora_rank}, trained are {max(ranks.values(), default=0)} at most")
    tasks = ", ".join(f"{task} trains {rank}" for task, rank in sorted(above.items()))
    most = max(above.values())
    return failed(
        name,
        f"{facts.url} takes adapters of rank {facts.max_lora_rank} at most; {tasks}",
        f"start it with --max-lora-rank {most} (MULLIGAN_ENGINE__MAX_LORA_RANK={most} where `mulligan` starts it), "
        f"or lower MULLIGAN_TRAINER__LORA_RANK or the tasks' option lora_rank to {facts.max_lora_rank}",
    )


def _check_modules(facts: EngineFacts, wanted: Sequence[str]) -> Check:
    name = "engine's LoRA modules"
    missing = [] if facts.target_modules is None else [one for one in wanted if one not in facts.target_modules]
    if not missing:
        return passed(name, "any" if facts.target_modules is None else ", ".join(sorted(facts.target_modules)))
    return failed(
        name,
        f"{facts.url} does not adapt {', '.join(missing)}, which are trained",
        f"start it with --lora-target-modules {' '.join(wanted)}, or leave them out of "
        "MULLIGAN_ENGINE__LORA_TARGET_MODULES",
    )


def _check_parser(facts: EngineFacts, settings: EngineSettings, tool_tasks: Collection[str]) -> Check:
    name = "engine reads tool calls"
    if facts.tool_call_parser:
        return passed(name, facts.tool_call_parser)
    if not tool_tasks:
        return Check(name, CheckState.SKIPPED, f"{facts.url} has no --tool-call-parser, and no task uses tools")
    tasks = ", ".join(sorted(tool_tasks))
    return failed(
        name,
        f"{facts.url} was started without a tool-call parser, so calls come as text; tools are used by {tasks}",
        f"start it with --tool-call-parser {settings.tool_call_parser} (the one of your model's format)",
    )


def check_champions(tasks: Sequence[Task], adapters: Mapping[str, Adapter]) -> list[Check]:
    """Compare the files of every champion with the hashes in the database. Reads them whole: use a thread."""
    champions = sorted({task.champion for task in tasks} - {BASE_ADAPTER})
    broken = {name: why for name in champions if (why := find_damage(name, adapters.get(name)))}
    if not broken:
        return [passed("champions' files", f"{len(champions)} as they were saved" if champions else "no champion yet")]
    owners = {task.champion: task.name for task in tasks}
    return [
        failed(
            "champions' files",
            why,
            f"put the files of {name} back from a backup, or `mulligan adapters rollback {owners[name]}`",
        )
        for name, why in broken.items()
    ]


def find_damage(name: str, adapter: Adapter | None) -> str:
    """Say what is wrong with an adapter's files; "" where nothing is."""
    if adapter is None:
        return f"the champion {name} is not in the database"
    try:
        check_files(adapter)
    except (AdapterRefused, OSError) as error:
        return str(error)
    return ""


def check_disk(folders: Mapping[str, Path]) -> list[Check]:
    """Check that there is room where adapters and rounds are written. Each disk is told once."""
    seen: dict[int, Check] = {}
    for what, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        device = there.stat().st_dev
        if device in seen:
            continue
        free = shutil.disk_usage(there).free
        says = f"{free / 2**30:.1f} GiB free for {what} at {folder}"
        remedy = "free some, or move the data folder with MULLIGAN_DATA_DIR (--data-dir)"
        if free < LEAST_FREE_BYTES:
            seen[device] = failed("disk", says, remedy)
        elif free < WISHED_FREE_BYTES:
            seen[device] = warned("disk", says, remedy)
        else:
            seen[device] = passed("disk", says)
    return list(seen.values())


def explain_refusal(error: AdapterRefused, folder: Path, url: str) -> tuple[str, str]:
    """Say why an engine did not load an adapter that was just written, and what to change."""
    said = str(error)
    lowered = said.lower()
    if "rank" in lowered:
        return f"{url} refuses the adapter's rank: {said}", "start the engine with a higher --max-lora-rank"
    if "target" in lowered and "module" in lowered:
        remedy = "start the engine with --lora-target-modules for all that is trained"
        return f"{url} refuses the adapter's modules: {said}", remedy
    if "not enabled" in lowered or "enable-lora" in lowered or "enable_lora" in lowered:
        return f"{url} was started without LoRA: {said}", "start the engine with --enable-lora"
    remedy = (
        f"mount the folder {folder} of the worker's machine at the same path on the engine's (a shared volume, "
        f"readable by the engine's user), or let both use one that is: MULLIGAN_DATA_DIR"
    )
    return f"{url} cannot read what the trainer writes to {folder}: {said}", remedy
