"""Holds each key to its limits, over all processes together. The walk of a request admits it here, and finishes it.

A key without limits costs nothing. For a limited one the process takes what it needs from the shared count in the
database: requests in small chunks, slots one by one; tokens are told to it a few times a second. While the database is
away each process counts for itself, for answers still go out then. `docs/keys.md` says exactly what the limits mean.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from server.api.limit_account import Account
from server.domain import ApiKey
from server.errors import StoreUnavailable
from server.store.key_limits import Claim, Ledger

INTERVAL_S = 0.25
"""How often tokens are told to the database and the shared count is read back."""

RETURN_AFTER_S = 0.05
"""How long a slot is kept for the next request of the same process."""

SLOT_WAIT_S = 0.5
"""How long a request waits for a slot: another process may be about to give one back."""

DATABASE_TIMEOUT_S = 2.0
_POLL_S = 0.05

_log = structlog.get_logger(__name__)


class LimitSource(Protocol):
    """Where use is counted: `server.store.key_limits.KeyLimitStore`."""

    async def settle(self, process: str, claims: Sequence[Claim]) -> list[Ledger]:
        """Write what the claims say and give them what there is."""
        ...

    async def look(self, claims: Sequence[Claim]) -> list[Ledger]:
        """See how keys stand."""
        ...


class Admission:
    """A request that was let in. `headers` go with its answer; whoever has it calls `finish`, whatever happened."""

    __slots__ = ("_account", "_wake", "headers")

    def __init__(
        self,
        account: Account | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
        wake: Callable[[], object] | None = None,
    ) -> None:
        self._account, self._wake = account, wake
        self.headers: list[tuple[bytes, bytes]] = headers or []

    def finish(self, tokens: int) -> None:
        """Free its slot and count its tokens; a second call does nothing."""
        account, self._account = self._account, None
        if account is not None:
            account.finish(tokens)
            if self._wake is not None and account.slots:
                self._wake()


class KeyLimiter:
    """The limits of one process's keys. `process` names it among the others; no two that live have the same name."""

    def __init__(self, store: LimitSource, process: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._process = process
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._away = False
        self._idle = asyncio.Event()

    def unlimited(self, key: ApiKey) -> bool:
        """Say whether there is nothing to admit: the key has no limits."""
        return not key.limits.any

    async def admit(self, key: ApiKey) -> Admission:
        """Let a request of a key in, or refuse it.

        Raises: TooManyRequests, InsufficientQuota.
        """
        if not key.limits.any:
            return Admission()
        account = self._accounts.get(key.id)
        if account is None:
            account = self._accounts[key.id] = Account(key.id, key.name, key.limits)
        account.limits, account.asked_at = key.limits, self._clock()
        account.waiting += 1
        try:
            await self._let_in(account)
        finally:
            account.waiting -= 1
        said = account.headers(self._clock())
        return Admission(account, [(name.encode(), value.encode()) for name, value in said.items()], self._idle.set)

    async def run(self) -> None:
        """Tell the database what was used, and give back what is idle, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S - RETURN_AFTER_S):
                    await self._idle.wait()
            self._idle.clear()
            await asyncio.sleep(RETURN_AFTER_S)
            try:
                await self.tick()
            except Exception:  # noqa: BLE001 -- this loop must go on: without it slots would stay taken
                _log.exception("key_limits_broke")

    async def tick(self) -> None:
        """Do once what `run` repeats."""
        now = self._clock()
        for account in [one for one in self._accounts.values() if one.forgettable(now)]:
            del self._accounts[account.key]
        free = [account for account in self._accounts.values() if account.asking is None]
        due = [account for account in free if account.due(now, INTERVAL_S)]
        watched = [one for one in free if one not in due and (self._away or one.watched(now, INTERVAL_S))]
        if due:
            await self._ask(due, idle=True)
        if watched:
            await self._ask(watched, look=True)
        for account in free:
            account.most_running = account.running
        if self._away and not self._accounts:
            self._away = False

    async def stop(self) -> None:
        """Tell the database all that is not told yet and give everything back. `run` has ended before."""
        asking = [account.asking for account in self._accounts.values() if account.asking is not None]
        if asking:
            await asyncio.wait(asking)
        accounts = list(self._accounts.values())
        if accounts:
            await self._ask(accounts, idle=True, last=True)
        if untold := {account.key: account.tokens for account in accounts if account.tokens}:
            _log.error("tokens_not_counted", keys=untold)

    async def _let_in(self, account: Account) -> None:
        """Wait until the request may run, and count it as running. Raises: TooManyRequests, InsufficientQuota."""
        give_up_at: float | None = None
        while True:
            now = self._clock()
            if self._away:
                account.check_tokens(now)
                account.let_in_alone(now)
                return
            if not account.lacks_news(now):
                account.check_tokens(now)
                lacks_quota, lacks_slot = account.lacks_quota(now), account.lacks_slot()
                if not lacks_quota and not lacks_slot:
                    account.let_in()
                    return
                if lacks_quota and now < account.refused_until:
                    raise account.refuse_requests(now)
                if lacks_slot and now < account.slots_refused_until:
                    give_up_at = give_up_at or now + SLOT_WAIT_S
                    if now >= give_up_at or account.waiting > (account.limits.max_concurrent or 0):
                        raise account.refuse_slot(now)
                    await self._wait_for_slot(account)
                    continue
            await self._ask([account])

    async def _wait_for_slot(self, account: Account) -> None:
        account.freed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await account.freed.wait()

    async def _ask(self, accounts: Sequence[Account], *, look: bool = False, **how: bool) -> None:
        """Ask the database, once for all who wait for the same; whoever leaves does not take the others along."""
        asking = accounts[0].asking
        if asking is None:
            asking = asyncio.ensure_future(self._exchange(accounts, look=look, **how))
            asking.add_done_callback(_look_at)
            for account in accounts:
                account.asking = asking
        await asyncio.shield(asking)

    async def _exchange(
        self, accounts: Sequence[Account], *, look: bool, idle: bool = False, last: bool = False
    ) -> None:
        asked_at = self._clock()
        ask = self._store.look if look else None
        claims = [Claim(one.key, one.limits) if look else one.claim(asked_at, idle=idle, last=last) for one in accounts]
        ledgers = None
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT_S):
                ledgers = await (ask(claims) if ask else self._store.settle(self._process, claims))
        except (StoreUnavailable, TimeoutError) as error:
            self._note_away(error)
        else:
            self._note_back()
        finally:
            for place, account in enumerate(accounts):
                account.asking = None
                if ledgers is None:
                    account.take_back()
                else:
                    account.hear(ledgers[place], claims[place], asked_at, self._clock(), written=not look)

    def _note_away(self, error: Exception) -> None:
        if not self._away:
            _log.warning("key_limits_alone", error=str(error) or "the database does not answer in time")
        self._away = True

    def _note_back(self) -> None:
        if self._away:
            _log.info("key_limits_shared_again")
            for account in self._accounts.values():
                account.alone.clear()
        self._away = False


def _look_at(done: "asyncio.Future[None]") -> None:
    """Look at how it ended: all who waited for it may have gone."""
    if not done.cancelled():
        done.exception()
