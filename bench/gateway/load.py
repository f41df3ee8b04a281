"""The load generator: keep-alive connections that ask, check every answer, and note how long it took.

Started by `bench.gateway.measure` as a process of its own. It reads one `Spec` as a line of JSON, warms the gateway up,
prints `ready N` (answers so far), waits for a line, asks, and prints one `Result`. It must never ask more, or for
longer, than it was told.
"""

import asyncio
import sys
import time
from typing import cast

import httptools
import msgspec
import uvloop

_END = b"[DONE]"


class Spec(msgspec.Struct):
    """What is to be asked, and what has to be answered."""

    host: str
    port: int
    body: str
    text: str  # what the assistant's message has to be
    headers: dict[str, str] = {}
    path: str = "/v1/chat/completions"
    requests: int = 1000
    warm_up: int = 100
    concurrency: int = 32
    max_s: float = 30.0  # no new request after that
    patience_s: float = 30.0  # for the last answers, after that
    stream: bool = False
    chunks: int = 0  # what a stream has at least
    stagger_s: float = 0.0  # connections begin spread over that time
    outcome: str = ""  # what `mulligan.outcome` has to be


class Result(msgspec.Struct):
    """What came of it. Times are in milliseconds."""

    answered: int
    wrong: int
    first_wrong: str
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float  # until the first byte of the body
    first_p99_ms: float
    chunks: int
    load_cpu_us: float  # of the load generator itself, a request


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None


class _Mulligan(msgspec.Struct):
    outcome: str


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    mulligan: _Mulligan | None = None


_decoder = msgspec.json.Decoder(_Answer)


def find_flaw(spec: Spec, status: int, body: bytes) -> str:
    """Say what is wrong with an answer; nothing where it is right."""
    if status != 200:
        return f"status {status}: {body[:300]!r}"
    try:
        answers = [_decoder.decode(event) for event in (_read_events(body) if spec.stream else [body])]
    except (ValueError, msgspec.MsgspecError) as error:
        return f"{error}: {body[:300]!r}"
    choices = [answer.choices[0] for answer in answers if answer.choices]
    text = "".join((said.content or "") for choice in choices if (said := choice.message or choice.delta))
    outcome = answers[-1].mulligan.outcome if answers[-1].mulligan else ""
    finished = any(choice.finish_reason == "stop" for choice in choices)
    checks = {
        f"{len(answers)} chunks in place of {spec.chunks}": len(answers) >= spec.chunks,
        f"another text: {text[:300]!r}": text == spec.text,
        "no finish_reason": finished,
        f"outcome {outcome!r} in place of {spec.outcome!r}": not spec.outcome or outcome == spec.outcome,
    }
    return "; ".join(flaw for flaw, right in checks.items() if not right)


def _read_events(body: bytes) -> list[bytes]:
    events = [event[5:].strip() for event in body.split(b"\n\n") if event.startswith(b"data:")]
    if not events or events.pop() != _END:
        raise ValueError("the stream has no end")
    return events


class Load:
    """One run of requests over some connections."""

    def __init__(self, spec: Spec, requests: int, max_s: float) -> None:
        self.spec = spec
        self.left = requests
        self.began = time.perf_counter()
        self.until = self.began + max_s
        self.ended = self.began
        self.latencies: list[float] = []
        self.first: list[float] = []
        self.chunks = self.wrong = 0
        self.first_wrong = ""
        fields = {"host": f"{spec.host}:{spec.port}", "content-type": "application/json", **spec.headers}
        fields["content-length"] = str(len(spec.body.encode()))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.request = f"POST {spec.path} HTTP/1.1\r\n{head}\r\n{spec.body}".encode()

    def take(self) -> bool:
        """Take one request, where another may be made."""
        if self.left <= 0 or time.perf_counter() > self.until:
            return False
        self.left -= 1
        return True

    def note(self, asked: float, first: float, status: int, body: bytes) -> None:
        """Note an answer."""
        self.ended = time.perf_counter()
        self.latencies.append(self.ended - asked)
        self.first.append(first - asked)
        if self.spec.stream:
            self.chunks += body.count(b"data:") - 1
        if flaw := find_flaw(self.spec, status, body):
            self.blame(flaw)

    def blame(self, flaw: str) -> None:
        """Note what is wrong."""
        self.wrong += 1
        self.first_wrong = self.first_wrong or flaw

    async def run(self, connections: "list[Connection]") -> None:
        """Ask over all connections until nothing is left."""
        pause_s = self.spec.stagger_s / len(connections)
        loop = asyncio.get_running_loop()
        endings = [connection.begin(self) for connection in connections]
        for index, connection in enumerate(connections):
            loop.call_later(index * pause_s, connection.ask)
        budget_s = self.until - time.perf_counter() + self.spec.patience_s
        _, pending = await asyncio.wait(endings, timeout=budget_s)
        for _ in pending:
            self.blame(f"no answer in {budget_s:.0f} s")


class Connection(asyncio.Protocol):
    """One keep-alive connection, with one request at a time on it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._load: Load | None = None
        self._done: asyncio.Future[None] | None = None
        self._asked = self._first = 0.0
        self._asking = False
        self._start()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class looks like it, and is none

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so where an answer was awaited, or where more is to be asked."""
        self._transport = None
        if self._load is not None and (self._asking or self._load.left > 0):
            self._load.blame(f"the gateway closed a connection ({exc})")
        self._end()

    def begin(self, load: Load) -> "asyncio.Future[None]":
        """Take part in a run; the future is done when this connection has nothing more to do."""
        self._load = load
        self._done = asyncio.get_running_loop().create_future()
        return self._done

    def ask(self) -> None:
        """Ask once more, or be done."""
        assert self._load is not None
        if self._transport is None or not self._load.take():
            self._end()
            return
        self._asking, self._first = True, 0.0
        self._asked = time.perf_counter()
        self._transport.write(self._load.request)

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Read."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            assert self._load is not None
            self._load.blame(f"not HTTP: {error}")
            self._asking = False
            self.close()

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        if not self._first and not body.startswith(b":"):  # a comment keeps the connection alive; it is no answer
            self._first = time.perf_counter()
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Check the answer and ask again."""
        assert self._load is not None
        self._asking = False
        status, body = self._parser.get_status_code(), b"".join(self._body)
        self._load.note(self._asked, self._first or time.perf_counter(), status, body)
        self._start()
        asyncio.get_running_loop().call_soon(self.ask)

    def _start(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    def _end(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def pick_percentile(sorted_values: list[float], share: float) -> float:
    """Pick a percentile of sorted values; 0 where there are none."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))] if sorted_values else 0.0


def summarise(load: Load, cpu_s: float) -> Result:
    """Summarise a run."""
    latencies, first = sorted(load.latencies), sorted(load.first)
    return Result(
        answered=len(latencies),
        wrong=load.wrong,
        first_wrong=load.first_wrong,
        elapsed_s=load.ended - load.began,
        p50_ms=pick_percentile(latencies, 0.5) * 1000,
        p99_ms=pick_percentile(latencies, 0.99) * 1000,
        first_p50_ms=pick_percentile(first, 0.5) * 1000,
        first_p99_ms=pick_percentile(first, 0.99) * 1000,
        chunks=load.chunks,
        load_cpu_us=cpu_s / max(1, len(latencies)) * 1e6,
    )


async def run(spec: Spec) -> Result:
    """Warm up, say so, wait for the word, and measure."""
    loop = asyncio.get_running_loop()
    made = [loop.create_connection(Connection, spec.host, spec.port) for _ in range(spec.concurrency)]
    connections = [protocol for _, protocol in await asyncio.gather(*made)]
    if spec.warm_up:
        warm = Load(spec, spec.warm_up, spec.max_s)
        await warm.run(connections)
        if warm.wrong:
            return summarise(warm, 0.0)
    print(f"ready {spec.warm_up}", flush=True)
    sys.stdin.readline()
    load, cpu_s = Load(spec, spec.requests, spec.max_s), time.process_time()
    await load.run(connections)
    result = summarise(load, time.process_time() - cpu_s)
    for connection in connections:
        connection.close()
    return result


def main() -> None:
    """Read the spec and print the result."""
    spec = msgspec.json.decode(sys.stdin.readline(), type=Spec)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(msgspec.json.encode(runner.run(run(spec))).decode(), flush=True)


if __name__ == "__main__":
    main()
