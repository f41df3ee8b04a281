"""What a rank other than the first does: it trains on what rank 0 samples, and on nothing else.

Run by trainer.rank. It hears its orders (the options of the round, the adapter it begins with), opens the same model,
and takes the same steps with the members that rank 0 kept; trainer.grpo adds the ranks' gradients up, so each makes the
same updates. It has no desk, no engine and no database, and writes nothing.
"""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from server.errors import MulliganError
from server.logs import configure_logs
from server.redaction import make_log_redactor
from server.settings import Settings
from trainer.errors import RoundFailed
from trainer.grpo import ReflectionTrainer
from trainer.lora import choose_device, choose_threads, open_model
from trainer.memory import take_share
from trainer.ranks import End, Ranks
from trainer.samples import Member
from trainer.settings import TrainerSettings

_TRAINED_ON = (
    *("group", "prompt_ids", "token_ids", "logprobs", "reward", "logged"),
    *("episode_id", "first_prompt_ids", "retry_ids"),
)
"""What of a member the optimiser reads. Verdicts and texts stay with rank 0."""


NO_ORDERS = b""
"""The word for a round that has nothing to train."""


class Orders(msgspec.Struct):
    """What a rank has to know of a round to train with rank 0."""

    options: dict[str, Any]  # of the round, all layers laid over each other
    adapter: str | None  # the path of the one that the round goes on from
    folder: str  # the round's


def encode_orders(options: TrainerSettings, adapter: str | None, folder: Path) -> bytes:
    """Write orders down for the others to hear."""
    return msgspec.msgpack.encode(Orders(options.model_dump(mode="json"), adapter, str(folder)))


def encode_members(members: Sequence[Member] | None) -> bytes:
    """Write a step's members down for the others to hear; None, where no further step is taken, is an empty word."""
    if members is None:
        return b""
    return msgspec.msgpack.encode([[_plain(getattr(one, name)) for name in _TRAINED_ON] for one in members])


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else list(value)


def decode_members(word: bytes) -> list[Member] | None:
    """Read a step's members."""
    if not word:
        return None
    return [Member(**dict(zip(_TRAINED_ON, one, strict=True))) for one in msgspec.msgpack.decode(word)]


def refuse_without_gpu(options: TrainerSettings, ranks: Ranks) -> None:
    """Let several ranks train on a GPU each, or on the CPU where that was asked for. Raises: RoundFailed."""
    if ranks.size > 1 and options.device != "cpu" and not torch.cuda.is_available():
        raise RoundFailed(
            f"accelerate's config starts {ranks.size} processes, and there is no GPU for number {ranks.number + 1}: "
            "lower num_processes, free a GPU, or set MULLIGAN_TRAINER__DEVICE=cpu to compute on the CPU"
        )


def follow(ranks: Ranks, settings: Settings) -> None:
    """Train with rank 0 until it takes no further step. Raises: RoundFailed, RankLost."""
    word = ranks.hear()
    if word == NO_ORDERS:
        return
    orders = msgspec.msgpack.decode(word, type=Orders)
    options, engine = TrainerSettings.model_validate(orders.options), settings.engine
    refuse_without_gpu(options, ranks)
    take_share(engine.trainer_share, choose_device(options))
    model, tokenizer = open_model(engine.model, orders.adapter, engine.lora_target_modules, options)
    torch.set_num_threads(choose_threads(model, options, ranks.size))
    ReflectionTrainer(
        model,
        tokenizer,
        options,
        sample=lambda _number: decode_members(ranks.hear()),
        step_done=lambda *_: None,
        output_dir=Path(orders.folder) / "trl",
        on_cpu=choose_device(options).type == "cpu",
        ranks=ranks,
    ).run()


def main(argv: list[str] | None, ranks: Ranks, end: End) -> int:
    """Follow one round; `argv` is rank 0's business."""
    del argv
    settings = Settings()
    configure_logs(settings.log_level, json=settings.log_json, redact=make_log_redactor(settings.log.redact))
    try:
        follow(ranks, settings)
    except Exception as error:  # noqa: BLE001 -- the launcher reads the reason
        if not isinstance(error, MulliganError):
            traceback.print_exc(file=sys.stderr)
        end(error)
        return 1
    return 0
