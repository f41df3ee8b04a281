"""Hot swap: the order of things, what is refused, and what happens when it cannot be finished."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from server.adapters import hot_swap
from server.adapters.files import hash_file
from server.adapters.loading import push
from server.adapters.probing import Probe
from server.adapters.rooms import SwapRooms
from server.domain import Adapter, AdapterStatus, Task, Usage
from server.engine.base import Completion, EngineState
from server.errors import AdapterRefused, Conflict, EngineUnavailable, NotFound, StoreUnavailable
from server.store.moves import Hand

HOW = {"actor": "test", "drain_timeout_s": 60.0}
IN_VAIN = {**HOW, "drain_timeout_s": 0.02}
PROBE = Probe((1, 2), (5, 6), (-0.1, -0.2), 0.01)


class FreeHolds:
    """A hold store in which nobody is in the way."""

    async def hold(self, adapter):
        return True

    begin_unload = hold

    async def release(self, adapter): ...

    end_unload = release

    async def find_use(self, adapter, *, except_round=""):
        return ""


class World:
    """The engine and the stores in one, so that their order is seen in `told`."""

    def __init__(self, tmp_path):
        self.told = []
        self.task = Task("t", champion="t@1", generation=3)
        self.loaded = {"t@1": str(tmp_path / "t@1")}
        self.live_processes = []
        self.answer = Completion({}, "stop", Usage(), (1, 2), (5, 6), (-0.1, -0.2))
        self.shelf = {}
        self.events = []
        for name, parent, status in (("t@1", "", AdapterStatus.CHAMPION), ("t@2", "t@1", AdapterStatus.CANDIDATE)):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "adapter_model.safetensors").write_text(name)
            files = {"adapter_model.safetensors": hash_file(folder / "adapter_model.safetensors")}
            self.shelf[name] = Adapter(name, "t", str(folder), files, status, parent=parent)

    def rooms(self):
        engine = SimpleNamespace(
            state=self.state, load_adapter=self.load, unload_adapter=self.unload, complete_ids=self.complete_ids
        )
        engine.replicas = lambda: {"only": engine}
        return SwapRooms(
            engine,
            tasks=SimpleNamespace(get=self.get_task, flip_champion=self.flip),
            adapters=SimpleNamespace(get=self.get_adapter),
            rounds=None,
            canaries=None,
            figures=None,
            presence=SimpleNamespace(live=self.live),
            events=SimpleNamespace(add=self.add_event),
            holds=FreeHolds(),
        )

    async def state(self):
        return EngineState("base", dict(self.loaded))

    async def load(self, name, path):
        self.told.append(f"load {name}")
        self.loaded[name] = path

    async def unload(self, name):
        self.told.append(f"unload {name}")
        self.loaded.pop(name, None)

    async def complete_ids(self, prompt_ids, adapter, sampling):
        self.told.append(f"probe {adapter}")
        assert sampling["temperature"] == 0.0
        return self.answer

    async def get_task(self, name):
        return self.task if name == "t" else None

    async def flip(self, name, adapter, *, expected_generation, epoch_of_round=None, event=None, hand=None, **_ends):
        """As the task store does it, in one step: the pointer, the statuses, the event."""
        if expected_generation != self.task.generation:
            raise Conflict("it moved")
        self.told.append(f"flip {adapter}")
        for moved, status in ((self.task.champion, AdapterStatus.RETIRED), (adapter, AdapterStatus.CHAMPION)):
            if moved:
                forced = self.shelf[moved].forced or bool(moved == adapter and hand and hand.forced)
                self.shelf[moved] = replace(self.shelf[moved], status=status, forced=forced)
        if event:
            self.events.append(event)
        self.task = replace(self.task, champion=adapter, generation=self.task.generation + 1)
        return self.task

    async def get_adapter(self, name):
        return self.shelf.get(name)

    async def live(self, max_age_s):
        return [process() for process in self.live_processes]

    async def add_event(self, event):
        self.events.append(event)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def make_process(*reports):
    """A live API process: each look at it gives the next (generation, episodes on t@1), the last one for ever."""
    left = list(reports)

    def look():
        generation, running = left.pop(0) if len(left) > 1 else left[0]
        return SimpleNamespace(id="api", acknowledged={"t": generation}, in_flight={"t@1": running}, replicas={})

    return look


async def test_the_order_of_a_promotion(world):
    world.live_processes = [make_process((3, 2), (4, 2), (4, 0)), make_process((4, 0))]
    task = await hot_swap.promote("t@2", world.rooms(), **HOW, probe=PROBE)
    assert world.told == ["load t@2", "probe t@2", "flip t@2", "unload t@1"]
    assert (task.champion, task.generation) == ("t@2", 4)
    assert world.shelf["t@2"].status is AdapterStatus.CHAMPION
    assert world.shelf["t@1"].status is AdapterStatus.RETIRED
    assert not world.shelf["t@2"].forced
    assert [(event.kind, event.subject, event.actor) for event in world.events] == [("adapter.promoted", "t@2", "test")]


async def test_what_a_human_forces_is_marked(world):
    await hot_swap.promote("t@2", world.rooms(), **HOW, hand=Hand("test", "now", forced=True))
    assert world.shelf["t@2"].forced
    assert world.events[0].details["forced"]


@pytest.mark.parametrize("stuck", [(3, 0), (4, 1)])
async def test_an_adapter_in_use_is_left_loaded(world, stuck):
    world.live_processes = [make_process(stuck)]
    task = await hot_swap.promote("t@2", world.rooms(), **IN_VAIN)
    assert task.champion == "t@2"
    assert "unload t@1" not in world.told
    assert [event.kind for event in world.events] == ["adapter.promoted", "adapter.left_loaded"]


async def test_a_process_that_is_coming_up_is_waited_for(world):
    world.live_processes = [lambda: SimpleNamespace(id="api", acknowledged={}, in_flight={}, replicas={})]
    await hot_swap.promote("t@2", world.rooms(), **IN_VAIN)
    assert "unload t@1" not in world.told
    world.live_processes = [make_process((5, 0))]
    await hot_swap.rollback("t", world.rooms(), **HOW)
    assert "unload t@2" in world.told


@pytest.mark.parametrize(
    ("tokens", "logprobs", "says"),
    [
        ((5, 7), (-0.1, -0.2), "it continued with the tokens"),
        ((5, 6), (-0.1, -0.3), "differ by 0.1000 nats"),
        ((), (), "tokens"),
        ((5, 6), (-0.1, float("nan")), "differ by nan nats"),
        ((5, 6), (), "tokens"),
    ],
)
async def test_an_engine_that_answers_with_something_else_is_found_out(world, tokens, logprobs, says):
    world.answer = Completion({}, "stop", Usage(), (1, 2), tokens, logprobs)
    with pytest.raises(AdapterRefused, match=says):
        await hot_swap.promote("t@2", world.rooms(), **HOW, probe=PROBE)
    assert world.task.champion == "t@1"
    assert "t@2" not in world.loaded


async def test_another_flip_wins(world):
    with pytest.raises(Conflict):
        await hot_swap.promote("t@2", world.rooms(), **HOW, expected_generation=2)
    assert world.told == ["load t@2", "unload t@2"]
    assert world.shelf["t@1"].status is AdapterStatus.CHAMPION


async def test_who_loses_to_another_promotion_of_the_same_adapter_leaves_it_loaded(world):
    async def flip(name, adapter, **_given):
        world.task = replace(world.task, champion=adapter, generation=world.task.generation + 1)
        raise Conflict("another process was quicker")

    rooms = world.rooms()
    rooms.tasks.flip_champion = flip
    with pytest.raises(Conflict):
        await hot_swap.promote("t@2", rooms, **HOW)
    assert world.told == ["load t@2"]
    assert "t@2" in world.loaded


async def test_an_adapter_that_another_process_loads_meanwhile_is_loaded_once(world):
    path = world.shelf["t@2"].path

    async def refuse(name, path):
        world.loaded[name] = path
        raise AdapterRefused(f"{name} is already loaded")

    engine = world.rooms().engine
    engine.load_adapter = refuse
    assert not await push(engine, "t@2", path)

    async def break_down(name, path):
        raise AdapterRefused("wrong rank")

    engine.load_adapter = break_down
    with pytest.raises(AdapterRefused, match="wrong rank"):
        await push(engine, "t@3", path)


async def test_files_that_changed_are_refused(world, tmp_path):
    (tmp_path / "t@2" / "adapter_model.safetensors").write_text("something else")
    with pytest.raises(AdapterRefused, match="is not the one that was registered"):
        await hot_swap.promote("t@2", world.rooms(), **HOW)
    (tmp_path / "t@2" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterRefused, match="lacks its file"):
        await hot_swap.promote("t@2", world.rooms(), **HOW)
    assert world.told == []


async def test_a_name_is_written_once(world):
    world.loaded["t@2"] = "/somewhere/else"
    with pytest.raises(AdapterRefused, match="a name is written once"):
        await hot_swap.promote("t@2", world.rooms(), **HOW)


async def test_an_adapter_that_is_loaded_already_is_not_loaded_again(world):
    world.loaded["t@2"] = world.shelf["t@2"].path
    await hot_swap.promote("t@2", world.rooms(), **HOW)
    assert world.told == ["flip t@2", "unload t@1"]


async def test_the_champion_is_not_promoted_again(world):
    with pytest.raises(Conflict, match="is the champion of task 't' already"):
        await hot_swap.promote("t@1", world.rooms(), **HOW)
    with pytest.raises(NotFound):
        await hot_swap.promote("t@9", world.rooms(), **HOW)


async def test_rolling_back_to_the_base_and_no_further(world):
    task = await hot_swap.rollback("t", world.rooms(), **HOW)
    assert (task.champion, task.generation) == ("", 4)
    assert world.told == ["flip ", "unload t@1"]
    assert world.shelf["t@1"].status is AdapterStatus.RETIRED
    with pytest.raises(Conflict, match="nothing to roll back to"):
        await hot_swap.rollback("t", world.rooms(), **HOW)


async def test_rolling_back_loads_the_former_champion_first(world):
    await hot_swap.promote("t@2", world.rooms(), **HOW)
    world.told.clear()
    task = await hot_swap.rollback("t", world.rooms(), **HOW)
    assert task.champion == "t@1"
    assert world.told == ["load t@1", "flip t@1", "unload t@2"]
    assert world.shelf["t@1"].status is AdapterStatus.CHAMPION
    assert world.events[-1].kind == "adapter.rolled_back"


async def test_a_rollback_that_loses_to_another_flip_leaves_the_engine_as_it_was(world):
    await hot_swap.promote("t@2", world.rooms(), **HOW)
    world.told.clear()
    rooms = world.rooms()

    async def flip(name, adapter, **_given):
        raise Conflict("another process was quicker")

    rooms.tasks.flip_champion = flip
    with pytest.raises(Conflict):
        await hot_swap.rollback("t", rooms, **HOW)
    assert world.told == ["load t@1", "unload t@1"]


async def test_an_engine_that_cannot_unload_fails_nothing(world):
    async def refuse(_name):
        raise EngineUnavailable("away")

    world.unload = refuse
    task = await hot_swap.promote("t@2", world.rooms(), **HOW)
    assert task.champion == "t@2"


async def test_an_adapter_that_became_champion_again_is_not_unloaded(world):
    """While the old one drains, somebody rolls back to it."""
    reports = []

    async def live(_max_age_s):
        if "flip t@2" in world.told and not reports:
            reports.append("one look")
            world.task = replace(world.task, champion="t@1", generation=world.task.generation + 1)
        return []

    world.live = live
    await hot_swap.promote("t@2", world.rooms(), **HOW)
    assert "t@1" in world.loaded
    assert world.events[-1].kind == "adapter.left_loaded"
    assert "moved again" in world.events[-1].details["why"]


async def test_a_store_that_is_away_after_the_flip_undoes_nothing(world):
    async def refuse(*_args, **_kwargs):
        if "flip t@2" in world.told:
            raise StoreUnavailable("away")
        return []

    world.add_event = world.live = refuse
    task = await hot_swap.promote("t@2", world.rooms(), **HOW)
    assert task.champion == "t@2"
    assert "t@2" in world.loaded
