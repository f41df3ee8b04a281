"""The table of every field of `/v1/responses`: what becomes of it, and why. See `server.api.fields`.

Read by `server.api.surfaces.responses_request` and by the reference page. A field that is not here is refused by name.
"""

from collections.abc import Mapping

from server.api.fields import Field, Use

_CACHED = "engines cache by the prompt's own tokens"

RESPONSES_FIELDS: Mapping[str, Field] = {
    # what is asked
    "model": Field(Use.SERVER, "a task (served by its champion), the base model's id, or an adapter (with its scope)"),
    "input": Field(Use.ENGINE, "text, or items: see the table of items"),
    "instructions": Field(Use.ENGINE, "the first system message; not carried on by `previous_response_id`"),
    "previous_response_id": Field(
        Use.SERVER, "the conversation so far, from the log: only a stored response of the same key"
    ),
    "tools": Field(Use.ENGINE, "functions; every other type of tool is refused by name"),
    "tool_choice": Field(
        Use.ENGINE, "attempts and retries obey it; `allowed_tools` leaves only those in the prompt; other types refused"
    ),
    "parallel_tool_calls": Field(Use.ENGINE, "as far as the engine can force it"),
    "text": Field(
        Use.ENGINE, "`format` is a grammar for attempts and retries, never for reflections; `verbosity` is ignored"
    ),
    # how it is sampled
    "temperature": Field(Use.ENGINE, "attempts and retries; reflections always at 1"),
    "top_p": Field(Use.ENGINE, "attempts and retries; reflections always at 1"),
    "max_output_tokens": Field(Use.ENGINE, "a limit of each attempt by itself"),
    "top_logprobs": Field(Use.ENGINE, "those of the attempt that is returned; asks for logprobs by itself"),
    # how it is answered
    "include": Field(
        Use.SERVER,
        "`message.output_text.logprobs` is applied; OpenAI's other values are ignored: there is nothing to include",
    ),
    "stream": Field(Use.SERVER, "with enforcing verifiers content is held until it is verified"),
    "stream_options": Field(
        Use.SERVER,
        "`include_attempts` (ours) shows failed attempts and reflections as reasoning items as they come; "
        "`include_obfuscation` is ignored: nothing is padded",
    ),
    "store": Field(
        Use.SERVER, "false keeps the content out of the log and out of training; it cannot be read or continued then"
    ),
    # ours
    "task": Field(Use.SERVER, "the task whose policy applies, with the base model's id as `model`", ours=True),
    "verifiers": Field(Use.SERVER, "replaces the task's verifiers", ours=True),
    "verify": Field(Use.SERVER, "off, observe or enforce, in place of the task's mode", ours=True),
    "retry": Field(Use.SERVER, "overrides of the task's retry policy", ours=True),
    "unverified_stream": Field(
        Use.SERVER, "live tokens in place of an enforced answer; the verdict is in the last event", ours=True
    ),
    # kept
    "metadata": Field(Use.LOGGED, "found again in the response and the episode"),
    "user": Field(Use.LOGGED, "found again in the response and the episode"),
    "safety_identifier": Field(Use.LOGGED, "found again in the response and the episode; no abuse detection runs"),
    # ignored: the answer is the same without
    "prompt_cache_key": Field(Use.IGNORED, _CACHED),
    "prompt_cache_options": Field(Use.IGNORED, _CACHED),
    "prompt_cache_retention": Field(Use.IGNORED, _CACHED),
    "service_tier": Field(Use.IGNORED, "there is one tier"),
    "reasoning": Field(Use.IGNORED, "no model that is served here has that setting"),
    "max_tool_calls": Field(Use.IGNORED, "it limits built-in tools, and there are none"),
    "truncation": Field(Use.IGNORED, "nothing is dropped silently: the engine refuses a conversation that is too long"),
    "image": Field(Use.IGNORED, "images reach the engine as they are"),
    "access_programs": Field(Use.IGNORED, "no model that is served here has any"),
    # refused: an answer without it would not be what was asked for
    "background": Field(Use.REFUSED, "an answer is given on the connection that asks for it", harmless=(False,)),
    "conversation": Field(Use.REFUSED, "there are no conversation objects: use previous_response_id"),
    "prompt": Field(Use.REFUSED, "there are no stored prompt templates: send instructions and input"),
    "context_management": Field(Use.REFUSED, "nothing here compacts a conversation", harmless=([],)),
    "moderation": Field(Use.REFUSED, "nothing here moderates, and to skip it silently would be unsafe"),
}

ITEMS: Mapping[str, str] = {
    "message": "`input_text`, `output_text`, `refusal`, `input_image` (by URL where that is allowed), or plain text",
    "function_call": "becomes a tool call of the assistant's message before it",
    "function_call_output": "becomes a tool message; its `call_id` has to be that of a call before it",
    "reasoning": "ignored: no model that is served here reads reasoning of turns before",
    "item_reference": "an item of a stored response of the same key, by its id",
}
"""What becomes of the items of `input`; every other type is refused by name."""
