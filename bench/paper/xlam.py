"""Function calling from a local file in the xlam format, as APIGen's 60,000 problems come.

A record is `{"query", "tools", "answers"}`; `tools` and `answers` are JSON, often inside a string. A tool is
`{"name", "description", "parameters": {name: {"type", "description", "default"}}}` with the types of Python in words
(`int`, `List[str]`, `str, optional`), an answer `{"name", "arguments"}`. Source of the format:
https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k (its card; the file itself asks for an account).

A record that is no such thing is an error with its line. One that is, but that nobody could get right (its own answer
does not pass the verifier beside its own tools), is left out and counted.
"""

import asyncio
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.paper.problems import BadInput, read_records
from bench.paper.xlam_types import read_type
from demo.problem import Problem
from verifiers.base import Status
from verifiers.function_call import KIND

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")  # what the server takes as a tool's name


@dataclass
class XlamFile:
    """The problems of a file, each once; `left_out` has the line and the reason of what nobody could get right."""

    problems: list[Problem] = field(default_factory=list)
    left_out: list[tuple[int, str]] = field(default_factory=list)


def read_file(path: Path) -> XlamFile:
    """Read a file: JSON Lines, or one array. Raises: BadInput that names the line and what is wrong there."""
    return asyncio.run(_read_file(path))


async def _read_file(path: Path) -> XlamFile:
    found, keys = XlamFile(), set[str]()
    verifier = KIND.compile({})
    for line, record in read_records(path, "--xlam"):
        problem = make_problem(record, f"{path}, line {line}")
        if problem.key in keys:
            continue
        keys.add(problem.key)
        calls = [
            {"id": f"call_{number}", "type": "function",
             "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])}}
            for number, call in enumerate(problem.args["reference"])
        ]  # fmt: skip
        request, answer = {"messages": problem.messages, "tools": problem.tools}, {"content": None, "tool_calls": calls}
        bad = [name for tool in problem.tools if not _NAME.fullmatch(name := tool["function"]["name"])]
        verdict = await verifier.verify(request, answer, problem.args)
        if bad:
            found.left_out.append((line, f"{bad[0]!r} cannot be a tool's name"))
        elif verdict.status is not Status.PASSED:
            found.left_out.append((line, f"its own answer does not pass: {verdict.reason}"))
        else:
            found.problems.append(problem)
    return found


def make_problem(record: Any, where: str) -> Problem:
    """Make a problem of one record. Raises: BadInput that begins with `where`."""
    if not isinstance(record, dict):
        raise BadInput(f"{where}: an object with query, tools and answers is expected, not {type(record).__name__}")
    query = record.get("query")
    if not isinstance(query, str) or not query.strip():
        raise BadInput(f"{where}: `query` is missing, or no text")
    tools = [_read_tool(tool, where) for tool in _read_list(record, "tools", where)]
    calls = [_read_call(call, where) for call in _read_list(record, "answers", where)]
    if not tools:
        raise BadInput(f"{where}: `tools` is empty")
    return Problem(
        task="function_call",
        messages=[{"role": "user", "content": query}],
        verifier="function_call",
        args={"reference": calls},
        key=f"function_call {json.dumps([query, tools, calls], sort_keys=True)}",
        tools=tools,
    )


def _read_list(record: dict[str, Any], name: str, where: str) -> list[Any]:
    given = record.get(name)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise BadInput(f"{where}: `{name}` is a text that is no JSON ({error})") from None
    if not isinstance(given, list):
        raise BadInput(f"{where}: `{name}` is missing, or no list")
    return given


def _read_tool(tool: Any, where: str) -> dict[str, Any]:
    given = tool.get("function", tool) if isinstance(tool, dict) else {}
    name, parameters = given.get("name"), given.get("parameters", {})
    if not isinstance(name, str) or not isinstance(parameters, dict):
        raise BadInput(f"{where}: a tool needs a `name` and `parameters`, by name")
    if not (parameters.get("type") == "object" and isinstance(parameters.get("properties"), dict)):
        parameters = _read_parameters(parameters, f"{where}: tool {name!r}")
    described = {"description": str(given["description"])} if given.get("description") else {}
    function = {"name": name, **described, "parameters": parameters}
    return {"type": "function", "function": function}


def _read_parameters(parameters: dict[str, Any], where: str) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, said in parameters.items():
        if not isinstance(said, dict):
            raise BadInput(f"{where}: parameter {name!r} needs an object with its `type`")
        schema, optional = read_type(str(said.get("type", "")))
        if said.get("description"):
            schema = {**schema, "description": str(said["description"])}
        properties[name] = schema
        # The format has no list of what is required: what has a default, or says so, is not.
        if not optional and "default" not in said:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required}


def _read_call(call: Any, where: str) -> dict[str, Any]:
    if not (isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)):
        raise BadInput(f"{where}: an answer needs a `name` and `arguments`, an object")
    return {"name": call["name"], "arguments": call["arguments"]}
