"""What one process knows and holds of one limited key. No I/O: `server.api.limits` asks the database for it.

It spends what the process was given, and says what is lacking. It must never let a request in on more than was given.
"""

import asyncio
import math
from dataclasses import dataclass, field

from server.domain import KeyLimits
from server.errors import InsufficientQuota, MulliganError, TooManyRequests
from server.store.key_limits import MINUTE_S, Claim, Ledger

FRESH_S = 1.0
"""How old the shared count of tokens may be when a request is let in."""

HEARTBEAT_S = 1.0
CHUNKS = 50
"""Requests are taken from the shared count in chunks of a fiftieth of the limit."""

_REFUSED_FOR_S = 0.25
_SLOTS_REFUSED_FOR_S = 0.05
_LATE_S = 0.05
"""How late those who waited for requests may still spend them, where the database's answer took past their second."""

UNHEARD = Ledger(0, 0, 0, 0.0, 0, 0.0, 0.0, 0, 0.0, 0.0, 0, 0.0)


@dataclass(slots=True)
class Account:
    """One limited key in this process. Moments are of the process's own clock; `name` is for messages."""

    key: str
    name: str
    limits: KeyLimits
    ledger: Ledger = UNHEARD
    heard_at: float = -math.inf  # when `ledger` was asked for
    written_at: float = -math.inf
    asked_at: float = 0.0  # when a request last came
    quota: int = 0  # requests that may be let in, given for
    quota_second: int = 0  # of the database's clock, which ends
    quota_until: float = -math.inf
    refused_until: float = -math.inf
    slots_refused_until: float = -math.inf
    unspent: dict[int, int] = field(default_factory=dict)
    slots: int = 0  # held
    running: int = 0
    most_running: int = 0  # since the last look at idle slots
    waiting: int = 0
    tokens: int = 0  # not told yet
    telling: int = 0  # on their way
    alone: dict[int, int] = field(default_factory=dict)  # let in by second while the database was away
    asking: "asyncio.Future[None] | None" = None
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    def lacks_news(self, now: float) -> bool:
        """Whether the shared count of tokens has to be read before a request is let in."""
        counted = self.limits.tokens_per_minute is not None or self.limits.token_budget is not None
        return counted and now - self.heard_at > FRESH_S

    def lacks_quota(self, now: float) -> bool:
        """Whether there is no request left to let in."""
        return self.limits.requests_per_minute is not None and (self.quota < 1 or now >= self.quota_until)

    def lacks_slot(self) -> bool:
        """Whether all slots that are held here are in use."""
        return self.limits.max_concurrent is not None and self.running >= self.slots

    def let_in(self) -> None:
        """Spend a request and a slot, neither of which may be lacking."""
        if self.limits.requests_per_minute is not None:
            self.quota -= 1
        self._run()

    def let_in_alone(self, now: float) -> None:
        """Let a request in by what this process has counted itself. Raises: TooManyRequests."""
        limit, second = self.limits.requests_per_minute, int(now)
        self.alone = {at: count for at, count in self.alone.items() if at >= second - MINUTE_S}
        if limit is not None and sum(self.alone.values()) >= limit:
            raise self.refuse_requests(now, free_in_s=min(self.alone) + MINUTE_S + 1 - now)
        if self.limits.max_concurrent is not None and self.running >= self.limits.max_concurrent:
            raise self.refuse_slot(now)
        self.alone[second] = self.alone.get(second, 0) + 1
        self._run()

    def _give_up_quota(self) -> None:
        self.unspent[self.quota_second] = self.unspent.get(self.quota_second, 0) + self.quota
        self.quota = 0

    def _run(self) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)

    def finish(self, tokens: int) -> None:
        """Free a slot and count what the request used."""
        self.running -= 1
        if self.limits.tokens_per_minute is not None or self.limits.token_budget is not None:
            self.tokens += tokens
        self.freed.set()

    def due(self, now: float, interval_s: float) -> bool:
        """Whether there is something to tell the database."""
        if self.unspent or (self.quota and now >= self.quota_until):
            return True
        if self.tokens and now - self.heard_at >= interval_s:
            return True
        return self.slots > self.most_running or (self.slots > 0 and now - self.written_at >= HEARTBEAT_S)

    def watched(self, now: float, interval_s: float) -> bool:
        """Whether the shared count of tokens should be read again: requests come, and it may be near the limit."""
        recent = self.running > 0 or now - self.asked_at < 5 * FRESH_S
        counted = self.limits.tokens_per_minute is not None or self.limits.token_budget is not None
        return recent and counted and now - self.heard_at >= interval_s

    def forgettable(self, now: float) -> bool:
        """Whether nothing would be lost with it."""
        held = self.running or self.waiting or self.slots or self.tokens or self.telling or self.unspent or self.quota
        return not held and now - self.asked_at > MINUTE_S

    def claim(self, now: float, *, idle: bool = False, last: bool = False) -> Claim:
        """Say what to tell and to ask; what is given back is gone from here at once.

        `idle`: slots that nobody used lately are given back. `last`: everything that is not in use is.
        """
        if self.quota and (last or now >= self.quota_until):
            self._give_up_quota()
        unspent, self.unspent = self.unspent, {}
        self.telling, self.tokens = self.tokens, 0
        wanted = 0
        if self.limits.requests_per_minute is not None and self.waiting > self.quota:
            wanted = max(self.waiting, self.limits.requests_per_minute // CHUNKS)
        slots = 0
        if self.limits.max_concurrent is not None:
            keep = self.running if last else self.most_running if idle else self.slots
            self.slots = min(self.slots, keep)
            slots = max(self.slots, self.running + self.waiting)
        if idle:
            self.most_running = self.running
        return Claim(self.key, self.limits, wanted, self.running, slots, unspent, self.telling)

    def hear(self, ledger: Ledger, claim: Claim, asked_at: float, now: float, *, written: bool) -> None:
        """Take in what the database said to a claim."""
        if ledger.requests:
            if self.quota and self.quota_second != ledger.second:
                self._give_up_quota()
            self.quota += ledger.requests
            self.quota_second = ledger.second
            self.quota_until = max(asked_at + ledger.second_left_s, now + _LATE_S)
        self.ledger, self.heard_at, self.telling = ledger, asked_at, 0
        if claim.requests and not ledger.requests:
            self.refused_until = asked_at + min(_REFUSED_FOR_S, max(0.0, ledger.requests_free_in_s))
        if written:
            self.written_at = asked_at
            self.slots = ledger.slots
            if ledger.slots < claim.slots_wanted:
                self.slots_refused_until = asked_at + _SLOTS_REFUSED_FOR_S

    def take_back(self) -> None:
        """Keep what could not be told. It may have been heard all the same: then it counts twice, never not at all."""
        self.tokens, self.telling = self.tokens + self.telling, 0

    def check_tokens(self, now: float) -> None:
        """Refuse a request whose key has used up its tokens. Raises: TooManyRequests, InsufficientQuota."""
        limits, elapsed_s, untold = self.limits, now - self.heard_at, self.tokens + self.telling
        if limits.token_budget is not None and self.ledger.budget_spent + untold >= limits.token_budget:
            raise self._refuse_budget(elapsed_s)
        if limits.tokens_per_minute is not None and self.ledger.tokens_used + untold >= limits.tokens_per_minute:
            free_in_s = self.ledger.tokens_free_in_s - elapsed_s if self.ledger.tokens_free_in_s else MINUTE_S
            text = f"The key {self.name!r} may use {limits.tokens_per_minute} tokens a minute."
            raise self._refuse(text, free_in_s, now)

    def refuse_requests(self, now: float, free_in_s: float | None = None) -> TooManyRequests:
        """Make the error of a key that has made its requests of the minute."""
        left_s = self.ledger.requests_free_in_s - (now - self.heard_at) if free_in_s is None else free_in_s
        text = f"The key {self.name!r} may make {self.limits.requests_per_minute} requests a minute."
        return self._refuse(text, left_s, now)

    def refuse_slot(self, now: float) -> TooManyRequests:
        """Make the error of a key that runs as many requests as it may."""
        text = f"The key {self.name!r} may run {self.limits.max_concurrent} requests at the same time."
        return self._refuse(text, 1.0, now)

    def headers(self, now: float) -> dict[str, str]:
        """Say, as OpenAI does, what is left of the minute, as far as this process knows."""
        limits, ledger, said = self.limits, self.ledger, {}
        elapsed_s = min(now - self.heard_at, MINUTE_S)
        if limits.requests_per_minute is not None:
            left = max(0, limits.requests_per_minute - ledger.requests_used + self.quota)
            said |= _headers("requests", limits.requests_per_minute, left, ledger.requests_clear_in_s - elapsed_s)
        if limits.tokens_per_minute is not None:
            left = max(0, limits.tokens_per_minute - ledger.tokens_used - self.tokens - self.telling)
            said |= _headers("tokens", limits.tokens_per_minute, left, ledger.tokens_clear_in_s - elapsed_s)
        return said

    def _refuse(self, text: str, free_in_s: float, now: float) -> TooManyRequests:
        wait_s = max(1, math.ceil(free_in_s))
        error = TooManyRequests(f"{text} Try again in {wait_s} s.")
        error.retry_after_s, error.headers = wait_s, self.headers(now)
        return error

    def _refuse_budget(self, elapsed_s: float) -> MulliganError:
        limits = self.limits
        whole = "in all" if limits.budget_period == "total" else f"a {limits.budget_period} (UTC)"
        error = InsufficientQuota(f"The key {self.name!r} has used its budget of {limits.token_budget} tokens {whole}.")
        error.headers = {"x-should-retry": "false"}  # the SDKs would try again at once, and in vain
        free_in_s = self.ledger.budget_free_in_s
        if free_in_s:
            error.retry_after_s = max(1, math.ceil(free_in_s - elapsed_s))
        return error


def _headers(what: str, limit: int, left: int, clear_in_s: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(left),
        f"x-ratelimit-reset-{what}": render_duration(clear_in_s),
    }


def render_duration(seconds: float) -> str:
    """Render a duration as OpenAI's headers do: `0s`, `250ms`, `12s`, `1m1s`."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
