"""The progress of the demo: bars on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

_LINE_EVERY_S = 30.0


class _CountColumn(ProgressColumn):
    """Shows `12/300`, or nothing before the total is known."""

    def render(self, task: Task) -> Text:
        """Render one row's counts."""
        return Text(f"{task.completed:.0f}/{task.total:.0f}".rjust(8) if task.total else " " * 8)


class Phase:
    """One phase that runs."""

    def __init__(self, display: "Display", name: str, total: int | None, row: TaskID) -> None:
        self._display, self._name, self._total, self._row = display, name, total, row
        self._done, self._note = 0, ""
        self._said_at = time.monotonic()

    def advance(self, by: int = 1) -> None:
        """Count what is done."""
        self.show(self._done + by, self._total, self._note)

    def show(self, done: int, total: int | None, note: str = "") -> None:
        """Show how far it is, in numbers and words."""
        changed = note != self._note
        self._done, self._total, self._note = done, total, note
        self._display.bars.update(self._row, completed=done, total=total, note=note)
        if time.monotonic() - self._said_at > _LINE_EVERY_S or (changed and total is None):
            self._said_at = time.monotonic()
            count = f"{done}/{total} " if total else ""
            self._display.say_plainly(f"{self._name}: {count}{note}".rstrip())


class Display:
    """Shows phases one after another and remembers how long each took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self.bars = Progress(
            SpinnerColumn(finished_text="[green]\u2713[/green]"),
            TextColumn("{task.description:<26}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=12),
            _CountColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TextColumn(
                "[dim]{task.fields[note]}[/dim]", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """Show a phase while the block runs; its wall time is kept in `seconds` under its name."""
        row = self.bars.add_task(name, total=total, note="")
        self.bars.start()
        self.say_plainly(f"{name} ...")
        began = time.monotonic()
        try:
            yield Phase(self, name, total, row)
        finally:
            self.seconds[name] = time.monotonic() - began
            self.bars.stop_task(row)
        task = self.bars.tasks[row]
        self.bars.update(row, completed=task.total or task.completed)
        self.say_plainly(f"{name}: done in {self.seconds[name]:.1f} s")

    def close(self) -> None:
        """Stop drawing; what is shown stays."""
        self.bars.stop()

    def say_plainly(self, line: str) -> None:
        """Print a line where there are no bars to look at."""
        if not self.console.is_terminal:
            self.console.print(line, markup=False, soft_wrap=True)
