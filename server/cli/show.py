"""How commands print: tables for people, JSON for machines, errors in one line."""

import dataclasses
import datetime
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_PIPE_COLUMNS = 1000  # where the output is not a terminal; a table that needs more gets it, so that nothing is cut
_MOST_COLUMNS = 1_000_000
_CELL_COLUMNS = 200  # of a table on a terminal; `show` and `--json` have all of it
_NARROW_COLUMNS = 20  # a cell of a table is never wrapped to less: times, states and figures stay on one line
_GAP = 2

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
    cells = {name: [_flatten(_cell(render(thing))) for thing in things] for name, render in columns.items()}
    filled = {name: column for name, column in cells.items() if any(cell.plain for cell in column)}
    if not console.is_terminal:
        table = _lay_out(filled, [None] * len(filled), None)
        boundless = console.options.update(width=_MOST_COLUMNS)
        console.width = max(_PIPE_COLUMNS, console.measure(table, options=boundless).maximum)
        if title:
            console.print(title, markup=False)
        console.print(table)
        return
    for cell in (cell for column in list(filled.values())[1:] for cell in column):
        cell.truncate(_CELL_COLUMNS, overflow="ellipsis")
    widths = _share_out(filled, console.width)
    if widths is None:
        _print_stacked(console, filled, title)
    else:
        console.print(_lay_out(filled, widths, title))


def _lay_out(cells: Mapping[str, Sequence[Text]], widths: Sequence[int | None], title: str | None) -> Table:
    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name, width in zip(cells, widths, strict=True):
        table.add_column(name, width=width, no_wrap=width is None, overflow="fold")
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def _share_out(cells: Mapping[str, Sequence[Text]], columns: int) -> list[int] | None:
    """Share the terminal's `columns` out among a table's; what is long is wrapped. None where it does not fit."""
    widths, least = [], []
    for place, (name, column) in enumerate(cells.items()):
        words = [word for cell in column for word in cell.plain.split()]
        widths.append(max(len(name), *(cell.cell_len for cell in column)))
        longest = max((cell_len(word) for word in words), default=0)
        # The first column names the thing, and other commands ask for that name: it is never cut.
        least.append(widths[-1] if place == 0 else min(widths[-1], max(_NARROW_COLUMNS, len(name), longest)))
    while sum(widths) + _GAP * (len(widths) - 1) > columns:
        shrinks = [place for place, width in enumerate(widths) if width > least[place]]
        if not shrinks:
            return None
        widths[max(shrinks, key=widths.__getitem__)] -= 1
    return widths


def _print_stacked(console: Console, cells: Mapping[str, Sequence[Text]], title: str | None) -> None:
    """Print each thing as its name and, below, as many of its other columns a line as the terminal has room for."""
    if title:
        console.print(Text(title, style="italic"))
    for head, *row in zip(*cells.values(), strict=True):
        console.print(head)
        line = Text()
        for name, cell in zip(list(cells)[1:], row, strict=True):
            if not cell.plain:
                continue
            part = Text.assemble((name, "dim"), " ", cell)
            if line and line.cell_len + _GAP + part.cell_len > console.width - _GAP:
                console.print(Padding(line, (0, 0, 0, _GAP)))
                line = Text()
            line = Text.assemble(line, " " * _GAP, part) if line else part
        if line:
            console.print(Padding(line, (0, 0, 0, _GAP)))


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
    return Text(tame(_figure(value) if isinstance(value, float) else str(value)))


def _figure(value: float) -> str:
    """Three digits after the point, and where those would be noughts, two that say something."""
    return f"{value:.1e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def _flatten(cell: Text) -> Text:
    return Text(" ".join(cell.plain.splitlines()))


def tame(text: str) -> str:
    """Take out of a text what would steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
