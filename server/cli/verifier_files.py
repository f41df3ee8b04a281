"""Reads what `mulligan verifiers add` is given in files: the verifier itself, and samples to try it on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.cli.options import parse_object
from server.errors import InvalidRequest

_EXPECTED = ("passed", "failed")
_SAMPLE = {"request": "{messages, tools}", "answer": "text, or an assistant message", "args": "an object",
           "expect": "passed or failed"}  # fmt: skip
_FILE = ("name", "kind", "config", "description")


@dataclass(frozen=True, slots=True)
class Draft:
    """A verifier that is to be added. `source` is the file that it came from, for errors."""

    name: str
    kind: str
    config: Mapping[str, Any]
    description: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A request and an answer, as an assistant message, and the verdict that it has to get."""

    path: Path
    answer: Mapping[str, Any]
    request: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    expect: str | None = None


def read_text(path: Path) -> str:
    """Read a file. Raises: InvalidRequest."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from error


def read_draft(
    name: str | None, file: Path | None, *, kind: str | None, config: Mapping[str, Any], description: str
) -> Draft:
    """Put together what options and file say; the options go first. Raises: InvalidRequest."""
    said: dict[str, Any] = _read_file(file, kind) if file else {}
    name, kind = name or said.get("name") or (file.stem if file else None), kind or said.get("kind")
    if name is None:
        raise InvalidRequest("say the verifier's NAME, or --file: its name is taken from there")
    if kind is None:
        raise InvalidRequest("say its --kind (`mulligan verifiers kinds` lists them), or give a --file NAME.py")
    merged = {**said.get("config", {}), **config}
    return Draft(name, kind, merged, description or said.get("description", ""), str(file) if file else "")


def _read_file(file: Path, kind: str | None) -> dict[str, Any]:
    """Read a verifier by its file's extension: code, or JSON with `kind` and `config` (with --kind, the config)."""
    if file.suffix == ".py":
        return {"kind": "python", "config": {"code": read_text(file)}}
    if file.suffix != ".json":
        raise InvalidRequest(
            f"--file is a .py with a function verify, or a .json with kind and config, not {file.name}"
        )
    said = parse_object(read_text(file), f"--file {file}")
    if "kind" not in said:
        if kind is None:
            raise InvalidRequest(f'--file {file}: it has no "kind"; say --kind, and the file is taken as the config')
        return {"config": said}
    if unknown := sorted(set(said) - set(_FILE)):
        raise InvalidRequest(f"--file {file}: {unknown[0]!r} is not known, only {', '.join(_FILE)}")
    if not isinstance(said.get("config", {}), dict):
        raise InvalidRequest(f"--file {file}: config is a JSON object")
    for word in ("name", "kind", "description"):
        if not isinstance(said.get(word, ""), str):
            raise InvalidRequest(f"--file {file}: {word} is a text")
    return said


def read_sample(path: Path) -> SampleFile:
    """Read a sample. Raises: InvalidRequest, naming what is wrong."""
    said = parse_object(read_text(path), f"--run {path}")
    if unknown := sorted(set(said) - set(_SAMPLE)):
        known = "; ".join(f"{name}: {what}" for name, what in _SAMPLE.items())
        raise InvalidRequest(f"--run {path}: {unknown[0]!r} is not known. A sample has {known}")
    if not isinstance(said.get("answer"), str | dict):
        raise InvalidRequest(f"--run {path}: a sample has an answer: {_SAMPLE['answer']}")
    if said.get("expect") not in (None, *_EXPECTED):
        raise InvalidRequest(f"--run {path}: expect is {' or '.join(_EXPECTED)}, not {said['expect']!r}")
    for word in ("request", "args"):
        if not isinstance(said.get(word, {}), dict):
            raise InvalidRequest(f"--run {path}: {word} is a JSON object")
    answer, request = to_message(said["answer"]), read_request(said.get("request", {}), f"--run {path}: request")
    return SampleFile(path, answer, request, said.get("args", {}), said.get("expect"))


def read_request(said: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Read what a verifier may see of a request. Raises: InvalidRequest."""
    request = {"messages": [], "tools": [], **said}
    for word in ("messages", "tools"):
        if not isinstance(request[word], list) or not all(isinstance(one, dict) for one in request[word]):
            raise InvalidRequest(f"{source}: {word} is a list of JSON objects")
    return request


def to_message(answer: str | Mapping[str, Any]) -> dict[str, Any]:
    """Make an assistant message of an answer."""
    content = {"content": answer} if isinstance(answer, str) else answer
    return {"role": "assistant", "content": None, **content}
