"""Ranks of a trainer without launcher, engine and round: `python -m tests.integration.trainer.forked_ranks`.

Reads lines of JSON (a folder, how many ranks, options, a fault) and forks the ranks for each, so that torch and TRL are
imported once. Every rank trains a tiny model on the same members and leaves in the folder its weights, or the error
that ended it; the answer to a line are the exit statuses. A fault is what rank 1 meets in the second step.
"""

import json
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.integration.trainer.test_grpo import SETTINGS, make_adapter_model, make_members
from tests.integration.trainer.tiny import make_tokenizer
from trainer.errors import RoundFailed
from trainer.following import decode_members, encode_members
from trainer.grpo import ReflectionTrainer
from trainer.ranks import ALONE, GlooRanks, TCPStore

torch.set_num_threads(1)
MOST_S = 240.0


class Faulty(ReflectionTrainer):
    """Meets its fault in the second step, after a part of the work is done; keeps how many rows its passes had."""

    fault = ""

    def _compute_loss(self, model, inputs):
        rows = len(inputs["advantages"])
        self.__dict__.setdefault("passes", []).append([self.steps.number, rows])
        loss = super()._compute_loss(model, inputs)
        if self.ranks.number == 1 and self.steps.number == 2:
            if self.fault == "short" and rows > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if self.fault == "fail":
                raise RoundFailed("the loss became nan in step 2")
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
        return loss

    def _clip_grad_norm(self, model):
        if self.fault == "drift" and self.ranks.number == 1 and self.steps.number == 2:
            next(one for one in model.parameters() if one.requires_grad).grad *= 1.0001
        return super()._clip_grad_norm(model)


def train(number: int, asked: dict, port: int) -> None:
    folder, size = Path(asked["folder"]), asked["ranks"]
    ranks = ALONE
    if size > 1:
        store = TCPStore("127.0.0.1", port, size, is_master=number == 0, wait_for_workers=False)
        ranks = GlooRanks(number, size, store, asked.get("timeout_s", MOST_S))
    model, told = make_adapter_model(), []
    members = [
        replace(one, retry_ids=one.token_ids[:3], first_prompt_ids=one.prompt_ids[:4]) for one in make_members(model)
    ]

    def draw(step: int):
        drawn = members if step % 2 else members[::-1]
        ranks.tell(encode_members(drawn))
        return drawn

    Faulty.fault = asked.get("fault", "")
    trainer = Faulty(
        model,
        make_tokenizer(),
        SETTINGS.override({"microbatch_sequences": 3, "learning_rate": 1e-3, **asked["options"]}),
        sample=draw if number == 0 else lambda _step: decode_members(ranks.hear()),
        step_done=lambda _number, figures, _changed: told.append(figures),
        output_dir=folder / "trl",
        on_cpu=True,
        ranks=ranks,
    )
    begun = read_weights(model)
    try:
        assert trainer.accelerator.num_processes == 1  # to accelerate each rank is alone
        trainer.run()
    except RoundFailed as error:
        (folder / f"error-{number}").write_text(f"{type(error).__name__}: {error}")
        raise
    torch.save((read_weights(model), told, trainer.passes, begun), folder / f"left-{number}")


def read_weights(model) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def fork(number: int, asked: dict, port: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        train(number, asked, port)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def run(asked: dict) -> list[int]:
    """Fork the ranks and wait for all; once the others have ended, one that was stopped is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [fork(number, asked, port) for number in range(asked["ranks"])]
    statuses = {}
    while len(statuses) < len(children):
        child, status = os.waitpid(-1, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            statuses[child] = os.waitstatus_to_exitcode(status)
        if asked.get("fault") == "hang" and children[0] in statuses and children[1] not in statuses:
            os.kill(children[1], signal.SIGKILL)
    return [statuses[child] for child in children]


def main() -> None:
    for line in sys.stdin:
        print("ended", json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
