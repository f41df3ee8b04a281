"""One rank of a trainer that is spread over several GPUs: `python -m trainer.rank`, started by trainer.launcher.

Rank 0 does the round as a lone trainer does (trainer.round); the others follow it (trainer.following). Before any of
the seconds of importing torch, a rank binds its life to the launcher's, and lets itself see one GPU only: to torch,
accelerate and TRL each rank is a trainer of its own, and all that they have in common goes through trainer.ranks.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import MutableMapping

from server.errors import MulliganError

LAUNCHER = "MULLIGAN_LAUNCHER_PID"
"""The variable that tells a rank the process that has to live for it to live."""

LOST_S = 30.0
"""What a rank that lost the others waits, before it says so, for the launcher to tell who failed first, and end it."""

_PR_SET_PDEATHSIG = 1


def bind_to(launcher: int) -> None:
    """Let the kernel kill us when the launcher dies, even by kill -9."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it died before we asked
        os._exit(1)


def see_one_gpu(environment: MutableMapping[str, str], local_rank: int) -> None:
    """Leave of the GPUs that are visible the one of this rank; where it has none, none is left."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    visible = [one.strip() for one in listed.split(",") if one.strip()] if listed is not None else None
    if visible is None:
        environment["CUDA_VISIBLE_DEVICES"] = str(local_rank)
    else:
        environment["CUDA_VISIBLE_DEVICES"] = visible[local_rank] if local_rank < len(visible) else ""


def take_place(environment: MutableMapping[str, str]) -> tuple[int, int, str, int]:
    """Take from the environment our number, how many ranks there are, and where they meet.

    What is left looks like that of a lone process: accelerate and TRL know of no other rank and wait for none.
    """
    number, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    told = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")
    for name in (*told, "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    for name in [name for name in environment if name.startswith("ACCELERATE_")]:
        del environment[name]
    return number, size, address, port


def leave_word(error: Exception) -> None:
    """Leave the reason where the launcher looks for it (torchrun's error file). Only the first failure is told."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        word = {"message": {"message": _describe(error), "extraInfo": {"timestamp": str(int(time.time()))}}}
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 -- no import that can be done without
            json.dump(word, file)


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, MulliganError) else f"{type(error).__name__}: {error}"


def main(argv: list[str] | None = None) -> int:
    """Be the rank that the environment says."""
    bind_to(int(os.environ[LAUNCHER]))
    see_one_gpu(os.environ, int(os.environ["LOCAL_RANK"]))
    number, size, address, port = take_place(os.environ)
    from trainer import following, round as whole  # noqa: I001, PLC0415 -- seconds to import
    from trainer.ranks import RankLost, meet  # noqa: PLC0415
    from trainer.settings import TrainerSettings  # noqa: PLC0415

    def end(error: Exception) -> None:
        if isinstance(error, RankLost):
            time.sleep(LOST_S)
        leave_word(error)

    try:
        ranks = meet(number, size, address, port, timeout_s=TrainerSettings().rank_timeout_s)
    except RankLost as error:
        end(error)
        return 1
    return whole.main(argv, ranks, end) if number == 0 else following.main(argv, ranks, end)


if __name__ == "__main__":
    sys.exit(main())
