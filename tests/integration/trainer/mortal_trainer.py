"""A trainer that dies where it is told to: `python -m tests.integration.trainer.mortal_trainer`.

Reads lines `round epoch point` and answers each with how a trainer of its own, forked for it, ended: `0`, or `-9` where
it killed itself. Forking saves the seconds that torch and TRL take to be imported. Points: `sampling K`, `kept K`,
`updated K`, `pushing K` (K: the step), `gate`, and `none`. The gate says `inconclusive` without asking anybody.
Settings come from the environment.
"""

import asyncio
import os
import signal
import sys

import torch

from server.logs import configure_logs
from server.orchestration.verification import allow
from server.settings import Settings
from trainer import gate, promotion, rollout, training
from trainer import round as whole
from trainer.settings import TrainerSettings

torch.set_num_threads(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Put the death where it belongs."""
    what, _, step = point.partition(" ")
    at = int(step or 0)
    sample, keep, tell = training.RoundSteps._sample, training.RoundSteps._keep, training.RoundSteps.tell
    retry, push = rollout.Sampler._retry, promotion.push
    now = {"step": 0, "retries": 0}

    async def sample_step(self, number):
        now.update(step=number, retries=0)
        return await sample(self, number)

    async def retry_or_die(self, *args):
        done = await retry(self, *args)
        now["retries"] += 1
        if what == "sampling" and now["step"] == at and now["retries"] == 5:
            die()
        return done

    async def keep_and_die(self, number, members):
        await keep(self, number, members)
        if (what, at) == ("kept", number):
            die()

    async def tell_or_die(self, number, figures, changed):
        if (what, at) == ("updated", number):
            die()
        await tell(self, number, figures, changed)

    async def push_and_die(engine, name, path):
        await push(engine, name, path)
        if what == "pushing" and f".{at}-" in name:
            die()

    async def decide(*_args):
        if what == "gate":
            die()
        return {"decision": gate.Decision.INCONCLUSIVE, "reason": "as the test says"}

    training.RoundSteps._sample, training.RoundSteps._keep = sample_step, keep_and_die
    training.RoundSteps.tell, rollout.Sampler._retry = tell_or_die, retry_or_die
    promotion.push, whole.hold_gate = push_and_die, decide


def live(round_id: str, epoch: int, point: str) -> int:
    """Run the round in a child; say how it ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            arm(point)
            asyncio.run(whole.work(Settings(), TrainerSettings(), round_id, epoch))
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    settings = Settings()
    configure_logs(settings.log_level, json=settings.log_json)
    allow(settings.verifiers)
    for line in sys.stdin:
        round_id, epoch, point = line.split(maxsplit=2)
        print("ended", live(round_id, int(epoch), point.strip()), flush=True)


if __name__ == "__main__":
    main()
