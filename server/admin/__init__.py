"""The admin dashboard: its door, its login, and (under `ui/`) the web app that is built into `static/`.

What its pages show and do they ask of the API under `/v1`, by the same routes and with the same rights as everybody.
"""

from fastapi import APIRouter

from server.admin import pages, session


def admin_routers() -> tuple[APIRouter, ...]:
    """List the routes of the dashboard, for the application that serves them."""
    return pages.router, session.make_router()
