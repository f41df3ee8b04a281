"""The exact wording: the demo's model and every logged reflection were made with it."""

from server.orchestration.reflection import Prompts, hash_prompts, reflection_messages, render_tool, retry_messages

ASK = [{"role": "user", "content": "Weather in Oslo?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
            "required": ["city"],
        },
    },
}
FAILED = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]}


def test_the_reflection_prompt():
    assert reflection_messages(ASK, [TOOL], FAILED, Prompts(), "no city") == [
        *ASK,
        {"role": "assistant", "content": 'Tool call: {"name": "weather", "arguments": {}}'},
        {
            "role": "user",
            "content": "Your answer did not pass the check. Reflect on what went wrong, briefly, so that your next "
            "answer is right.\nReason: no city\nTools:\n"
            "weather(city: string, days?: integer[]) - Tell the weather.",
        },
    ]


def test_the_retry_prompt():
    assert retry_messages(ASK, {"content": "Sunny."}, "I need the tool.", Prompts()) == [
        *ASK,
        {"role": "assistant", "content": "Sunny."},
        {
            "role": "user",
            "content": "Your answer did not pass the check. Reflect on what went wrong, briefly, so that your next "
            "answer is right.",
        },
        {"role": "assistant", "content": "I need the tool."},
        {"role": "user", "content": "Now answer the original request again."},
    ]


def test_types_are_rendered_shortly():
    parameters = {
        "properties": {
            "unit": {"enum": ["c", "f"]},
            "at": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
            "odd": {"anyOf": [{"type": "string"}]},
        },
        "required": ["unit"],
    }
    assert render_tool({"function": {"name": "f", "parameters": parameters}}) == (
        'f(unit: "c" | "f", at?: {x: number}, odd?: {"anyOf": [{"type": "string"}]})'
    )


def test_the_hash_tells_wordings_apart():
    assert hash_prompts(Prompts()) == hash_prompts(Prompts())
    hashes = {hash_prompts(Prompts()), hash_prompts(Prompts(reflect="a")), hash_prompts(Prompts(retry="a"))}
    assert len(hashes) == 3
    assert hash_prompts(Prompts()) == "3356180f47e61f283cb82e4f3e322d8a67bab274b67e3f18efc46659d773f911"
