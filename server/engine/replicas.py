"""Several engines that serve the same model, as one: implements `Engine` over one engine or more.

Made by the roots (API, command line, trainer), used like any engine. It knows which replica takes requests now: one
that fails is ejected, and returns only once it is healthy again and holds the adapters that it has to hold
(`server.engine.replica`, `server.engine.looking`). Requests go to one of those (`server.engine.routing`), adapters to
them all.

Counts and ejections are this process's own; that all processes see an adapter everywhere is made sure by
`server.adapters.loading` with what each process reports. One engine alone is always asked, whatever the looks at it
say, at the cost of one plain call: its own answer is the truth.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from server.engine.base import Completion, Engine, EngineState
from server.engine.choice import chat_beginning, ids_beginning, text_beginning
from server.engine.looking import Looks, Shelf
from server.engine.replica import Replica, nobody_of
from server.engine.routing import Router
from server.engine.sglang import SGLangEngine
from server.errors import AdapterRefused, EngineTimeout, EngineUnavailable, MulliganError, StoreUnavailable
from server.settings import EngineSettings

LOOK_INTERVAL_S = 0.5


class Replicas:
    """Implements `Engine` over the engines in `engines`, by their addresses. There is at least one."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        if not engines:
            raise ValueError("there has to be one engine at least")
        self.members = tuple(Replica(url, engine, alone=len(engines) == 1) for url, engine in engines.items())
        self._only = self.members[0].engine if len(self.members) == 1 else None
        self._router = Router(self.members)
        self._looks = Looks(self.members, on_return=self._router.forget)
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
        return self._router.ask(
            beginning, adapter, lambda engine: engine.complete(body, adapter, with_tokens=with_tokens)
        )

    def complete_text(self, body: Mapping[str, Any], adapter: str) -> Coroutine[Any, Any, Completion]:
        """Continue a raw text; see `Engine.complete_text`. Raises: what the engine raises, EngineUnavailable."""
        if self._only is not None:
            return self._only.complete_text(body, adapter)
        return self._router.ask(
            text_beginning(body, adapter), adapter, lambda engine: engine.complete_text(body, adapter)
        )

    def complete_ids(
        self, prompt_ids: Sequence[int], adapter: str, sampling: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Completion]:
        """Continue these tokens; see `Engine.complete_ids`. Raises: what the engine raises, EngineUnavailable."""
        if self._only is not None:
            return self._only.complete_ids(prompt_ids, adapter, sampling)
        beginning = ids_beginning(prompt_ids, adapter)
        return self._router.ask(beginning, adapter, lambda engine: engine.complete_ids(prompt_ids, adapter, sampling))

    def embed(self, body: Mapping[str, Any]) -> Coroutine[Any, Any, bytes]:
        """Answer an embeddings request; see `Engine.embed`. Raises: what the engine raises, EngineUnavailable."""
        if self._only is not None:
            return self._only.embed(body)
        return self._router.ask(hash(str(body.get("input"))), "", lambda engine: engine.embed(body))

    def stream(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[bytes]:
        """Yield the payloads of the engine's events; see `Engine.stream`."""
        if self._only is not None:
            return self._only.stream(body, adapter)
        return self._router.stream(chat_beginning(body, adapter), adapter, lambda engine: engine.stream(body, adapter))

    def stream_text(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[bytes]:
        """Yield the payloads of a raw text completion; see `Engine.stream_text`."""
        if self._only is not None:
            return self._only.stream_text(body, adapter)
        return self._router.stream(
            text_beginning(body, adapter), adapter, lambda engine: engine.stream_text(body, adapter)
        )

    # what watches and moves adapters

    def replicas(self) -> Mapping[str, Engine]:
        """Name the engines that take requests now, each by its address; the only one always does."""
        return {one.url: one.engine for one in self._in_rotation()}

    async def state(self) -> EngineState:
        """Say what is served: the adapters that every engine in rotation holds. Raises: EngineUnavailable."""
        states = await asyncio.gather(*(self._read_state(one) for one in self._in_rotation()))
        found = [state for state in states if state is not None]
        if not found:
            raise nobody_of(self.members)
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
        results = await asyncio.gather(*(one.load(name, path) for one in asked), return_exceptions=True)
        errors = [(one, error) for one, error in zip(asked, results, strict=True) if isinstance(error, BaseException)]
        away = [(one, error) for one, error in errors if isinstance(error, EngineUnavailable | EngineTimeout)]
        others = [error for _, error in errors if not isinstance(error, EngineUnavailable | EngineTimeout)]
        for one, error in away:
            one.eject(f"it did not load {name}: {error}")
        if others or len(away) == len(asked):
            loaded = [one for one, result in zip(asked, results, strict=True) if result is True]
            await asyncio.gather(*(one.unload_quietly(name) for one in loaded))
            raise others[0] if others else away[0][1] if away else nobody_of(self.members)
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
            *(one.unload_quietly(name) for one in away),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, BaseException):
                raise error

    async def look(self, shelf: Shelf) -> None:
        """Look at every engine: eject those that fail, bring those that lack adapters up to date, let them return.

        Raises: StoreUnavailable, where the database had to be asked what an engine must hold.
        """
        await self._looks.look(shelf)

    def seen(self) -> dict[str, list[str]]:
        """Map each engine that takes requests, as far as it was looked at, to the adapters that it held then."""
        return {one.url: sorted(one.adapters) for one in self.members if one.live and one.looked}

    def out(self) -> dict[str, str]:
        """Say of each engine that takes no requests, by its address, why not."""
        return {one.url: one.why for one in self.members if not one.live}

    async def close(self) -> None:
        """Release the connections to all engines."""
        await self._looks.stop()
        await asyncio.gather(*(one.engine.close() for one in self.members))

    # inside

    def _in_rotation(self) -> list[Replica]:
        return [one for one in self.members if one.in_rotation]

    async def _read_state(self, one: Replica) -> EngineState | None:
        try:
            return await one.engine.state()
        except (EngineUnavailable, EngineTimeout) as error:
            if one.alone:
                raise
            one.eject(str(error))
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
