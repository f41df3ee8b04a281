"""Hot swaps over several engines and processes: probed everywhere, seen everywhere, and unloaded only where unused."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from server.adapters.probing import Probe, probe_everywhere
from server.adapters.reconcile import OrphanSweep
from server.adapters.unloading import held, unload_unused, wait_until_seen
from server.engine.replicas import Replicas
from server.errors import AdapterRefused, Conflict, EngineUnavailable
from tests.fixtures.engines import ScriptedEngine, reply

PROBE = Probe((1, 2), (5, 6), (-0.1, -0.2), 0.01)
RIGHT = reply("x", token_ids=[5, 6], logprobs=[-0.1, -0.2])
WRONG = replace(RIGHT, logprobs=[-0.1, -0.9])


class Holds:
    """A hold store in memory, of one adapter's row."""

    def __init__(self, *, use: str = "", busy: int = 0) -> None:
        self.use, self.busy, self.told = use, busy, []

    async def hold(self, adapter):
        self.told.append(f"hold {adapter}")
        self.busy -= 1
        return self.busy < 0

    async def release(self, adapter):
        self.told.append(f"release {adapter}")

    async def begin_unload(self, adapter):
        self.told.append(f"begin {adapter}")
        return self.busy <= 0

    async def end_unload(self, adapter):
        self.told.append(f"end {adapter}")

    async def find_use(self, adapter, *, except_round=""):
        return self.use if adapter.startswith("used") else ""


def make(first, second, adapters=("a@1",)):
    engines = [ScriptedEngine([line], adapters=dict.fromkeys(adapters, "/")) for line in (first, second)]
    return Replicas({f"http://{index}": engine for index, engine in enumerate(engines)}), engines


def seeing(*reports):
    """A presence store: each look at it gives the next report, {process: {engine: adapters}}, the last for ever."""
    left = list(reports)

    async def live(_max_age_s):
        said = left.pop(0) if len(left) > 1 else left[0]
        return [SimpleNamespace(id=name, replicas=replicas, in_flight={}) for name, replicas in said.items()]

    return SimpleNamespace(live=live)


async def test_every_engine_is_probed():
    replicas, engines = make(RIGHT, RIGHT)
    assert await probe_everywhere(replicas, "a@1", PROBE) == pytest.approx(0)
    assert [len(engine.calls) for engine in engines] == [1, 1]


async def test_one_engine_that_answers_with_something_else_is_enough():
    for lines in ((RIGHT, WRONG), (WRONG, RIGHT)):
        replicas, _ = make(*lines)
        with pytest.raises(AdapterRefused, match="nats"):
            await probe_everywhere(replicas, "a@1", PROBE)


async def test_an_engine_that_goes_away_meanwhile_does_not_stop_the_swap_unless_it_is_the_last():
    replicas, (first, second) = make(RIGHT, RIGHT)
    first.up = False
    assert await probe_everywhere(replicas, "a@1", PROBE) == pytest.approx(0)
    second.up = False
    with pytest.raises(EngineUnavailable):
        await probe_everywhere(replicas, "a@1", PROBE)


async def test_every_process_has_to_see_the_adapter_on_every_engine_that_it_asks():
    both, one = {"e1": ["a@1"], "e2": ["a@1"]}, {"e1": ["a@1"], "e2": []}
    await wait_until_seen("a@1", presence=seeing({"p1": one, "p2": both}, {"p1": both, "p2": both}), timeout_s=5)
    await wait_until_seen("a@1", presence=seeing({"p1": {}}), timeout_s=5)  # it asks none, or is older than this
    with pytest.raises(EngineUnavailable, match=r"e2 \(p1\)"):
        await wait_until_seen("a@1", presence=seeing({"p1": one, "p2": both}), timeout_s=0.02)


async def test_what_is_being_promoted_is_held_and_released():
    holds = Holds(busy=2)  # somebody is just unloading it
    async with held("a@1", holds, timeout_s=5):
        assert holds.told == ["hold a@1"] * 3
    assert holds.told[-1] == "release a@1"
    with pytest.raises(Conflict, match="being unloaded"):
        async with held("a@1", Holds(busy=99), timeout_s=0.005):
            raise AssertionError


async def test_what_is_used_or_held_is_not_unloaded():
    replicas, engines = make(RIGHT, RIGHT, adapters=("a@1", "used@1"))
    assert await unload_unused(replicas, "used@1", Holds(use="it is the champion")) == "it is the champion"
    assert "being promoted" in await unload_unused(replicas, "a@1", Holds(busy=1))
    assert [*engines[0].adapters] == ["a@1", "used@1"]
    holds = Holds()
    assert await unload_unused(replicas, "a@1", holds) == ""
    assert holds.told == ["begin a@1", "end a@1"]
    assert [[*engine.adapters] for engine in engines] == [["used@1"], ["used@1"]]


class TestOrphans:
    async def test_what_nobody_needs_goes_once_it_was_of_no_use_for_long_enough(self):
        names = ("a@1", "a@2.3-abc123", "used@1", "operators-own", "busy@1")
        replicas, (first, second) = make(RIGHT, RIGHT, adapters=names)
        del second.adapters["a@1"]  # on one engine only
        presence = SimpleNamespace(live=self._live)
        patient = OrphanSweep(replicas, Holds(use="a round uses it"), presence, orphan_for_s=30)
        assert await patient.sweep() == []
        sweep = OrphanSweep(replicas, Holds(use="a round uses it"), presence, orphan_for_s=0)
        assert await sweep.sweep() == ["a@1", "a@2.3-abc123"]
        assert [*first.adapters] == [*second.adapters] == ["used@1", "operators-own", "busy@1"]

    async def test_what_was_needed_in_between_begins_anew(self):
        replicas, (first, _) = make(RIGHT, RIGHT)
        holds = Holds()
        sweep = OrphanSweep(replicas, holds, SimpleNamespace(live=self._live), orphan_for_s=0.05)
        assert await sweep.sweep() == []
        await asyncio.sleep(0.06)
        holds.find_use = self._all_used
        assert await sweep.sweep() == []
        del holds.find_use
        assert await sweep.sweep() == []
        assert [*first.adapters] == ["a@1"]

    async def test_an_engine_that_is_away_is_swept_later(self):
        replicas, (first, second) = make(RIGHT, RIGHT)
        second.up = False
        sweep = OrphanSweep(replicas, Holds(), SimpleNamespace(live=self._live), orphan_for_s=0)
        assert await sweep.sweep() == ["a@1"]
        assert not first.adapters

    @staticmethod
    async def _live(_max_age_s):
        return [SimpleNamespace(id="p", replicas={}, in_flight={"busy@1": 2})]

    @staticmethod
    async def _all_used(_adapter, **_more):
        return "a round uses it"
