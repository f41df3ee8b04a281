# noqa: INP001 - a script, and no package
"""`python docker/alive.py worker|beat`: the health check of a part that listens on no port.

It is alive where its process runs, and could do its work now: the database and the broker answer. Exits with 0 or 1.
"""

import asyncio
import sys

import psutil

from server.errors import MulliganError
from server.settings import Settings
from server.store.database import Database
from server.supervisor.plan import find_broker


def runs(part: str) -> bool:
    """Say whether a Celery process of ours on this very broker is the part."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "trainer.worker:app" in words and part in words:
            try:
                if process.environ().get("MULLIGAN_BROKER_URL") == Settings().broker_url:
                    return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
            except psutil.Error:  # it ended meanwhile, or belongs to another user
                continue
    return False


async def ask(settings: Settings) -> None:
    """Ask the database and the broker for a sign of life. Raises MulliganError."""
    await find_broker(settings.broker_url)
    database = Database(settings.database_url)
    try:
        await database.ping()
    finally:
        await database.close()


def main(part: str) -> int:
    """Check one part; say what is wrong."""
    if not runs(part):
        sys.stderr.write(f"no {part} runs\n")
        return 1
    try:
        asyncio.run(ask(Settings()))
    except MulliganError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
