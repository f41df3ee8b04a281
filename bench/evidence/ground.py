"""What a rival is trained on and with: its order, the model with a fresh adapter, and the tables of the server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from server.settings import Settings
from trainer.desk import Stores
from trainer.settings import TrainerSettings


@dataclass(frozen=True)
class Order:
    """What is to be trained; `settings` are the server's, `round` is the round to rival."""

    mode: str
    settings: Settings
    task: str
    round: str
    rate: float
    seed: int
    adapter: str
    target: Path
    notes: Path


@dataclass
class Ground:
    """What both ways stand on: the model with a fresh adapter, its tokenizer, the options of the round, the tables."""

    order: Order
    stores: Stores
    options: TrainerSettings
    model: PeftModel
    tokenizer: Any
