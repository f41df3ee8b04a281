"""What every gateway of the benchmark is started with. Made by `bench.gateway.run`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.gateway.start import Cores, Started

ROOT = Path(__file__).resolve().parents[2]
USUAL_POSTGRES = "postgresql://postgres@127.0.0.1:5432/postgres"


@dataclass(frozen=True)
class Setting:
    """The engine, the cores, a folder for what is written, and a PostgreSQL server."""

    python: str
    engine: Started
    cores: Cores
    folder: Path
    postgres: str = USUAL_POSTGRES
    checkout: Path = ROOT
    """The checkout whose `mulligan` is started: another one to compare two states of the code."""
    profile: Path | None = None
    """Where a Python gateway writes its profile; none: it runs as it is."""

    def run_module(self, module: str, *arguments: str, python: str = "") -> list[str]:
        """Make the command that runs a gateway's module, under the profiler where one is wanted."""
        python = python or self.python
        if self.profile is None:
            return [python, "-m", module, *arguments]
        return [python, str(Path(__file__).with_name("profiled.py")), str(self.profile), module, *arguments]


Start = Callable[[Setting], AbstractContextManager[Started]]
