"""`GET /metrics`: what Prometheus scrapes. Not for everybody: it names tasks, verifiers and engines of all tenants.

Whoever may read everything may read it with an API key; a scraper had better show the token of the settings, which
opens this door and no other, and works while the database is away.
"""

import hmac
from typing import Any

from fastapi import APIRouter, Request, Response

from server.api.auth import READ_ALL, require_scope
from server.api.context import Context, Rooms
from server.api.rest.access import read_key
from server.errors import NotFound
from server.telemetry.exposition import render

PATH = "/metrics"
LET_IN = "scrapes"
"""Stands in the request's state where the gate found that it needs no API key."""

router = APIRouter(tags=["health"])


def needs_no_key(authorization: bytes, context: Context) -> bool:
    """Say whether a scrape shows the token of the settings, or needs nothing at all."""
    telemetry = context.settings.telemetry
    if telemetry.metrics_open:
        return True
    scheme, _, shown = authorization.partition(b" ")
    return (
        bool(telemetry.metrics_token)
        and scheme.lower() == b"bearer"
        and hmac.compare_digest(shown.strip(), telemetry.metrics_token.encode())
    )


@router.get(PATH, response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def show_metrics(rooms: Rooms, request: Request) -> Any:
    """Give all metrics as Prometheus reads them; OpenMetrics where the `accept` header asks for it.

    With the token of `MULLIGAN_TELEMETRY__METRICS_TOKEN`, or the key of a viewer, an approver or an admin.
    """
    if not getattr(request.state, LET_IN, False):
        require_scope(await read_key(request), READ_ALL)
    if rooms.meter is None or rooms.vital_signs is None:
        raise NotFound("Metrics are off: MULLIGAN_TELEMETRY__METRICS is false.")
    once = await rooms.vital_signs()
    content_type, body = render(rooms.meter.read_all(), once, request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
