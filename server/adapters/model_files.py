"""Fingerprints a model by its files: the configuration, and of each file of weights its size and samples of its bytes.

Called by the preflights and the trainer. A few megabytes are read, however large the model is: enough to tell two
models apart, and no proof against somebody who forges one.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

_SAMPLES = 16
_SAMPLE_BYTES = 64 * 2**10
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def fingerprint_model(folder: str | Path) -> str | None:
    """Fingerprint the model in a folder; None where there is none that can be read here."""
    path = Path(folder)
    config = path / "config.json"
    weights = sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
    if not config.is_file() or not weights:
        return None
    try:
        parts = [config.read_bytes(), *(part for file in weights for part in _sample(file))]
    except OSError:
        return None
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _sample(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    yield f"{size}".encode()
    with file.open("rb") as weights:
        for sample in range(_SAMPLES):
            weights.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            yield weights.read(_SAMPLE_BYTES)
