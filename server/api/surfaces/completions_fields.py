"""The table of every field of `/v1/completions`: what becomes of it, and why. See `server.api.fields`.

Read by `server.api.surfaces.completions_request` and by the reference page. A field that is not here is refused by
name.
"""

from collections.abc import Mapping

from server.api.fields import Field, Use

_EXTENSION = "an extension that open engines share; off where it is not given"

COMPLETIONS_FIELDS: Mapping[str, Field] = {
    # what is asked
    "model": Field(Use.SERVER, "a task (served by its champion), the base model's id, or an adapter (with its scope)"),
    "prompt": Field(
        Use.ENGINE,
        "a text, token ids, or a list of either: each prompt is an episode of its own; token ids are refused where "
        "verifiers apply, for nobody could read what was asked",
    ),
    # how it is sampled
    "max_tokens": Field(Use.ENGINE, "a limit of each attempt by itself; 16 where it is not given, as OpenAI says"),
    "temperature": Field(Use.ENGINE, "attempts and retries; reflections always at 1"),
    "top_p": Field(Use.ENGINE, "attempts and retries; reflections always at 1"),
    "frequency_penalty": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "presence_penalty": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "logit_bias": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "stop": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "seed": Field(Use.ENGINE, "as far as the engine's backend is deterministic; each of `n` has one of its own"),
    "logprobs": Field(Use.ENGINE, "0 to 5; those of the attempt that is returned"),
    "top_k": Field(Use.ENGINE, _EXTENSION),
    "min_p": Field(Use.ENGINE, _EXTENSION),
    "repetition_penalty": Field(Use.ENGINE, _EXTENSION),
    # how it is answered
    "n": Field(Use.SERVER, "each choice is verified and retried by itself; prompts times `n` are limited together"),
    "best_of": Field(
        Use.SERVER, "only as many as `n`: answers are chosen by verifiers here, not by likelihood; else refused"
    ),
    "echo": Field(
        Use.SERVER, "the prompt's text goes before the answer; refused with token ids or logprobs: neither is read"
    ),
    "stream": Field(Use.SERVER, "with enforcing verifiers content is held until it is verified"),
    "stream_options": Field(Use.SERVER, "`include_usage`; `include_obfuscation` is ignored: nothing is padded"),
    "store": Field(Use.SERVER, "false keeps the content out of the log, and out of training", ours=True),
    # ours
    "task": Field(Use.SERVER, "the task whose policy applies, with the base model's id as `model`", ours=True),
    "verifiers": Field(Use.SERVER, "replaces the task's verifiers", ours=True),
    "verify": Field(Use.SERVER, "off, observe or enforce, in place of the task's mode", ours=True),
    "retry": Field(Use.SERVER, "overrides of the task's retry policy", ours=True),
    "unverified_stream": Field(
        Use.SERVER, "live tokens in place of an enforced answer; the verdict is in the last chunk", ours=True
    ),
    # kept
    "metadata": Field(Use.LOGGED, "found again in the episode", ours=True),
    "user": Field(Use.LOGGED, "found again in the episode"),
    # refused
    "suffix": Field(Use.REFUSED, "engines ignore it, and an answer that does not lead there is wrong", harmless=("",)),
}
