"""One tiny model for all tests of the embedded engine, and what the endpoints share of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from local_engine.models import AdapterLimits, Base, load_base
from local_engine.service import Service
from tests.fixtures.models import TARGETS, make_model


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


class Client:
    """A client that goes away when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def gone(self) -> None:
        await self.left.wait()


@pytest_asyncio.fixture
async def service(base: Base) -> AsyncIterator[Service]:
    limits = AdapterLimits(16, frozenset(TARGETS))
    made = Service(base, model_name="base", limits=limits, max_running=4, max_adapters=2)
    yield made
    made.stop()
