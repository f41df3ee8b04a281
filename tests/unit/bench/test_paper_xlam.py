"""Function calling from xlam files: what becomes of their tools, and what a file that is none gets told."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.paper.problems import BadInput
from bench.paper.split import Data, split_problems
from bench.paper.xlam import make_problem, read_file
from bench.paper.xlam_types import read_type

TOOL = {
    "name": "live_giveaways_by_type",
    "description": "Finds giveaways.",
    "parameters": {
        "type": {"description": "Of what.", "type": "str", "default": "game"},
        "limit": {"description": "How many.", "type": "int"},
        "tags": {"description": "Only these.", "type": "List[str], optional"},
    },
}
CALL = {"name": "live_giveaways_by_type", "arguments": {"type": "beta", "limit": 3}}


def row(*, query: str = "Three beta giveaways, please.", tools: Any = None, answers: Any = None) -> dict[str, Any]:
    return {
        "id": 0,
        "query": query,
        "tools": json.dumps([TOOL] if tools is None else tools),
        "answers": json.dumps([CALL] if answers is None else answers),
    }


def test_a_record_becomes_a_problem_with_openai_tools():
    problem = make_problem(row(), "here")
    assert problem.messages == [{"role": "user", "content": "Three beta giveaways, please."}]
    assert problem.args == {"reference": [CALL]}
    (tool,) = problem.tools
    assert tool["type"] == "function"
    assert tool["function"]["description"] == "Finds giveaways."
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "type": {"type": "string", "description": "Of what."},
            "limit": {"type": "integer", "description": "How many."},
            "tags": {"type": "array", "items": {"type": "string"}, "description": "Only these."},
        },
        "required": ["limit"],
    }


def test_lists_that_are_no_texts_and_tools_in_openais_shape_are_taken_too():
    same = {"query": row()["query"], "tools": make_problem(row(), "").tools, "answers": [CALL]}
    assert make_problem(same, "") == make_problem(row(), "")


@pytest.mark.parametrize(
    ("said", "schema", "optional"),
    [
        ("str", {"type": "string"}, False),
        ("int, optional", {"type": "integer"}, True),
        ("Optional[float]", {"type": "number"}, True),
        ("List[List[int]]", {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, False),
        ("Tuple[float, float]", {"type": "array"}, False),
        ("list", {"type": "array"}, False),
        ("set", {"type": "array"}, False),
        ("Dict[str, Any]", {"type": "object"}, False),
        ("bool, optional, defaults to False", {"type": "boolean"}, True),
        ("Union[int, List[str]]", {"anyOf": [{"type": "integer"}, read_type("List[str]")[0]]}, False),
        ("Union[int, Decimal]", {}, False),
        ("Callable[[float], float]", {}, False),
        ("", {}, False),
    ],
)  # fmt: skip
def test_types(said: str, schema: dict[str, Any], optional: bool):
    assert read_type(said) == (schema, optional)


def test_both_shapes_of_a_file_give_the_same_and_each_problem_once(tmp_path: Path):
    rows = [row(), row(query="Again?"), row()]
    (tmp_path / "x.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = read_file(tmp_path / "x.json")
    assert found == read_file(tmp_path / "x.jsonl")
    assert [problem.messages[0]["content"] for problem in found.problems] == [rows[0]["query"], "Again?"]
    assert found.left_out == []


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([{"name": "nowhere", "arguments": {}}], "nowhere"),
        ([{"name": TOOL["name"], "arguments": {"limit": "3"}}], "/limit"),
        ([{"name": TOOL["name"], "arguments": {"type": "beta"}}], "limit"),
    ],
)
def test_what_nobody_could_get_right_is_left_out_with_its_line(tmp_path: Path, answers: Any, reason: str):
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [row(), row(answers=answers)])))
    found = read_file(tmp_path / "x.jsonl")
    assert len(found.problems) == 1
    ((line, told),) = found.left_out
    assert line == 2
    assert reason in told


def test_a_name_that_no_tool_may_have_is_left_out(tmp_path: Path):
    tool, call = {**TOOL, "name": "live giveaways"}, {**CALL, "name": "live giveaways"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row(tools=[tool], answers=[call])))
    assert read_file(tmp_path / "x.jsonl").left_out == [(1, "'live giveaways' cannot be a tool's name")]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"query": "a", ', "no JSON"),
        ('"a"', "an object with query, tools and answers"),
        ("{}", "`query`"),
        (json.dumps({**row(), "query": "  "}), "`query`"),
        (json.dumps({**row(), "tools": "[{]"}), "`tools` is a text that is no JSON"),
        (json.dumps({**row(), "answers": {"name": "a"}}), "`answers` is missing, or no list"),
        (json.dumps(row(tools=[])), "`tools` is empty"),
        (json.dumps(row(tools=[{"parameters": {}}])), "a tool needs a `name`"),
        (json.dumps(row(tools=[{"name": "a", "parameters": {"b": "str"}}])), "parameter 'b'"),
        (json.dumps(row(answers=[{"name": "a"}])), "an answer needs"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str, said: str):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([json.dumps(row()), "", bad]))
    with pytest.raises(BadInput, match=r"x\.jsonl, line 3: ") as caught:
        read_file(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"[\n{json.dumps(row())},\n{{]", "line 3: no JSON"),
        (f"[\n\n{json.dumps(row())}\n{json.dumps(row())}]", "line 4: a comma"),
        (f"[\n{json.dumps(row())}", "line 2: a comma or the array's end is missing"),
        (f"[\n{json.dumps(row())},\n  7]", "line 3: an object"),
    ],
)
def test_a_bad_array_is_told_by_line(tmp_path: Path, text: str, said: str):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_file(tmp_path / "x.json")
    assert said in str(caught.value)


def test_files_that_are_not_there_or_no_texts_are_told(tmp_path: Path):
    with pytest.raises(BadInput, match="--xlam: there is no file"):
        read_file(tmp_path / "none.json")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read as text"):
        read_file(tmp_path / "bytes")


def test_no_question_is_both_measured_and_trained_on(tmp_path: Path):
    rows = [row(query=f"Question {number % 12}", tools=[{**TOOL, "description": f"{number}"}]) for number in range(24)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(xlam_file=read_file(tmp_path / "x.jsonl"))
    measured, training = split_problems("function_call", data, 8, 100, 0)
    again, other = split_problems("function_call", data, 8, 100, 1)
    assert measured == again
    assert len(measured) == 8
    assert training
    assert training != other
    asked = {problem.messages[0]["content"] for problem in measured}
    assert not asked & {problem.messages[0]["content"] for problem in training}
