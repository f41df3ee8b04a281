"""Checks training options before they are stored: a round would find a misspelt one only when its turn has come.

Which options there are, and what they may be, the trainer alone knows (`trainer.options`): it is asked in a process of
its own, since the server imports nothing that trains.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from server.errors import InvalidRequest

_REFUSED = 3
_MOST_S = 30.0


async def check_options(*layers: Mapping[str, Any]) -> None:
    """Check the options of a task and of a round, the later layer laid over the earlier; nothing given is right.

    Where the trainer cannot be asked (it is not installed here, or does not answer), they pass, and the round tells.

    Raises: InvalidRequest that names the option and says what is wrong with it.
    """
    if not any(layers):
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    asked = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trainer.options"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    try:
        async with asyncio.timeout(_MOST_S):
            said, _ = await asked.communicate(json.dumps(layers).encode())
    except TimeoutError:
        asked.kill()
        await asked.wait()
        return
    if asked.returncode == _REFUSED:
        refusal = json.loads(said)
        raise InvalidRequest(refusal["message"], param=refusal["param"])
