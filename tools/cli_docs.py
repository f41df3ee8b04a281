"""Writes docs/cli.md from the commands' own help. `make docs` runs it; a test keeps the page in step."""

import sys
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from server.cli import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"


def render_page() -> str:
    """Render the page: every command with its usage, arguments, options and examples."""
    command = typer.main.get_command(app)
    _tell_first_sentences(command)
    context = typer.Context(command, info_name="mulligan")
    body = get_docs_for_click(obj=command, ctx=context, name="mulligan", title="The `mulligan` command")
    lines = [line.rstrip() for line in body.splitlines()]
    return "<!-- Made by tools/cli_docs.py (`make docs`). Do not edit. -->\n\n" + "\n".join(lines).strip() + "\n"


def _tell_first_sentences(command: Any) -> None:
    """Have every list of commands tell the first paragraph of each, which typer would cut after 45 characters."""
    command.short_help = " ".join((command.help or "").split("\n\n")[0].split())
    for one in getattr(command, "commands", {}).values():
        _tell_first_sentences(one)


if __name__ == "__main__":
    PAGE.write_text(render_page())
    sys.stdout.write(f"written: {PAGE}\n")
