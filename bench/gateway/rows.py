"""The rows of the table: what each gateway is asked. Read by `bench.gateway.run` and `bench.gateway.report`."""

from dataclasses import dataclass

from bench.gateway import gateways
from bench.gateway.mulligan import CHECKED_TASK, mulligan
from bench.gateway.setting import Start


@dataclass(frozen=True)
class Gateway:
    """Something that stands between client and engine."""

    name: str
    start: Start


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    id: str
    title: str
    gateway: Gateway
    model: str = "base"
    fail_once: bool = False
    outcome: str = ""
    streams: bool = True
    share: float = 1.0  # of the requests: slow peers get fewer
    workers: int = 0  # of the rows that compare workers; those share all cores with everything else


def _mulligan_rows() -> list[Row]:
    rows: list[Row] = []
    for database, shown in (("sqlite", "SQLite"), ("postgres", "Postgres")):
        gateway = Gateway(f"mulligan-{database}", mulligan(database))
        rows += [
            Row(f"mulligan-{database}", f"Mulligan, no verifier ({shown})", gateway, outcome="unverified"),
            Row(
                f"checked-{database}", f"Mulligan, json_schema passes ({shown})", gateway,
                model=CHECKED_TASK, outcome="passed", streams=False,
            ),
            Row(
                f"recovered-{database}", f"Mulligan, fails once ({shown})", gateway,
                model=CHECKED_TASK, fail_once=True, outcome="recovered", streams=False, share=0.4,
            ),
        ]  # fmt: skip
    return rows


def _workers_row(count: int) -> Row:
    gateway = Gateway(f"workers-{count}", mulligan("postgres", workers=count, all_cores=True))
    title = f"Mulligan, {count} worker{'s' * (count > 1)} (Postgres)"
    return Row(f"workers-{count}", title, gateway, outcome="unverified", streams=False, workers=count)


ROWS: tuple[Row, ...] = (
    Row("direct", "direct: no gateway", Gateway("direct", gateways.direct)),
    Row("noop", "uvicorn no-op: no engine", Gateway("noop", gateways.plain_app("noop", "noop")), streams=False),
    Row("router", "sglang-router", Gateway("router", gateways.sglang_router)),
    *_mulligan_rows(),
    Row("aiohttp", "FastAPI + aiohttp", Gateway("aiohttp", gateways.plain_app("aiohttp_proxy", "aiohttp")), share=0.4),
    Row("httpx", "FastAPI + httpx", Gateway("httpx", gateways.plain_app("httpx_proxy", "httpx")), share=0.2),
    Row("litellm", "LiteLLM proxy", Gateway("litellm", gateways.litellm), share=0.05),
    *(_workers_row(count) for count in (1, 2)),
)
"""In the order of the table."""


def pick_rows(ids: list[str] | None) -> list[Row]:
    """Pick rows by their ids, all where none is named. Raises: KeyError for one that is not there."""
    by_id = {row.id: row for row in ROWS}
    return [by_id[name] for name in ids] if ids else list(ROWS)
