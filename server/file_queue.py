"""The queue of files: kombu's filesystem transport, made safe for a reader that looks while a message is written.

Kombu opens a message's file under its final name and then writes, so a reader may take it empty, and a worker that
reads an empty message ends. Here a message appears whole, by a rename, and what cannot be read is dropped: the rounds
table knows what has to be done. Used through `server.broker`; nothing else imports it.
"""

import json
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

import structlog
from kombu.transport import TRANSPORT_ALIASES, filesystem, virtual

SCHEME = "mulligan-files"

log = structlog.get_logger(__name__)


class Channel(filesystem.Channel):
    """One end of the queue."""

    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns():020d}_{uuid.uuid4().hex}.{queue}.msg"
        part = folder / f"{name}.part"  # not a name that readers look for
        part.write_text(json.dumps(payload))
        part.replace(folder / name)

    def _get(self, queue: str) -> dict[str, Any]:
        for message in sorted(Path(self.data_folder_in).iterdir()):  # the oldest first
            if message.name.partition(".")[2] != f"{queue}.msg":
                continue
            taken = message.with_suffix(".taken")
            try:
                message.rename(taken)
            except FileNotFoundError:
                continue  # another worker was quicker
            text = taken.read_text()
            taken.unlink()
            try:
                return json.loads(text)
            except ValueError:
                log.warning("a message that cannot be read was dropped", message=message.name)
        raise Empty


class Transport(filesystem.Transport):
    """The transport that `celery_config` names for a queue of files."""

    Channel = Channel

    def __init__(self, client: Any, **more: Any) -> None:
        super().__init__(client, **more)
        # Kombu shares what is bound to what among all connections of a process, whatever their folders.
        self.state = virtual.BrokerState()


TRANSPORT_ALIASES.setdefault(SCHEME, f"{__name__}:Transport")
