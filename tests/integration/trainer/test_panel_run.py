"""The panel on a real engine: by the worker's job, which gives way to rounds, and by the command line."""

import asyncio
import json
import subprocess
import sys

import pytest

from server.domain import Adapter, AdapterStatus
from tests.fixtures.models import make_adapter
from trainer import jobs


def run_command(settings, *words: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "server.cli", "panel", *words]
    return subprocess.run(argv, env=settings.environment(), capture_output=True, timeout=120, check=False)


async def test_the_worker_asks_the_panel_between_rounds_and_the_command_shows_it(
    settings, stores, engine, task, model_path
):
    folder = make_adapter(settings.adapters_dir / "letters" / "letters@1", model_path, rank=4)
    await stores.adapters.add(Adapter("letters@1", "letters", str(folder), {}, AdapterStatus.RETIRED))
    policy = {**task.training.options, "panel_problems": 12, "panel_min_problems": 4}
    await stores.tasks.update("letters", training=type(task.training)(options=policy))
    before = (await engine.state()).adapters

    waiting = await stores.rounds.create("letters", {})
    assert await jobs.run_panel("letters", settings, lambda: False) == "a round goes first"
    await stores.rounds.request_cancel(waiting.id)
    assert await jobs.run_panel("letters", settings, lambda: False) == "asked"

    shown = await asyncio.to_thread(run_command, settings, "show", "letters", "--json")
    report = json.loads(shown.stdout)
    assert [(row["adapter"], row["n"]) for row in report["rows"]] == [("", 12), ("letters@1", 12)]
    assert report["rows"][1]["pairs"] == 12
    assert (await engine.state()).adapters == before

    told = await asyncio.to_thread(run_command, settings, "freeze", "letters", "--reason", "another year")
    assert told.stdout.decode() == "froze 12 problems as version 2\n"
    table = (await asyncio.to_thread(run_command, settings, "show", "letters")).stdout.decode()
    assert "version 2, 12 problems (another year)" in table
    assert "mulligan panel run letters" in table


async def test_a_panel_that_cannot_be_asked_says_why(settings, stores, task):
    said = await jobs.run_panel("letters", settings, lambda: False)
    assert "of the 50 held-out problems that a panel needs" in said
    refused = await asyncio.to_thread(run_command, settings, "run", "letters")
    assert refused.returncode == 1
    assert b"of the 50 held-out problems" in refused.stderr


@pytest.mark.parametrize("words", [("show", "nobody"), ("run", "nobody")])
def test_a_task_that_is_not_there_is_said(settings, words):
    refused = run_command(settings, *words)
    assert (refused.returncode, b"there is no task 'nobody'" in refused.stderr) == (1, True)
