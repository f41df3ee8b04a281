"""The shapes inside a chat request: messages by role, their parts, tools, choices of tools, formats of answers.

Read by `server.api.chat_request`, which checks requests with them, and by the OpenAPI document. What becomes of each
field stands in `server.api.fields`; a field that is in no shape is refused by name. Shapes that are refused as a whole
are here too, so that they are refused for what they are.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Text = Annotated[str, Meta(min_length=1)]
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
"""OpenAI takes 64 letters, digits, underscores and dashes; the names of real functions have dots, too."""


class Shape(Struct, forbid_unknown_fields=True, kw_only=True):
    """An object of OpenAI's inside a request."""


class TextPart(Shape, tag_field="type", tag="text"):
    """A part of a message: text."""

    text: str
    prompt_cache_breakpoint: Any = None


class RefusalPart(Shape, tag_field="type", tag="refusal"):
    """A part of an assistant's message: its refusal, which the model is shown as text."""

    refusal: str


class ImageUrl(Shape):
    """Where an image is."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Shape, tag_field="type", tag="image_url"):
    """A part of a user's message: an image."""

    image_url: ImageUrl
    prompt_cache_breakpoint: Any = None


class AudioPart(Shape, tag_field="type", tag="input_audio"):
    """A part of a message: sound. Refused."""

    input_audio: Any = None
    prompt_cache_breakpoint: Any = None


class FilePart(Shape, tag_field="type", tag="file"):
    """A part of a message: a file. Refused."""

    file: Any = None
    prompt_cache_breakpoint: Any = None


Part = TextPart | ImagePart | RefusalPart | AudioPart | FilePart
Parts = Annotated[list[Part], Meta(min_length=1)]


class CalledFunction(Shape):
    """A function that the model called, with its arguments as the model wrote them."""

    name: Text
    arguments: str


class FunctionToolCall(Shape, tag_field="type", tag="function"):
    """A call in an assistant's message."""

    id: Text
    function: CalledFunction
    index: int | None = None


class CustomToolCall(Shape, tag_field="type", tag="custom"):
    """A call of a custom tool. Refused."""

    id: str | None = None
    custom: Any = None


class SystemMessage(Shape, tag_field="role", tag="system"):
    """What the model is told to be."""

    content: str | Parts
    name: str | None = None


class DeveloperMessage(Shape, tag_field="role", tag="developer"):
    """The newer name of a system message."""

    content: str | Parts
    name: str | None = None


class UserMessage(Shape, tag_field="role", tag="user"):
    """What a user says."""

    content: str | Parts
    name: str | None = None


class AssistantMessage(Shape, tag_field="role", tag="assistant"):
    """What the model said before, as SDKs send it back."""

    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[FunctionToolCall | CustomToolCall] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None


class ToolMessage(Shape, tag_field="role", tag="tool"):
    """What a tool gave back."""

    content: str | Parts
    tool_call_id: Text
    name: str | None = None


class FunctionMessage(Shape, tag_field="role", tag="function"):
    """The old form of a tool's message. Refused."""

    content: Any = None
    name: str | None = None


Message = UserMessage | SystemMessage | DeveloperMessage | AssistantMessage | ToolMessage | FunctionMessage


class FunctionDefinition(Shape):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Shape, tag_field="type", tag="function"):
    """A tool: a function."""

    function: FunctionDefinition


class CustomTool(Shape, tag_field="type", tag="custom"):
    """A tool with a free text or a grammar as its input. Refused."""

    custom: Any = None


Tool = FunctionTool | CustomTool


class NamedFunction(Shape):
    """The function that has to be called."""

    name: Text


class NamedToolChoice(Shape, tag_field="type", tag="function"):
    """One function, which has to be called."""

    function: NamedFunction


class CustomToolChoice(Shape, tag_field="type", tag="custom"):
    """One custom tool, which has to be called. Refused."""

    custom: Any = None


class AllowedTools(Shape):
    """Some of the tools, and whether one of them has to be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolChoice | CustomToolChoice], Meta(min_length=1, max_length=128)]


class AllowedToolsChoice(Shape, tag_field="type", tag="allowed_tools"):
    """Only some of the tools may be called."""

    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolsChoice | CustomToolChoice


class TextFormat(Shape, tag_field="type", tag="text"):
    """The answer is free text."""


class JsonFormat(Shape, tag_field="type", tag="json_object"):
    """The answer is a JSON object."""


class AnswerSchema(Shape):
    """A JSON schema and its name."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class SchemaFormat(Shape, tag_field="type", tag="json_schema"):
    """The answer is JSON of this schema."""

    json_schema: AnswerSchema


ResponseFormat = TextFormat | JsonFormat | SchemaFormat


class StreamOptions(Shape):
    """OpenAI's `stream_options`, and one of ours."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    include_attempts: bool | None = None
