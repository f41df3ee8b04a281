import json
import struct
from math import prod

from server.settings import DEMO_MODEL


def test_it_is_small_and_whole():
    files = {path.name: path.stat().st_size for path in DEMO_MODEL.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert sum(files.values()) <= 20 * 2**20


def test_it_has_at_most_eight_million_parameters():
    with (DEMO_MODEL / "model.safetensors").open("rb") as weights:
        header = json.loads(weights.read(struct.unpack("<Q", weights.read(8))[0]))
    shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    assert 1_000_000 < sum(map(prod, shapes)) <= 8_000_000
