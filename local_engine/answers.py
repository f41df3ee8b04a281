"""What chat answers and raw texts have in common: the text of a stream, why an answer ended, what it used.

Called by the endpoints, which give it the shapes of SGLang 0.5.23.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from local_engine.sampling import Sampling
from local_engine.sequences import Sequence
from local_engine.service import Service
from local_engine.text import GrowingText, HeldText, final_text
from local_engine.tool_calls import OPENING, parse_tool_calls


class StreamedText:
    """The text of a stream: without what stopped it, and with calls held back until they can be read whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, *, parses_calls: bool) -> None:
        self._parses_calls = parses_calls
        self._tokenizer = tokenizer
        self._text = GrowingText(tokenizer, skip_special_tokens=sampling.skip_special_tokens)
        stops = () if sampling.no_stop_trim else sampling.stop
        self._held = HeldText([*stops, *([OPENING] if parses_calls else [])])
        self._given = ""

    def push(self, sequence: Sequence, seen: int, count: int) -> str:
        """Give back what the tokens from `seen` to `count` allow to be shown."""
        tokens = sequence.tokens[seen:count]
        finish = sequence.finish
        if finish and isinstance(finish.matched, int) and count == len(sequence.tokens):
            tokens = tokens if sequence.sampling.no_stop_trim else tokens[:-1]
        content = self._held.push(self._text.push(tokens))
        self._given += content
        return content

    def finish(self, sequence: Sequence) -> tuple[str, list[dict[str, Any]]]:
        """Give back what was held: the rest of the text, and the calls."""
        whole = final_text(self._tokenizer, sequence)
        rest = whole[len(self._given) :] if whole.startswith(self._given) else ""
        if self._parses_calls:
            text, calls = parse_tool_calls(rest)
            return ("", calls) if calls and not text else (text, calls)
        return rest, []


def build_meta_info(sequence: Sequence, service: Service, *, with_text: bool) -> dict[str, Any]:
    """Build what SGLang says of a finished sequence."""
    finish = sequence.finish
    reason: dict[str, Any] = {"type": finish.type if finish else None}
    if finish and finish.type == "stop":
        reason["matched"] = finish.matched
    elif finish and finish.type == "length":
        reason["length"] = len(sequence.tokens)
    info: dict[str, Any] = {
        "id": sequence.id,
        "finish_reason": reason,
        "prompt_tokens": len(sequence.prompt),
        "completion_tokens": len(sequence.tokens),
        "cached_tokens": sequence.cached_tokens,
        "weight_version": "default",
    }
    if sequence.wants_logprobs:
        text = service.texts.text if with_text else lambda _: None
        pairs = zip(sequence.logprobs, sequence.tokens, strict=True)
        info["output_token_logprobs"] = [[logprob, token, text(token)] for logprob, token in pairs]
        if sequence.top_logprobs:
            info["output_top_logprobs"] = [[[value, id_, text(id_)] for value, id_ in row] for row in sequence.tops]
    return info


def read_finish(sequence: Sequence, *, called: bool = False) -> tuple[str, int | str | None]:
    """Say why a finished sequence ended, and what matched."""
    assert sequence.finish is not None
    if called and sequence.finish.type == "stop":
        return "tool_calls", None
    return sequence.finish.type, sequence.finish.matched


def build_usage(sequence: Sequence) -> dict[str, Any]:
    """Count the tokens of a finished sequence."""
    prompt, completion = len(sequence.prompt), len(sequence.tokens)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None,
        "reasoning_tokens": 0,
    }
