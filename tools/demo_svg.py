"""Draws docs/demo.svg from the figures of a demo: `mulligan demo --json FILE`, then `python tools/demo_svg.py FILE`."""

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from demo.drive.report import print_report

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "demo.svg"


def draw(figures_path: Path) -> None:
    """Draw the table that the demo ended with."""
    console = Console(record=True, width=132, file=io.StringIO(), force_terminal=True, highlight=False)
    print_report(console, json.loads(figures_path.read_text()))
    picture = console.export_svg(title="make demo")
    # No picture of ours fetches anything: the reader's own monospaced font does.
    PICTURE.write_text(re.sub(r"@font-face\s*\{[^}]*\}", "", picture))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
    sys.stdout.write(f"written: {PICTURE}\n")
