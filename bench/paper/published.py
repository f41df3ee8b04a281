"""The paper's figures, from `published.json`, which says where each comes from."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

COLUMNS = ("vanilla_first", "vanilla_second", "trained_first", "trained_second")


@dataclass(frozen=True)
class PublishedRow:
    """One model's row: shares of all problems in percent, None where there was no source; and the sources by column."""

    model: str
    figures: dict[str, float | None]
    sources: dict[str, str]


@cache
def read_published() -> dict[str, Any]:
    """Read the file."""
    return json.loads((Path(__file__).parent / "published.json").read_text())


def list_rows(task: str) -> list[PublishedRow]:
    """List the paper's rows of a task."""
    told = read_published()
    return [
        PublishedRow(
            row["model"],
            {column: row[column] for column in COLUMNS},
            {
                column: told["sources"][row["source"].get(column, row["source"]["*"])]
                for column in COLUMNS
                if row[column] is not None
            },
        )
        for row in told["tasks"][task]["rows"]
    ]
