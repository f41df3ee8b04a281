"""What both sources of problems share: the error for data that cannot be used, and a file's JSON by lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class BadInput(Exception):
    """What was given cannot be used; the message names the place and what to do."""


def read_records(path: Path, option: str) -> Iterator[tuple[int, Any]]:
    """Yield the records of a JSON Lines file, or of a file with one JSON array, each with the line it begins on.

    Raises: BadInput that names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{option}: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{option}: {path} cannot be read as text: {error}") from None
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "[":
        yield from _read_array(text, start + 1, path)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path}, line {number}: no JSON ({error}); one object a line is expected") from None


def _read_array(text: str, position: int, path: Path) -> Iterator[tuple[int, Any]]:
    decoder, line, counted = json.JSONDecoder(), 1, 0

    def skip(position: int, marks: str) -> int:
        while position < len(text) and text[position] in marks:
            position += 1
        return position

    while True:
        position = skip(position, " \t\r\n")
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            return
        try:
            record, position = decoder.raw_decode(text, position)
        except ValueError as error:
            raise BadInput(f"{path}, line {line}: no JSON ({error}); an array of objects is expected") from None
        yield line, record
        position = skip(position, " \t\r\n")
        if text[position : position + 1] not in (",", "]"):
            at = line + text.count("\n", counted, position)
            raise BadInput(f"{path}, line {at}: a comma or the array's end is missing")
        position += text[position] == ","
