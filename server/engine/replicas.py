"""Several engines that serve the same model, as one: implements `Engine` over one engine or more.

Made by the roots (API, command line, trainer), used like any engine. It knows which replica takes requests now: one
that fails is ejected, and returns only once it is healthy again and holds the adapters that it has to hold. A request
goes to another replica only where nothing was sent (no connection came about) or the engine refused it before it began
(it lacks the adapter); what may have been generated is never asked for twice.

Counts and ejections are this process's own; that all processes see an adapter everywhere is made sure by
`server.adapters.hot_swap` with what each process reports. One engine alone is always asked, whatever the looks at it
say, at the cost of one plain call: its own answer is the truth.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog

from server.engine.base import Completion, Engine, EngineState
from server.engine.choice import Beginnings, chat_beginning, ids_beginning, text_beginning
from server.engine.sglang import SGLangEngine
from server.errors import (
    AdapterMissing,
    AdapterRefused,
    EngineBroken,
    EngineTimeout,
    EngineUnavailable,
    EngineUnreached,
    MulliganError,
    StoreUnavailable,
)
from server.settings import EngineSettings

LOOK_INTERVAL_S = 0.5
LOOK_TIMEOUT_S = 10.0
_LOOK_WAIT_S = 2.0  # what takes longer (an engine that hangs, a big adapter) goes on beside the next look
EJECT_AFTER_LOOKS = 2
EJECT_AFTER_REQUESTS = 3
RETURN_AFTER_LOOKS = 2
_UNLOAD_TIMEOUT_S = 10.0

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Shelf(Protocol):
    """Says which adapters an engine has to hold before it takes requests: `server.adapters.reconcile`."""

    async def find_missing(self, held: Collection[str]) -> Collection[str]:
        """Find the adapters that an engine lacks which holds `held`. Raises: StoreUnavailable."""
        ...

    async def load(self, engine: Engine, names: Collection[str]) -> None:
        """Load adapters into one engine. Raises: the engine's errors, StoreUnavailable."""
        ...


@dataclass(slots=True, eq=False)
class Replica:
    """One engine, and what this process knows of it."""

    url: str
    engine: Engine
    live: bool = True  # takes requests
    looked: bool = False  # whether a look has found it in order since it was ejected, or since the start
    adapters: frozenset[str] = frozenset()  # that it held at the last look
    in_flight: int = 0
    failed_requests: int = 0  # in a row
    bad_looks: int = 0  # in a row
    good_looks: int = 0  # in a row
    looks_to_return: int = 1
    why: str = "nobody has looked at it yet"  # it takes no requests, or ""


class Replicas:
    """Implements `Engine` over the engines in `engines`, by their addresses. There is at least one."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        if not engines:
            raise ValueError("there has to be one engine at least")
        self.members = tuple(Replica(url, engine) for url, engine in engines.items())
        self._only = self.members[0].engine if len(self.members) == 1 else None
        self._beginnings = Beginnings()
        self._looks: dict[str, asyncio.Task[None]] = {}
        self.loaded_here: dict[str, str] = {}
        """What was loaded by this object and not unloaded by it: name to path. A trainer's shelf keeps it in place."""

    # what a request needs

    def complete(
        self, body: Mapping[str, Any], adapter: str, *, with_tokens: bool = False
    ) -> Coroutine[Any, Any, Completion]:
        """Answer one chat request; see `Engine.complete`. Raises: what the engine raises, EngineUnavailable."""
        if self._only is not None:
            return self._only.complete(body, adapter, with_tokens=with_tokens)
        beginning = chat_beginning(body, adapter)
        return self._ask(beginning, adapter, lambda engine: engine.complete(body, adapter, with_tokens=with_tokens))

    def complete_text(self, body: Mapping[str, Any], adapter: str) -> Coroutine[Any, Any, Completion]:
        """Continue a raw text; see `Engine.complete_text`. Raises: what the engine raises, EngineUnavailable."""
        if self._only is not None:
            return self._only.complete_text(body, adapter)
        return self._ask(text_beginning(body, adapter), adapter, lambda engine: engine.complete_text(body, adapter))

    def complete_ids(
        self, prompt_ids: Sequence[int], adapter: str, sampling: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Completion]:
        """Continue these tokens; see `Engine.complete_ids`. Raises: what the engine raises, EngineUnavailable."""
        if self._only is not None:
            return self._only.complete_ids(prompt_ids, adapter, sampling)
        beginning = ids_beginning(prompt_ids, adapter)
        return self._ask(beginning, adapter, lambda engine: engine.complete_ids(prompt_ids, adapter, sampling))

    def embed(self, body: Mapping[str, Any]) -> Coroutine[Any, Any, bytes]:
        """Answer an embeddings request; see `Engine.embed`. Raises: what the engine raises, EngineUnavailable."""
        if self._only is not None:
            return self._only.embed(body)
        return self._ask(hash(str(body.get("input"))), "", lambda engine: engine.embed(body))

    def stream(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[bytes]:
        """Yield the payloads of the engine's events; see `Engine.stream`."""
        if self._only is not None:
            return self._only.stream(body, adapter)
        return self._stream(chat_beginning(body, adapter), adapter, lambda engine: engine.stream(body, adapter))

    def stream_text(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[bytes]:
        """Yield the payloads of a raw text completion; see `Engine.stream_text`."""
        if self._only is not None:
            return self._only.stream_text(body, adapter)
        return self._stream(text_beginning(body, adapter), adapter, lambda engine: engine.stream_text(body, adapter))

    # what watches and moves adapters

    def replicas(self) -> Mapping[str, Engine]:
        """Name the engines that take requests now, each by its address; the only one always does."""
        return {one.url: one.engine for one in self._in_rotation()}

    async def state(self) -> EngineState:
        """Say what is served: the adapters that every engine in rotation holds. Raises: EngineUnavailable."""
        states = await asyncio.gather(*(self._read_state(one) for one in self._in_rotation()))
        found = [state for state in states if state is not None]
        if not found:
            raise self._nobody()
        first, *others = found
        everywhere = {
            name: path for name, path in first.adapters.items() if all(name in state.adapters for state in others)
        }
        return EngineState(first.base_model, everywhere, all(state.images for state in found))

    async def ready(self) -> bool:
        """Say whether any engine in rotation takes traffic now. Never raises."""
        return any(await asyncio.gather(*(one.engine.ready() for one in self._in_rotation())))

    async def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter into every engine in rotation; one that cannot be reached is ejected, one that refuses, wins.

        Raises: AdapterRefused (then it is loaded nowhere where it was not before), EngineUnavailable where no engine
            could be reached.
        """
        if self._only is not None:
            await self._only.load_adapter(name, path)
            self.loaded_here[name] = path
            return
        asked = self._in_rotation()
        results = await asyncio.gather(*(_load(one, name, path) for one in asked), return_exceptions=True)
        errors = [(one, error) for one, error in zip(asked, results, strict=True) if isinstance(error, BaseException)]
        away = [(one, error) for one, error in errors if isinstance(error, EngineUnavailable | EngineTimeout)]
        others = [error for _, error in errors if not isinstance(error, EngineUnavailable | EngineTimeout)]
        for one, error in away:
            self._eject(one, f"it did not load {name}: {error}")
        if others or len(away) == len(asked):
            loaded = [one for one, result in zip(asked, results, strict=True) if result is True]
            await asyncio.gather(*(_unload_quietly(one, name) for one in loaded))
            raise others[0] if others else away[0][1] if away else self._nobody()
        if not any(result is True for result in results):
            raise AdapterRefused(f"{name} is already loaded in every engine")
        self.loaded_here[name] = path

    async def unload_adapter(self, name: str) -> None:
        """Unload from every engine. One that takes no requests is asked too, and may fail.

        Raises: EngineUnavailable, EngineTimeout, AdapterRefused.
        """
        self.loaded_here.pop(name, None)
        for one in self.members:
            one.adapters -= {name}
        within = self._in_rotation()
        away = [one for one in self.members if one not in within]
        results = await asyncio.gather(
            *(one.engine.unload_adapter(name) for one in within),
            *(_unload_quietly(one, name) for one in away),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, BaseException):
                raise error

    async def look(self, shelf: Shelf) -> None:
        """Look at every engine: eject those that fail, bring those that lack adapters up to date, let them return.

        Raises: StoreUnavailable, where the database had to be asked what an engine must hold.
        """
        for one in self.members:
            if one.url not in self._looks:
                self._looks[one.url] = asyncio.create_task(self._look_at(one, shelf))
        done, _ = await asyncio.wait(self._looks.values(), timeout=_LOOK_WAIT_S)
        self._looks = {url: task for url, task in self._looks.items() if task not in done}
        for error in [task.exception() for task in done]:
            if error is not None:
                raise error

    def seen(self) -> dict[str, list[str]]:
        """Map each engine that takes requests, as far as it was looked at, to the adapters that it held then."""
        return {one.url: sorted(one.adapters) for one in self.members if one.live and one.looked}

    def out(self) -> dict[str, str]:
        """Say of each engine that takes no requests, by its address, why not."""
        return {one.url: one.why for one in self.members if not one.live}

    async def close(self) -> None:
        """Release the connections to all engines."""
        for task in self._looks.values():
            task.cancel()
        await asyncio.gather(*self._looks.values(), return_exceptions=True)
        await asyncio.gather(*(one.engine.close() for one in self.members))

    # inside

    async def _ask(self, beginning: int, adapter: str, call: Callable[[Engine], Awaitable[T]]) -> T:
        tried: list[Replica] = []
        while True:
            one = self._choose(beginning, adapter, tried)
            one.in_flight += 1
            try:
                answer = await call(one.engine)
            except MulliganError as error:
                if not self._may_ask_another(one, adapter, error, tried):
                    raise
            else:
                one.failed_requests = 0
                return answer
            finally:
                one.in_flight -= 1

    async def _stream(
        self, beginning: int, adapter: str, open_stream: Callable[[Engine], AsyncIterator[bytes]]
    ) -> AsyncGenerator[bytes, None]:
        tried: list[Replica] = []
        begun = False
        while True:
            one = self._choose(beginning, adapter, tried)
            one.in_flight += 1
            try:
                async with aclosing(open_stream(one.engine)) as events:  # pyright: ignore[reportArgumentType]
                    async for event in events:
                        begun = True
                        yield event
            except MulliganError as error:
                if not self._may_ask_another(one, adapter, error, tried) or begun:
                    raise
            else:
                one.failed_requests = 0
                return
            finally:
                one.in_flight -= 1

    def _choose(self, beginning: int, adapter: str, tried: Collection[Replica]) -> Replica:
        among = [one for one in self.members if one.live and one not in tried]
        if not among:
            raise self._nobody()
        holding = [one for one in among if adapter in one.adapters] if adapter else among
        return self._beginnings.choose(beginning, holding or among)

    def _may_ask_another(self, one: Replica, adapter: str, error: MulliganError, tried: list[Replica]) -> bool:
        """Take note of a failure, and say whether another engine may be asked, and is there."""
        if isinstance(error, EngineUnreached):
            self._eject(one, str(error))
        elif isinstance(error, AdapterMissing):
            one.adapters -= {adapter}
        elif isinstance(error, EngineUnavailable | EngineTimeout | EngineBroken):
            one.failed_requests += 1
            # A request may be at fault itself: what requests say never takes the last engine out.
            if one.failed_requests >= EJECT_AFTER_REQUESTS and any(x.live for x in self.members if x is not one):
                self._eject(one, f"{one.failed_requests} requests in a row failed: {error}")
            return False
        else:
            return False
        tried.append(one)
        return any(other.live and other not in tried for other in self.members)

    async def _look_at(self, one: Replica, shelf: Shelf) -> None:
        try:
            held = await _check(one.engine)
            lacking = await shelf.find_missing(held)
            if lacking:
                self._take_out(one, f"it lacks {', '.join(sorted(lacking))}")
                await shelf.load(one.engine, lacking)
                held = await _check(one.engine)
        except EngineUnreached as error:
            self._note_bad_look(one, str(error), enough=1)
        except (EngineUnavailable, EngineTimeout, EngineBroken, AdapterRefused) as error:
            self._note_bad_look(one, str(error), enough=EJECT_AFTER_LOOKS if self._only is None else 1)
        else:
            one.adapters, one.bad_looks, one.good_looks = frozenset(held), 0, one.good_looks + 1
            if one.good_looks >= one.looks_to_return:
                self._let_return(one)

    def _note_bad_look(self, one: Replica, why: str, *, enough: int) -> None:
        one.good_looks, one.bad_looks = 0, one.bad_looks + 1
        if one.bad_looks >= enough or not one.looked:
            self._eject(one, why)

    def _eject(self, one: Replica, why: str) -> None:
        self._take_out(one, why)
        one.good_looks, one.looks_to_return = 0, 1 if self._only is not None else RETURN_AFTER_LOOKS

    def _take_out(self, one: Replica, why: str) -> None:
        if one.live and one.looked:
            _log.warning("replica_ejected", engine=one.url, why=why)
        one.live, one.looked, one.why = False, False, why

    def _let_return(self, one: Replica) -> None:
        if not one.live:
            _log.info("replica_returned", engine=one.url, adapters=sorted(one.adapters))
            self._beginnings.forget(one)
        one.live, one.looked, one.why, one.failed_requests = True, True, "", 0

    def _in_rotation(self) -> list[Replica]:
        return [one for one in self.members if one.live or self._only is not None]

    def _nobody(self) -> EngineUnavailable:
        return EngineUnavailable(f"none of the {len(self.members)} engines takes requests now")

    async def _read_state(self, one: Replica) -> EngineState | None:
        try:
            return await one.engine.state()
        except (EngineUnavailable, EngineTimeout) as error:
            if self._only is not None:
                raise
            self._eject(one, str(error))
            return None


def open_sglang(engine: EngineSettings) -> Engine:
    """Make the client of the engine at `engine.url`; the local engine speaks the same protocol."""
    return SGLangEngine(engine.url, model_name=engine.model_name, timeout_s=engine.request_timeout_s)


def open_replicas(engine: EngineSettings, open_engine: Callable[[EngineSettings], Engine] = open_sglang) -> Replicas:
    """Make one client for all engines that the settings name."""
    return Replicas({url: open_engine(engine.model_copy(update={"url": url})) for url in engine.every_url})


@asynccontextmanager
async def looked_after(replicas: Replicas, shelf: Shelf) -> AsyncIterator[None]:
    """Look at the engines now, and again and again while the block runs."""

    async def keep_looking() -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            with suppress(MulliganError):  # the database is away: the next look asks it again
                await replicas.look(shelf)

    with suppress(StoreUnavailable):
        await replicas.look(shelf)
    looking = asyncio.create_task(keep_looking())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _check(engine: Engine) -> Collection[str]:
    """Read which adapters an engine holds. Raises: EngineUnavailable, EngineTimeout where it is not in order."""
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            state = await engine.state()  # first: it tells apart whether anything listens
            if not await engine.ready():
                raise EngineUnavailable("its health check fails")
    except TimeoutError:
        raise EngineTimeout(f"its health check took more than {LOOK_TIMEOUT_S:g} s") from None
    return state.adapters.keys()


async def _load(one: Replica, name: str, path: str) -> bool:
    """Load into one engine; say whether it was loaded now. Raises: the engine's errors, AdapterRefused."""
    held = (await one.engine.state()).adapters
    if name in held:
        if held[name] and held[name].rstrip("/") != path.rstrip("/"):
            raise AdapterRefused(f"the engine at {one.url} holds another adapter under the name {name}")
        return False
    await one.engine.load_adapter(name, path)
    one.adapters |= {name}
    return True


async def _unload_quietly(one: Replica, name: str) -> None:
    with suppress(MulliganError, TimeoutError):
        async with asyncio.timeout(_UNLOAD_TIMEOUT_S):
            await one.engine.unload_adapter(name)
