"""Writes the table of docs/metrics.md from the catalogue of metrics, for `make docs`; a test keeps them in step."""

import sys
from pathlib import Path

from server.telemetry.catalogue import CATALOGUE, WORKER, Metric

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
BEGIN, END = "<!-- the table: made by tools/metrics_docs.py (`make docs`) -->\n", "<!-- the end of the table -->\n"


def render_table() -> str:
    """Render every metric as a row."""
    rows = [f"| `{one.exposed}` | {one.kind} | {_name_labels(one)} | {one.about} |\n" for one in CATALOGUE]
    return "| metric | kind | labels | |\n|---|---|---|---|\n" + "".join(rows)


def render_page(page: str) -> str:
    """Put the table in its place of the page."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + render_table() + "\n" + END + rest.split(END)[1]


def _name_labels(metric: Metric) -> str:
    labels = metric.labels if metric.once else (*metric.labels, WORKER)
    return ", ".join(f"`{label}`" for label in labels)


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text()))
    sys.stdout.write(f"written: {PAGE}\n")
