"""What a run has done so far, a line for each thing, so that the same command goes on where it was interrupted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.paper.problems import BadInput
from demo.drive.client import Answered


class Journal:
    """The journal of one seed, in its folder. `plan` is what a run has to agree on to go on from it.

    Raises: BadInput where the folder has a run with another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "journal.jsonl"
        self._answers: dict[str, dict[int, Answered]] = {}
        self._rounds: dict[str, list[dict[str, Any]]] = {}
        self._begun: dict[str, str] = {}
        known = self._read()
        self.resumed = known is not None
        if known is None:
            self._write({"plan": dict(plan)})
        elif known != json.loads(json.dumps(plan)):
            names = sorted(
                name for name in {*known, *plan} if known.get(name) != json.loads(json.dumps(plan)).get(name)
            )
            raise BadInput(
                f"{folder} has a run that was begun with another {', '.join(names)}: say the same, or another --out"
            )

    def _read(self) -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        plan, text = None, self._path.read_text()
        if text and not text.endswith("\n"):
            with self._path.open("a") as file:
                file.write("\n")  # the line that was cut off must not take the next one with it
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut off
            plan = entry.get("plan", plan)
            if "phase" in entry:
                self._answers.setdefault(entry["phase"], {})[entry["index"]] = Answered(**entry["answered"])
            elif "round" in entry:
                self._rounds.setdefault(entry["task"], []).append(entry["round"])
                self._begun.pop(entry["task"], None)
            elif "begun" in entry:
                self._begun[entry["task"]] = entry["begun"]
        return plan

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def answers(self, phase: str) -> dict[int, Answered]:
        """Return the answers of a phase by the number of their problem."""
        return dict(self._answers.get(phase, {}))

    def add_answer(self, phase: str, index: int, answered: Answered) -> None:
        """Note one answer."""
        entry = {"outcome": answered.outcome, "adapter": answered.adapter, "episode_id": answered.episode_id}
        self._answers.setdefault(phase, {})[index] = answered
        self._write({"phase": phase, "index": index, "answered": entry})

    def rounds(self, task: str) -> list[dict[str, Any]]:
        """Return a task's rounds that ended."""
        return list(self._rounds.get(task, []))

    def begun_round(self, task: str) -> str | None:
        """Return the id of a round that was begun and had not ended when this stopped."""
        return self._begun.get(task)

    def begin_round(self, task: str, round_id: str) -> None:
        """Note that a round was begun."""
        self._begun[task] = round_id
        self._write({"task": task, "begun": round_id})

    def add_round(self, task: str, row: Mapping[str, Any]) -> None:
        """Note a round that ended."""
        self._begun.pop(task, None)
        self._rounds.setdefault(task, []).append(dict(row))
        self._write({"task": task, "round": dict(row)})
