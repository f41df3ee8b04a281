"""The frozen panel: what it holds, what it asks, and that neither traffic nor verifiers can pass for learning."""

import asyncio
import dataclasses
import json
import time
from pathlib import Path

import pytest
from sqlalchemy import update

from server.domain import (
    Adapter,
    AdapterStatus,
    Attempt,
    Binding,
    Episode,
    Outcome,
    Panel,
    PanelResult,
    RetryPolicy,
    Task,
    TaskVerifier,
    Usage,
    VerifyMode,
    new_id,
)
from server.errors import AdapterMissing, Conflict, InvalidRequest
from server.orchestration.panel import compare_pairs, read_panel, report_panel
from server.settings import LogSettings, RoundSizes
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.panels import PanelStore
from server.store.tables import panel_problems
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from server.store.withdrawals import Withdrawals
from tests.fixtures.engines import ScriptedEngine
from trainer.jobs import find_due_panels
from trainer.panel import freeze_panel, run_panel
from trainer.settings import TrainerSettings

OPTIONS = TrainerSettings(panel_problems=20, panel_min_problems=10, panel_concurrency=4)
STRICT = {"pattern": "^right$"}
TASK = Task("sums", verifiers=(TaskVerifier("check", 1),))


class KnowingEngine(ScriptedEngine):
    """Answers a problem right by its number and by the file of the adapter that is asked; counts the loads."""

    def __init__(self, knows: dict[str, set[int]]) -> None:
        super().__init__([self._answer])
        self.knows = knows  # folder's name ("" = base) -> the problems that it can do
        self.most_loaded = 0

    def _answer(self, body, adapter):
        if adapter and adapter not in self.adapters:
            raise AdapterMissing(adapter)
        folder = Path(self.adapters[adapter]).name if adapter else ""
        number = int(body["messages"][0]["content"].split()[-1])
        return "right" if number in self.knows[folder] else "wrong"

    async def load_adapter(self, name: str, path: str) -> None:
        await super().load_adapter(name, path)
        self.most_loaded = max(self.most_loaded, len(self.adapters))


async def log_problems(database: Database, tmp_path: Path, numbers: range, *, version: int = 1, pattern=None) -> None:
    """Log held-out episodes of these numbers, judged by a version of the verifier."""
    log = EpisodeLog(database, LogSettings(), tmp_path / "spool")
    await log.start()
    check = Binding("regex", pattern or STRICT, "check", version)
    for number in numbers:
        messages = [{"role": "user", "content": f"Problem {number}"}]
        tried = Attempt(1, {"content": "wrong"}, "stop", Usage(5, 2), "failed", sampling={"temperature": 1.0})
        episode = Episode(
            new_id("ep"), "sums", "sums", "base", "", "key", {"messages": messages}, (check,), VerifyMode.ENFORCE,
            RetryPolicy(), outcome=Outcome.EXHAUSTED, attempts=[tried], created_at=time.time(), split="held_out",
        )  # fmt: skip
        await log.record(episode)
    await log.stop()


async def add_champion(database: Database, tmp_path: Path, name: str, status=AdapterStatus.CHAMPION) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(name.encode())
    await AdapterStore(database).add(Adapter(name, "sums", str(folder), {}, status))
    task = await TaskStore(database).get("sums")
    await TaskStore(database).flip_champion("sums", name, expected_generation=task.generation)


async def ask(database: Database, engine, conditions: str = "here") -> Panel:
    task = await TaskStore(database).get("sums")
    return await run_panel(task, database, engine, OPTIONS, conditions=conditions, say=lambda _words: None)


@pytest.fixture
async def there(database: Database, tmp_path: Path) -> Database:
    await VerifierStore(database).add("check", "regex", STRICT)
    await TaskStore(database).create(TASK)
    await log_problems(database, tmp_path, range(20))
    return database


async def test_base_and_every_champion_are_asked_once_and_compared_problem_by_problem(there, tmp_path):
    await add_champion(there, tmp_path, "sums@1", AdapterStatus.RETIRED)
    await add_champion(there, tmp_path, "sums@2")
    engine = KnowingEngine({"": set(range(8)), "sums@1": set(range(6)), "sums@2": set(range(2, 16))})
    engine.adapters["sums@2"] = str(tmp_path / "sums@2")  # it serves
    await ask(there, engine)
    report = await read_panel("sums", there)
    base, first, second = report.rows
    assert (base.adapter, base.n, base.second_try, base.difference) == ("", 20, 0.4, None)
    assert (first.adapter, first.status, first.fixed, first.broken, first.difference) == (
        "sums@1",
        "retired",
        0,
        2,
        -0.1,
    )
    assert (second.fixed, second.broken, second.pairs) == (8, 2, 20)
    low, high = second.difference_ci95
    assert low < 0.3 < high
    assert second.says == (
        f"+30.0 points [{low * 100:.1f}, {high * 100:.1f}] against base on the frozen panel, n = 20; 8 fixed, 2 broken"
    )
    assert second.tokens_per_passed == pytest.approx(sum(
        one.tokens for one in await PanelStore(there).list_results(report.panel) if one.adapter == "sums@2"
    ) / 14)  # fmt: skip
    assert engine.adapters == {"sums@2": str(tmp_path / "sums@2")}  # what it loaded is gone, what serves is not
    assert engine.most_loaded == 2
    asked = len(engine.calls)
    await ask(there, engine)
    assert len(engine.calls) == asked  # nothing twice


async def test_other_traffic_cannot_pass_for_learning(there, tmp_path):
    engine = KnowingEngine({"": set(range(8)), "sums@1": set(range(8))})
    engine.knows = {name: known | set(range(100, 200)) for name, known in engine.knows.items()}
    panel = await ask(there, engine)
    await log_problems(there, tmp_path, range(100, 200))  # easy ones: both solve them all
    await add_champion(there, tmp_path, "sums@1")
    assert (await ask(there, engine)) == panel
    base, champion = (await read_panel("sums", there)).rows
    assert (champion.difference, champion.second_try, base.second_try) == (0.0, 0.4, 0.4)
    assert (champion.fixed, champion.broken) == (0, 0)


async def test_another_version_of_a_verifier_cannot_pass_for_learning(there, tmp_path):
    engine = KnowingEngine({"": set(range(8)), "sums@1": set(range(8))})
    panel = await ask(there, engine)
    lenient = {"pattern": "right|wrong"}
    await VerifierStore(there).add("check", "regex", lenient)
    await TaskStore(there).update("sums", verifiers=(TaskVerifier("check", 2),))
    await log_problems(there, tmp_path, range(20), version=2, pattern=lenient)  # the very same problems, judged anew
    await add_champion(there, tmp_path, "sums@1")
    assert (await ask(there, engine)) == panel
    base, champion = (await read_panel("sums", there)).rows
    assert (champion.second_try, champion.difference) == (base.second_try, 0.0)


async def test_a_revoked_verifier_makes_a_new_version_that_everybody_is_asked(there, tmp_path):
    engine = KnowingEngine({"": set(range(8)), "sums@1": set(range(12))})
    await add_champion(there, tmp_path, "sums@1")
    old = await ask(there, engine)
    await VerifierStore(there).add("check", "regex", {"pattern": "^right$", "ignore_case": True})
    await log_problems(there, tmp_path, range(20, 40), version=2)
    await Withdrawals(there).revoke("check", 1, "it passes too much")
    engine.knows = {"": set(range(20, 30)), "sums@1": set(range(20, 35))}
    new = await ask(there, engine)
    assert (old.version, new.version, new.reason) == (1, 2, "revoked: check@1")
    report = await read_panel("sums", there)
    assert [row.second_try for row in report.rows] == [0.5, 0.75]
    assert all(pin == ("check@2",) for pin in {one.pins for one in await PanelStore(there).read_problems(new)})
    assert {one.adapter for one in await PanelStore(there).list_results(old)} == {"", "sums@1"}  # history stays


async def test_what_answered_under_another_model_is_not_compared(there, tmp_path):
    engine = KnowingEngine({"": set(range(8)), "sums@1": set(range(12))})
    await add_champion(there, tmp_path, "sums@1")
    panel = await ask(there, engine)
    results = await PanelStore(there).list_results(panel)
    other = [dataclasses.replace(one, conditions="another model") for one in results if one.adapter == ""]
    await PanelStore(there).add_results(panel, other)
    (_, champion) = (await read_panel("sums", there)).rows
    assert (champion.difference, champion.pairs) == (None, 0)
    assert "mulligan panel run sums" in champion.says
    await ask(there, engine, "here")  # asks the base again, and only the base
    (_, champion) = (await read_panel("sums", there)).rows
    assert champion.difference == pytest.approx(0.2)


async def test_an_altered_panel_is_refused_and_an_erased_problem_asks_for_a_new_one(there):
    engine = KnowingEngine({"": set(range(8))})
    panel = await ask(there, engine)
    (first, *_) = await PanelStore(there).read_problems(panel)
    altered = {**first.content, "prompts": {"reflect": "Be lenient."}}
    async with there.write() as connection:
        place = (panel_problems.c.task == "sums") & (panel_problems.c.number == first.number)
        await connection.execute(update(panel_problems).where(place).values(content=altered))
    with pytest.raises(Conflict, match=r"Problem 1 of the panel .* was altered: `mulligan panel freeze sums`"):
        await ask(there, engine)
    async with there.write() as connection:
        await connection.execute(update(panel_problems).where(place).values(content=None))
    again = await ask(there, engine)
    assert (again.version, again.reason) == (2, "1 problems were erased")


async def test_the_log_may_forget_a_panels_episodes(there, database):
    from server.store.tables import episodes  # noqa: PLC0415

    engine = KnowingEngine({"": set(range(8))})
    panel = await freeze_panel(TASK, there, OPTIONS, "the first")
    async with there.write() as connection:
        await connection.execute(episodes.delete())
    assert (await ask(there, engine)) == panel
    assert (await read_panel("sums", there)).rows[0].second_try == 0.4


async def test_a_run_that_was_broken_off_goes_on_where_it_was(there):
    engine = KnowingEngine({"": set(range(8))})
    calls = 0

    def give_up(_words: str) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await run_panel(TASK, there, engine, OPTIONS, conditions="here", say=lambda words: (
            give_up(words) if "16 of 20" in words else None
        ))  # fmt: skip
    calls = len(engine.calls)
    panel = await PanelStore(there).find_latest("sums")
    assert await PanelStore(there).count_results(panel, "") == 16
    await ask(there, engine)
    assert await PanelStore(there).count_results(panel, "") == 20
    assert len(engine.calls) - calls < calls / 2


async def test_too_few_problems_say_how_many_and_nothing_is_frozen(database, tmp_path):
    await TaskStore(database).create(TASK)
    await log_problems(database, tmp_path, range(9))
    with pytest.raises(InvalidRequest, match="9 of the 10 held-out problems"):
        await freeze_panel(TASK, database, OPTIONS, "the first")
    report = await read_panel("sums", database)
    assert report.panel is None
    assert "mulligan panel freeze sums" in report.says


async def test_a_panel_is_due_after_a_promotion_until_it_was_asked(there, tmp_path):
    engine = KnowingEngine({"": set(range(8)), "sums@1": set(range(12))})

    async def due() -> list[str]:
        sizes = RoundSizes(panel_min_problems=10)
        return [task.name for task in await find_due_panels(await TaskStore(there).list(), there, sizes)]

    assert await due() == []  # the base alone has nobody to be compared with
    await add_champion(there, tmp_path, "sums@1")
    assert await due() == ["sums"]
    await ask(there, engine)
    assert await due() == []


def test_the_interval_keeps_its_level_where_few_pairs_differ():
    assert compare_pairs(61, 20, 500)[0] == pytest.approx(0.082)
    low, high = compare_pairs(61, 20, 500)[1]
    assert (round(low, 3), round(high, 3)) == (0.047, 0.117)
    low, high = compare_pairs(0, 0, 40)[1]
    assert low < 0 < high


def test_what_was_not_judged_counts_for_neither():
    panel = Panel("sums", 1, 3, "", "the first")
    told = [
        PanelResult(adapter, number, "here", judged, passed, passed, 10)
        for adapter, rows in {"": [(True, False), (True, True), (False, False)], "sums@1": [(True, True)] * 3}.items()
        for number, (judged, passed) in enumerate(rows, 1)
    ]
    base, champion = report_panel(panel, told, {"sums@1": AdapterStatus.CHAMPION}).rows
    assert (base.n, champion.n, champion.pairs, champion.fixed, champion.broken) == (2, 3, 2, 1, 0)
    assert json.dumps(champion.difference) == "0.5"
