"""Renders docs/openai-compatibility.md: prose from `openai-compatibility.md.in`, tables from the code that enforces.

Used by `tools/reference_docs.py`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from server.api.fields import FIELDS, NESTED, Field
from server.api.openapi import describe_error, list_errors
from server.api.rest.refused import REFUSED
from server.api.surfaces.completions_fields import COMPLETIONS_FIELDS
from server.api.surfaces.responses_fields import ITEMS, RESPONSES_FIELDS

PROSE = Path(__file__).with_name("openai-compatibility.md.in")

Rows = Iterable[tuple[str, ...]]


def render_compatibility() -> str:
    """Render the page: fields of each endpoint, what they mean under verification, errors, endpoints."""
    head = ("field", "what becomes of it", "note")
    tables = {
        "chat": _render_table(head, _field_rows(FIELDS)),
        "nested": _render_table(("where", *head), _nested_rows()),
        "responses": _render_table(head, _field_rows(RESPONSES_FIELDS)),
        "items": _render_table(("item", "what becomes of it"), ((f"`{name}`", text) for name, text in ITEMS.items())),
        "completions": _render_table(head, _field_rows(COMPLETIONS_FIELDS)),
        "errors": _render_table(("status", "type", "code", "`retry-after`", "when"), _error_rows()),
        "endpoints": _render_table(("path", "instead"), ((f"`{path}`", reason) for path, reason in REFUSED.items())),
    }
    page = PROSE.read_text()
    for name, table in tables.items():
        page = page.replace("{{" + name + "}}\n", table)
    return page


def _field_rows(fields: Mapping[str, Field]) -> Rows:
    for name, field in fields.items():
        yield f"`{name}`", _use(field), field.reason


def _nested_rows() -> Rows:
    for table in NESTED.values():
        for name, field in table.fields.items():
            yield table.place, f"`{name}`", _use(field), field.reason


def _use(field: Field) -> str:
    return f"{field.use}{' (ours)' if field.ours else ''}"


def _error_rows() -> Rows:
    for status, errors in list_errors().items():
        for error in errors:
            code = f"`{error.code}`" if error.code else "null, or the flaw"
            wait = str(error.retry_after_s) if error.retry_after_s else ""
            yield str(status), f"`{error.type}`", code, wait, describe_error(error)


def _render_table(head: tuple[str, ...], rows: Rows) -> str:
    cells = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)
