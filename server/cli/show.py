"""How commands print: tables for people, JSON for machines, errors in one line."""

import dataclasses
import datetime
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_COLUMNS = 1000  # so that nothing is cut where the output is not a terminal
_CELL_COLUMNS = 40  # of a table on a terminal; `show` and `--json` have all of it

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a model wrote must not steer a terminal


def standard_console() -> Console:
    """Build the console of standard output."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_COLUMNS)


def error_console() -> Console:
    """Build the console of standard error."""
    return Console(highlight=False, stderr=True, soft_wrap=True)


def to_json(thing: Any) -> Any:
    """Turn dataclasses and what they hold into what JSON knows; token arrays become lists."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {field.name: to_json(getattr(thing, field.name)) for field in dataclasses.fields(thing)}
    if isinstance(thing, Mapping):
        return {str(key): to_json(value) for key, value in thing.items()}
    if thing is None or isinstance(thing, str | int | float | bool):
        return thing
    return [to_json(part) for part in cast("Iterable[Any]", thing)]


def print_json(thing: Any) -> None:
    """Print one JSON document on standard output."""
    json.dump(to_json(thing), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_things(
    things: Sequence[Any],
    columns: Mapping[str, Any],
    *,
    as_json: bool,
    none: str = "none yet",
    title: str | None = None,
) -> None:
    """Print things as a table, one column for each title and function of a thing, or as a JSON list."""
    if as_json:
        print_json(list(things))
        return
    console = standard_console()
    if not things:
        console.print(none)
        return
    cells = {name: [_cell(render(thing)) for thing in things] for name, render in columns.items()}
    if console.is_terminal:
        for cell in (cell for name in list(cells)[1:] for cell in cells[name]):
            cell.truncate(_CELL_COLUMNS, overflow="ellipsis")
    filled = {name: column for name, column in cells.items() if any(cell.plain for cell in column)}
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for place, (name, column) in enumerate(filled.items()):
        # The first column names the thing, and other commands ask for that name: it is never cut.
        width = max(cell.cell_len for cell in column) if place == 0 else None
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=width)
    for row in zip(*filled.values(), strict=True):
        table.add_row(*row)
    console.print(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one thing as names and values."""
    table = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        if (cell := _cell(value)).plain:
            table.add_row(Text(name, style="dim"), cell)
    standard_console().print(table)


def when(at: float | None) -> str:
    """Render a time in local time, or nothing for none."""
    return datetime.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else ""


def _cell(value: Any) -> Text:
    if value is None:
        return Text("")
    if isinstance(value, Mapping | list | tuple):
        return Text(json.dumps(to_json(value), ensure_ascii=False) if value else "")
    return Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", f"{value:.3f}" if isinstance(value, float) else str(value)))
