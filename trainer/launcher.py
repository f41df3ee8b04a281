"""Starts the ranks of a trainer by `accelerate launch`, and says why they failed: `python -m trainer.launcher`.

Started by trainer.jobs with accelerate's own arguments. accelerate's launcher (torchrun beneath it) starts one process
for each rank, and ends them all as soon as one fails. Its ranks run in sessions of their own, out of reach of a signal
to our group, so each binds its life to ours (trainer.rank). It must never train anything itself.
"""

import os
import signal
import sys
from typing import Any

from trainer.rank import LAUNCHER


def main(argv: list[str] | None = None) -> int:
    """Launch, wait, and print as the last line of the log which rank failed and why, if one did."""
    from accelerate.commands.launch import launch_command, launch_command_parser  # noqa: PLC0415 -- seconds to import
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415

    arguments: Any = launch_command_parser().parse_args(argv)
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        _say(explain(number, arguments.num_processes, failure.exitcode, failure.message))
        return 1
    except Exception as error:  # noqa: BLE001 -- the job reads the reason from the log's last line
        _say(f"accelerate launch could not start the trainer: {type(error).__name__}: {error}")
        return 1
    return 0


def explain(number: int, size: int, exitcode: int, message: str) -> str:
    """Say why a rank failed: in its own words where it left any, else how it ended."""
    if exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (out of memory?)" if exitcode == -signal.SIGKILL else ""
        return f"rank {number} of {size} was killed by {name}{hint}"
    if not message or message.startswith("To enable traceback"):  # what torchrun says where there are no last words
        return f"rank {number} of {size} ended with status {exitcode}, without a word"
    return message if number == 0 else f"on rank {number} of {size}: {message}"


def _say(reason: str) -> None:
    print("error:", " ".join(reason.split()), file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
