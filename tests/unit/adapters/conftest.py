"""Whoever waits for other processes looks again at once: they are in memory here."""

import pytest

from server.adapters import unloading


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch):
    monkeypatch.setattr(unloading, "POLL_S", 0.001)
