"""`python -m trainer.options`: checks training options for the server, which imports nothing that trains.

Reads a JSON list of layers from standard input, those of the task before those of the round, and lays them over the
settings as a round would. Says nothing where they hold; else writes JSON `{"message", "param"}` and exits with REFUSED.
"""

import json
import sys

from server.errors import InvalidRequest
from trainer.settings import TrainerSettings

REFUSED = 3


def main() -> int:
    """Check what standard input holds."""
    layers = json.load(sys.stdin)
    try:
        TrainerSettings().override(*layers)
    except InvalidRequest as error:
        json.dump({"message": error.message, "param": error.param}, sys.stdout)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
