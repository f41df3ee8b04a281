"""Serves the built web app: one page and its assets, with the headers that keep hostile text harmless in a browser.

There is nothing secret here: whoever has no session sees the login. It must never write anything into a page: what the
page shows it asks of the API, and renders as text.
"""

import gzip
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.errors import NotFound

STATIC = Path(__file__).parent / "static"
"""Where `make admin` and the build of a wheel put the web app."""

SECURITY_HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
"""What every answer under `/admin` carries."""

NOT_BUILT = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Mulligan: the dashboard is not built</title></head>
<body>
<h1>The dashboard is not built</h1>
<p>The server runs, and the API is whole; only these pages are missing.</p>
<p>In the folder of the source run <code>make admin</code>, then load this page again. It fetches packages for the
build, so it needs the network once. What is installed from a wheel has the dashboard in it.</p>
</body>
</html>
"""

_ASSET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_FOR_EVER = "public, max-age=31536000, immutable"  # their names carry their hashes

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class _File:
    plain: bytes
    packed: bytes


@router.get("/admin")
@router.get("/admin/")
@router.head("/admin")
@router.head("/admin/")
async def show_page(request: Request) -> Response:
    """Show the one page of the web app, or how to build it."""
    headers = {**SECURITY_HEADERS, "cache-control": "no-store"}
    page = STATIC / "index.html"
    if not page.is_file():
        return Response(NOT_BUILT, 503, headers, "text/html; charset=utf-8")
    return _answer(request, _read(page, page.stat().st_mtime_ns), "text/html; charset=utf-8", headers)


@router.get("/admin/assets/{name:path}")
@router.head("/admin/assets/{name:path}")
async def show_asset(name: str, request: Request) -> Response:
    """Show a script, a style or a picture of the web app."""
    path = STATIC / "assets" / name
    if not _ASSET.fullmatch(name) or path.suffix not in _TYPES or not path.is_file():
        raise NotFound(f"The dashboard has no file {name[:200]!r}: load the page again.", code="unknown_url")
    headers = {**SECURITY_HEADERS, "cache-control": _FOR_EVER}
    return _answer(request, _read(path, path.stat().st_mtime_ns), _TYPES[path.suffix], headers)


def _answer(request: Request, file: _File, media_type: str, headers: dict[str, str]) -> Response:
    headers = {**headers, "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.packed, 200, {**headers, "content-encoding": "gzip"}, media_type)
    return Response(file.plain, 200, headers, media_type)


@lru_cache(maxsize=64)
def _read(path: Path, _written_ns: int) -> _File:
    """Read a file once for each time that it was written: packing it takes longer than all the rest."""
    plain = path.read_bytes()
    return _File(plain, gzip.compress(plain, 9))
