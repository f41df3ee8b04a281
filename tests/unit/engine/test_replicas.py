"""Several engines as one: who is asked, who is not asked any more, and what is never asked twice."""

import asyncio
from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from server.engine.base import EngineState
from server.engine.choice import SLACK_REQUESTS, Beginnings, chat_beginning, ids_beginning, text_beginning
from server.engine.replica import EJECT_AFTER_REQUESTS, Replica
from server.engine.replicas import Replicas, looked_after, open_replicas
from server.errors import (
    AdapterRefused,
    EngineBroken,
    EngineRefused,
    EngineUnavailable,
    EngineUnreached,
    StoreUnavailable,
)
from server.settings import EngineSettings
from tests.fixtures.engines import HANG, ScriptedEngine


class Shelf:
    """What engines must hold, and how they are given it."""

    def __init__(self, *names: str) -> None:
        self.names, self.loads = set(names), []

    async def find_missing(self, held):
        return self.names - {*held}

    async def load(self, engine, names):
        self.loads.append(sorted(names))
        for name in names:
            await engine.load_adapter(name, f"/{name}")


def ask(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], **more}


def make(*scripts: list, adapters: Mapping[str, str] | None = None) -> tuple[Replicas, list[ScriptedEngine]]:
    engines = [ScriptedEngine(script, adapters=dict(adapters or {})) for script in scripts]
    return Replicas({f"http://{index}": engine for index, engine in enumerate(engines)}), engines


async def look(replicas: Replicas, shelf: Shelf | None = None, times: int = 1) -> None:
    for _ in range(times):
        await replicas.look(shelf or Shelf())


async def collect(stream) -> list[bytes]:
    return [event async for event in stream]


class TestChoice:
    def test_the_least_loaded_is_chosen_and_equals_take_turns(self):
        one, two, three = (
            Replica(str(number), ScriptedEngine(), in_flight=load) for number, load in enumerate((1, 0, 0))
        )
        chosen = [Beginnings().choose(0, [one, two, three]) for _ in range(3)]
        assert one not in chosen
        beginnings = Beginnings()
        assert {beginnings.choose(number, [one, two, three]).url for number in range(6)} == {"1", "2"}

    def test_a_known_beginning_goes_where_it_was_read_while_the_load_there_is_not_much_higher(self):
        beginnings, one, two = Beginnings(), Replica("1", ScriptedEngine()), Replica("2", ScriptedEngine())
        two.in_flight = 1
        assert beginnings.choose(7, [one, two]) is one
        one.in_flight, two.in_flight = SLACK_REQUESTS, 0
        assert beginnings.choose(7, [one, two]) is one
        one.in_flight += 1
        assert beginnings.choose(7, [one, two]) is two
        one.in_flight = 0
        assert beginnings.choose(7, [one, two]) is two  # it knows the beginning now

    def test_what_went_away_is_not_chosen_and_forgets(self):
        beginnings, one, two = Beginnings(), Replica("1", ScriptedEngine()), Replica("2", ScriptedEngine(), in_flight=3)
        assert beginnings.choose(7, [one, two]) is one
        assert beginnings.choose(7, [two]) is two
        two.in_flight = 0
        beginnings.forget(two)
        two.in_flight = 3
        assert beginnings.choose(7, [one, two]) is one

    def test_the_oldest_beginnings_are_forgotten(self):
        beginnings, one, two = Beginnings(most=2), Replica("1", ScriptedEngine()), Replica("2", ScriptedEngine())
        two.in_flight = 1
        for number in range(3):
            beginnings.choose(number, [one, two])
        one.in_flight, two.in_flight = 2, 1
        assert beginnings.choose(0, [one, two]) is two
        assert beginnings.choose(2, [one, two]) is one

    def test_turns_of_a_conversation_begin_alike(self):
        system, user = {"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}
        first = {"messages": [system, user]}
        later = {
            "messages": [system, user, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and?"}]
        }
        parts = {"messages": [system, {"role": "user", "content": [{"type": "text", "text": "hello"}]}]}
        assert chat_beginning(first, "a@1") == chat_beginning(later, "a@1") == chat_beginning(parts, "a@1")
        assert chat_beginning(first, "a@1") != chat_beginning(first, "a@2")  # another cache
        assert chat_beginning(first, "") != chat_beginning(ask("hello"), "")
        assert ids_beginning([1, 2], "") == ids_beginning((1, 2), "") != ids_beginning([1, 3], "")
        assert text_beginning({"prompt": "x" * 300 + "a"}, "") == text_beginning({"prompt": "x" * 300 + "b"}, "")
        assert text_beginning({"prompt": [1, 2]}, "") != text_beginning({"prompt": [2, 1]}, "")


class TestAsking:
    async def test_requests_spread_by_what_is_in_flight(self):
        replicas, engines = make([HANG], [HANG])
        asked = [asyncio.create_task(replicas.complete(ask(str(number)), "")) for number in range(10)]
        await asyncio.sleep(0.01)
        assert [engine.running for engine in engines] == [5, 5]
        assert [one.in_flight for one in replicas.members] == [5, 5]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert [one.in_flight for one in replicas.members] == [0, 0]

    async def test_a_conversation_stays_where_it_was(self):
        replicas, engines = make(["one"], ["two"])
        answers = {(await replicas.complete(ask("hello"), "")).message["content"] for _ in range(6)}
        assert len(answers) == 1
        assert sorted(len(engine.calls) for engine in engines) == [0, 6]

    @pytest.mark.parametrize("how", ["complete", "stream", "complete_ids", "complete_text", "stream_text", "embed"])
    async def test_an_engine_that_nobody_reaches_is_passed_over_at_once(self, how):
        replicas, (gone, there) = make([EngineUnreached("refused")], ["here"])
        there.embeddings = b"{}"

        async def refuse(*_args, **_more):
            raise EngineUnreached("refused")

        gone.embed = refuse
        for number in range(4):
            await ask_somehow(replicas, how, str(number))
        assert len(there.calls) == 4
        assert replicas.out() == {"http://0": "refused"}
        assert [*replicas.replicas()] == ["http://1"]

    @pytest.mark.parametrize("error", [EngineUnavailable("cut off"), EngineBroken("500"), EngineRefused("bad")])
    async def test_what_may_have_been_generated_is_not_asked_for_twice(self, error):
        replicas, engines = make([error], [error])
        with pytest.raises(type(error)):
            await replicas.complete(ask("hello"), "")
        with pytest.raises(type(error)):
            await collect(replicas.stream(ask("hello"), ""))
        assert sum(len(engine.calls) for engine in engines) == 2

    async def test_a_stream_that_has_begun_is_not_begun_again(self):
        replicas, engines = make(["one two three"], ["one two three"])

        async def cut(body, adapter):
            yield b"first"
            raise EngineUnreached("the wire is gone")

        for engine in engines:
            engine.stream = cut
        seen = []

        async def read() -> None:
            async for event in replicas.stream(ask("hello"), ""):
                seen.append(event)

        with pytest.raises(EngineUnreached):
            await read()
        assert seen == [b"first"]

    async def test_an_engine_that_lacks_the_adapter_is_passed_over_and_stays(self):
        replicas, (first, second) = make(["one"], ["two"])
        second.adapters["a@1"] = "/a@1"
        for number in range(4):
            answer = await replicas.complete(ask(str(number)), "a@1")
            assert answer.message["content"] == "two"
        assert replicas.out() == {}
        await look(replicas)
        before = len(first.calls)
        for number in range(4):
            await replicas.complete(ask(f"again {number}"), "a@1")
        assert len(first.calls) == before  # the look has told who holds it

    async def test_nobody_left_is_a_503_that_says_when_to_come_back(self):
        replicas, _ = make([EngineUnreached("refused")], [EngineUnreached("refused")])
        with pytest.raises(EngineUnavailable):
            await replicas.complete(ask("hello"), "")
        with pytest.raises(EngineUnavailable, match="none of the 2 engines") as caught:
            await replicas.complete(ask("hello"), "")
        assert (caught.value.status, caught.value.retry_after_s) == (503, 2)

    async def test_failing_requests_eject_but_never_the_last_engine(self):
        replicas, _ = make([EngineBroken("500")], [EngineBroken("500")])
        for number in range(4 * EJECT_AFTER_REQUESTS):
            with pytest.raises(EngineBroken):
                await replicas.complete(ask(str(number)), "")
        assert len(replicas.out()) == 1

    async def test_one_engine_alone_is_always_asked(self):
        replicas, (engine,) = make(["yes"])
        engine.up = False
        await look(replicas, times=3)
        assert replicas.out()
        assert not replicas.seen()
        engine.up = True
        assert (await replicas.complete(ask("there?"), "")).message["content"] == "yes"


class TestLooking:
    async def test_one_that_fails_is_ejected_and_returns_after_good_looks(self):
        replicas, (first, _) = make(["one"], ["two"])
        await look(replicas)
        assert replicas.seen() == {"http://0": [], "http://1": []}
        first.up = False
        with capture_logs() as lines:
            await look(replicas)
            assert replicas.out() == {}  # one bad look may be chance
            await look(replicas)
        assert [line["event"] for line in lines] == ["replica_ejected"]
        assert [*replicas.out()] == ["http://0"]
        for number in range(4):
            assert (await replicas.complete(ask(str(number)), "")).message["content"] == "two"
        first.up = True
        await look(replicas)
        assert [*replicas.out()] == ["http://0"]
        await look(replicas)
        assert replicas.out() == {}

    async def test_one_that_was_restarted_gets_its_adapters_before_it_takes_requests(self):
        replicas, (first, second) = make(["one"], ["two"])
        shelf = Shelf("a@1")
        await look(replicas, shelf)
        assert [*first.adapters] == [*second.adapters] == ["a@1"]
        first.adapters.clear()
        load, during = first.load_adapter, []

        async def watch(name, path):
            during.append([*replicas.replicas()])
            await load(name, path)

        first.load_adapter = watch
        await look(replicas, shelf)
        assert during == [["http://1"]]
        assert replicas.seen() == {"http://0": ["a@1"], "http://1": ["a@1"]}

    async def test_one_that_cannot_be_brought_up_to_date_stays_out(self):
        replicas, (first, second) = make(["one"], ["two"])
        second.adapters["a@1"] = "/a@1"

        async def fail(name, path):
            raise EngineUnavailable("it hangs")

        first.load_adapter = fail
        await look(replicas, Shelf("a@1"), times=3)
        assert [*replicas.out()] == ["http://0"]

    async def test_one_that_hangs_does_not_hold_up_the_looks_at_the_others(self, monkeypatch):
        monkeypatch.setattr("server.engine.looking.LOOK_WAIT_S", 0.01)
        replicas, (first, second) = make(["one"], ["two"])

        async def hang() -> EngineState:
            await asyncio.Event().wait()
            raise AssertionError

        first.state = hang
        second.up = False
        await look(replicas, times=2)
        assert [*replicas.out()] == ["http://1"]
        await replicas.close()

    async def test_without_the_database_nobody_is_ejected_and_it_is_said(self):
        replicas, _ = make(["one"], ["two"])
        shelf = Shelf()

        async def fail(held):
            raise StoreUnavailable("away")

        shelf.find_missing = fail
        with pytest.raises(StoreUnavailable):
            await look(replicas, shelf)
        assert replicas.out() == {}

    async def test_a_trainer_looks_after_its_engines_while_it_works(self, monkeypatch):
        monkeypatch.setattr("server.engine.replicas.LOOK_INTERVAL_S", 0.001)
        replicas, (first, _) = make(["one"], ["two"])
        await replicas.load_adapter("a@1.1-abc", "/a@1.1-abc")
        shelf = Shelf()
        shelf.names = replicas.loaded_here.keys()
        async with looked_after(replicas, shelf):
            first.adapters.clear()  # it was restarted
            for _ in range(200):
                await asyncio.sleep(0.002)
                if first.adapters:
                    break
        assert [*first.adapters] == ["a@1.1-abc"]
        await replicas.unload_adapter("a@1.1-abc")
        assert not replicas.loaded_here


class TestAdapters:
    async def test_an_adapter_is_loaded_everywhere_and_only_what_is_everywhere_is_there(self):
        replicas, (first, second) = make(["one"], ["two"])
        first.adapters["a@1"] = "/a@1"
        assert (await replicas.state()).adapters == {}
        await replicas.load_adapter("a@1", "/a@1")
        assert (await replicas.state()).adapters == {"a@1": "/a@1"}
        assert (first.loaded, second.loaded) == ([], ["a@1"])
        with pytest.raises(AdapterRefused, match="already loaded"):
            await replicas.load_adapter("a@1", "/a@1")
        with pytest.raises(AdapterRefused, match="another adapter"):
            await replicas.load_adapter("a@1", "/elsewhere")
        await replicas.unload_adapter("a@1")
        assert not first.adapters
        assert not second.adapters

    async def test_where_one_engine_refuses_it_is_loaded_nowhere(self):
        replicas, (first, second) = make(["one"], ["two"])

        async def refuse(name, path):
            raise AdapterRefused("no such file")

        second.load_adapter = refuse
        with pytest.raises(AdapterRefused, match="no such file"):
            await replicas.load_adapter("a@1", "/a@1")
        assert first.adapters == {}
        assert replicas.out() == {}

    async def test_an_engine_that_cannot_be_reached_is_ejected_and_brought_up_later(self):
        replicas, (first, second) = make(["one"], ["two"])
        second.up = False
        await replicas.load_adapter("a@1", "/a@1")
        assert [*replicas.out()] == ["http://1"]
        assert [*first.adapters] == ["a@1"]
        second.up = True
        await look(replicas, Shelf("a@1"), times=2)
        assert replicas.out() == {}
        assert [*second.adapters] == ["a@1"]
        second.up = first.up = False
        with pytest.raises(EngineUnavailable):
            await replicas.load_adapter("a@2", "/a@2")

    async def test_unloading_asks_those_that_are_out_too_and_forgives_them(self):
        replicas, (first, second) = make(["one"], ["two"])
        await replicas.load_adapter("a@1", "/a@1")
        second.up = False
        await look(replicas, times=2)
        await replicas.unload_adapter("a@1")
        assert not first.adapters
        assert not second.adapters

        async def fail(name):
            raise EngineUnavailable("away")

        second.unload_adapter = fail
        await replicas.unload_adapter("a@1")
        first.unload_adapter = fail
        with pytest.raises(EngineUnavailable):
            await replicas.unload_adapter("a@1")


def test_the_single_address_is_a_list_of_one():
    assert EngineSettings(url="http://one").every_url == ("http://one",)
    several = EngineSettings(urls=("http://one/", "http://two", "http://one"))
    assert several.every_url == ("http://one", "http://two")
    opened = open_replicas(several, lambda engine: ScriptedEngine([engine.url]))
    assert [(one.url, one.engine.script) for one in opened.members] == [  # pyright: ignore[reportAttributeAccessIssue]
        ("http://one", ["http://one"]),
        ("http://two", ["http://two"]),
    ]
    with pytest.raises(ValueError, match="one engine at least"):
        Replicas({})


async def ask_somehow(replicas: Replicas, how: str, text: str) -> None:
    if how == "complete_ids":
        await replicas.complete_ids([ord(letter) for letter in text], "", {})
    elif how == "embed":
        await replicas.embed({"input": text})
    elif how.startswith("stream"):
        body = ask(text) if how == "stream" else {"prompt": text}
        assert await collect(getattr(replicas, how)(body, ""))
    else:
        await getattr(replicas, how)(ask(text) if how == "complete" else {"prompt": text}, "")
