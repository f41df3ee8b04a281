"""Trains a rival adapter: `python -m bench.evidence.trained`, with its order as JSON on standard input."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.evidence.ground import Ground, Order
from bench.evidence.supervised import fine_tune
from bench.evidence.whole import learn_whole
from server.engine.replicas import open_replicas
from server.settings import Settings
from server.store.database import Database
from trainer.desk import Stores
from trainer.lora import choose_threads, open_model, write_adapter
from trainer.settings import TrainerSettings


async def train(order: Order) -> dict[str, Any]:
    """Train an adapter, write it and return the notes."""
    database, engine = Database(order.settings.database_url), open_replicas(order.settings.engine)
    stores = Stores.open(database)
    try:
        task, steps = await stores.tasks.get(order.task), await stores.rounds.steps(order.round)
        if task is None:
            raise SystemExit(f"there is no task {order.task}")
        options = TrainerSettings().override(task.training.options, {"seed": order.seed, "steps": len(steps)})
        if order.mode == "whole":  # twice the members in as many updates
            options = options.override({"minibatch_sequences": 2 * options.minibatch_sequences})
        targets = order.settings.engine.lora_target_modules
        model, tokenizer = open_model(order.settings.engine.model, None, targets, options)
        torch.set_num_threads(choose_threads(model, options))
        ground = Ground(order, stores, options, model, tokenizer)
        notes = await fine_tune(ground) if order.mode == "sft" else await learn_whole(ground, engine)
        write_adapter(model, order.target)
        return {**notes, "mode": order.mode, "rate": options.learning_rate if order.mode == "whole" else order.rate}
    finally:
        await engine.close()
        await database.close()


def main() -> None:
    """Read the order, train, and leave the notes."""
    told = json.load(sys.stdin)
    paths = {name: Path(told[name]) for name in ("target", "notes")}
    order = Order(**{**told, **paths, "settings": Settings.model_validate(told["settings"])})
    order.notes.write_text(json.dumps(asyncio.run(train(order))))


if __name__ == "__main__":
    main()
