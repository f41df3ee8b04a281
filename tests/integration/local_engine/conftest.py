"""One tiny model for all tests of the embedded engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from local_engine.models import Base, load_base
from tests.fixtures.models import make_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("local") / "model", layers=2, hidden=48, context=256)


@pytest.fixture(scope="session")
def base(model_path: Path) -> Base:
    return load_base(str(model_path), dtype="float32", device="cpu", context_tokens=None)
