"""Writes the types of the API that the dashboard's client is made of, from the OpenAPI document. `make docs` runs it.

The file names the hash of what it was made from, and a test compares that: nobody needs Node to see that it is old.
Words are left out first: a better sentence in a docstring changes no type.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from server.api.gate import SURFACES
from server.app import create_app
from server.settings import Settings
from tools.admin_ui import UI, NotBuilt, find_node, run

TYPES = UI / "src" / "api" / "schema.d.ts"
MARK = "// Made by tools/admin_types.py (`make docs`) from the OpenAPI document with this SHA-256. Do not edit.\n// "
_WORDS = frozenset({"description", "summary", "title", "examples", "example", "operationId", "tags"})


def read_shapes() -> str:
    """Read the OpenAPI document of our own routes, without words, as JSON with sorted keys."""
    document = json.loads(json.dumps(create_app(Settings(_env_file=None)).rest.openapi()))  # pyright: ignore[reportCallIssue]
    surfaces = {path for _, path in SURFACES}
    document["paths"] = {path: ways for path, ways in document["paths"].items() if path not in surfaces}
    for ways in document["paths"].values():
        for way in ways.values():
            way["responses"] = {code: told for code, told in way["responses"].items() if code.startswith("2")}
    document["info"] = {"title": "Mulligan", "version": "0"}
    document["components"].pop("responses", None)
    return json.dumps(_without_words(document), sort_keys=True, indent=1)


def name_version() -> str:
    """Name what the types are made from."""
    return hashlib.sha256(read_shapes().encode()).hexdigest()


def _without_words(value: Any, *, names: bool = False) -> Any:
    """Leave out what only tells; under `properties` and the like the keys are names, and stay."""
    if isinstance(value, list):
        return [_without_words(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "prefixItems" in value and not names:  # tuples: the client's types lose their length
        value = {"type": "array", "items": value["prefixItems"][0]}
    holds_names = {"properties", "schemas", "paths", "securitySchemes"}
    return {
        key: _without_words(one, names=key in holds_names and not names)
        for key, one in value.items()
        if names or key not in _WORDS
    }


def main() -> int:
    """Write the types, where they are old."""
    if TYPES.exists() and TYPES.read_text().startswith(f"{MARK}{name_version()}\n"):
        return 0
    try:
        node, npm = find_node()
        if not (UI / "node_modules" / "openapi-typescript").exists():
            run(node, [*npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"])
        with tempfile.TemporaryDirectory() as folder:
            document, made = Path(folder) / "openapi.json", Path(folder) / "schema.d.ts"
            document.write_text(read_shapes())
            command = ["node_modules/openapi-typescript/bin/cli.js", str(document), "--output", str(made)]
            run(node, [*command, "--default-non-nullable", "false"])
            TYPES.parent.mkdir(parents=True, exist_ok=True)
            TYPES.write_text(f"{MARK}{name_version()}\n\n{made.read_text()}")
    except NotBuilt as error:
        sys.stderr.write(f"The dashboard's types were not written: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
