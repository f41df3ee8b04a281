"""`/docs`: the page that shows the OpenAPI document, by Swagger UI.

Its script comes from elsewhere and runs on our own address, where an admin may be logged in to the dashboard: so it is
one exact version, and a browser runs it only where its hash is this one.
"""

import inspect

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

VERSION = "5.35.0"
HASHES = {
    "swagger_js_url": "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9",
    "swagger_css_url": "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I",
}
"""Of the package's files in that version, by the name of FastAPI's parameter for each."""

router = APIRouter(include_in_schema=False)


def render_reference() -> str:
    """Render the page, with the hash beside each file that comes from elsewhere."""
    known = inspect.signature(get_swagger_ui_html).parameters
    urls = {name: known[name].default.replace("@5/", f"@{VERSION}/") for name in HASHES}
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Mulligan",
        swagger_js_url=urls["swagger_js_url"],
        swagger_css_url=urls["swagger_css_url"],
        swagger_favicon_url="data:,",
    )
    text = bytes(page.body).decode()
    for name, url in urls.items():
        text = text.replace(f'"{url}"', f'"{url}" integrity="{HASHES[name]}" crossorigin="anonymous"')
    return text


@router.get("/docs")
@router.head("/docs")
async def show_reference() -> HTMLResponse:
    """Show the API's reference."""
    return HTMLResponse(render_reference(), headers={"x-frame-options": "DENY", "referrer-policy": "no-referrer"})
