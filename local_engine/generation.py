"""`POST /generate`: continue given tokens, in the shape of SGLang 0.5.23. One prompt, or a list of them."""

import asyncio
from collections.abc import Mapping
from typing import Any

from local_engine.answers import build_meta_info
from local_engine.errors import Refused
from local_engine.prompts import encode_prompt
from local_engine.sampling import read_sampling
from local_engine.service import Asked, Client, Service, read_priority
from local_engine.text import final_text


async def generate(body: Mapping[str, Any], service: Service, client: Client) -> Any:
    """Continue the prompts of a request, and give back one result or a list of them.

    Raises: Refused.
    """
    if body.get("stream"):
        raise Refused("stream is not supported on /generate.")
    prompts: Any = body.get("input_ids")
    if prompts is None and isinstance(body.get("text"), str):
        prompts = encode_prompt(service.base, body["text"])
    if not isinstance(prompts, list) or not prompts:
        raise Refused("input_ids must be a list of token ids, or a list of such lists.")
    if not isinstance(prompts[0], list):
        return await _generate_one(prompts, body, service, client, body.get("rid"))
    return list(await asyncio.gather(*(_generate_one(prompt, body, service, client, None) for prompt in prompts)))


async def _generate_one(
    prompt: list[int], body: Mapping[str, Any], service: Service, client: Client, request_id: Any
) -> dict[str, Any]:
    if not all(isinstance(token, int) for token in prompt):
        raise Refused("input_ids must hold integers.")
    sampling = read_sampling(body.get("sampling_params") or {}, service.base.vocabulary)
    asked = Asked(
        id=request_id,
        priority=read_priority(body),
        logprobs=bool(body.get("return_logprob")),
        top_logprobs=body.get("top_logprobs_num") or 0,
    )
    sequence = service.begin(prompt, body.get("lora_path") or "", sampling, asked)
    await service.finish(sequence, client)
    return {
        "text": final_text(service.base.tokenizer, sequence),
        "output_ids": sequence.tokens,
        "meta_info": build_meta_info(sequence, service, with_text=bool(body.get("return_text_in_logprobs"))),
    }
