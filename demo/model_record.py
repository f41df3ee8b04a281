"""Records which files `make demo-model` made, by their SHA-256, and finds out whether they are still those.

Called by the pre-training script, which records, and by `make evidence`, which refuses to measure a model that is not
the recorded one. The record has the format of `sha256sum`: `sha256sum -c SHA256SUMS` reads it too.
"""

import hashlib
from pathlib import Path

RECORD = "SHA256SUMS"
RECORDED = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def record_model(folder: Path) -> None:
    """Write the record of the model's files beside them. Raises FileNotFoundError where one is missing."""
    lines = [f"{_hash(folder / name)}  {name}\n" for name in RECORDED]
    (folder / RECORD).write_text("".join(lines))


def find_altered(folder: Path) -> list[str]:
    """List, in words, what of the model is not as it was recorded: nothing, where all of it is."""
    record = folder / RECORD
    if not record.is_file():
        return [f"{RECORD} is missing"]
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in record.read_text().splitlines())}
    found = []
    for name in RECORDED:
        path = folder / name
        if name not in recorded:
            found.append(f"{name} is not recorded")
        elif not path.is_file():
            found.append(f"{name} is missing")
        elif _hash(path) != recorded[name]:
            found.append(f"{name} is not the one that was recorded")
    return found


def read_weights_hash(folder: Path) -> str:
    """Return the SHA-256 of the weights as they lie there."""
    return _hash(folder / "model.safetensors")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
