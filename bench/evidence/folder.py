"""Keeps what was measured: one JSON file for each part, written whole or not at all, so that a run can be resumed."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class CannotMeasure(Exception):
    """The run cannot begin, or not go on; says why and what to do."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    def agree(self, fixed: Mapping[str, Any]) -> None:
        """Make the folder for a run of these fixed settings, or check that it is one. Raises CannotMeasure."""
        self.path.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(fixed))
        known = self.read("run") if self.has("run") else None
        if known is None:
            self.write("run", wanted)
        elif known != wanted:
            differing = sorted(name for name in {*known, *wanted} if known.get(name) != wanted.get(name))
            raise CannotMeasure(
                f"{self.path} holds a run with another {', '.join(differing)}: figures of both would be mixed; "
                "give this one a --out of its own"
            )

    def has(self, part: str) -> bool:
        """Say whether a part is done."""
        return self._file(part).is_file()

    def read(self, part: str) -> Any:
        """Return what a part measured. Raises FileNotFoundError where it is not done."""
        return json.loads(self._file(part).read_text())

    def write(self, part: str, measured: Any) -> None:
        """Keep what a part measured."""
        file = self._file(part)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        with draft.open("w") as out:
            json.dump(measured, out)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)

    def _file(self, part: str) -> Path:
        return self.path / f"{part}.json"


def name_part(variant: str, seed: int, subject: str, arm: str) -> str:
    """Name a part: where its file lies below the run's folder."""
    return f"{variant}/{seed}/{subject}.{arm}"
