"""Looks at an engine from outside: how it was started, and what its tokenizer and its chat template make of texts.

Called by the preflights; it only reads. SGLang and the embedded engine answer the same questions (`/server_info`,
`/model_info`, `/tokenize`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from server.engine.upstream import Upstream
from server.errors import EngineBroken, EngineRefused, MulliganError

INSPECTION_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """How an engine was started. What it does not tell is None; `target_modules` are None where it takes any."""

    url: str
    version: str
    model_path: str
    tokenizer_path: str
    lora: bool
    max_lora_rank: int | None
    target_modules: frozenset[str] | None
    max_loaded_loras: int | None
    max_loras_per_batch: int | None
    tool_call_parser: str
    chat_template: str  # a file or a name; "" is the model's own
    adapters: tuple[str, ...] = ()
    puts_users_first: bool = False  # whether it lets requests without a priority go before those with a negative one


async def inspect_engine(url: str, *, timeout_s: float = INSPECTION_TIMEOUT_S) -> EngineFacts:
    """Ask an engine how it was started. Raises: EngineUnavailable, EngineTimeout, EngineBroken."""
    upstream = Upstream(url, timeout_s=timeout_s)
    try:
        info = await _ask(upstream, "GET", "/server_info")
        models = await _ask(upstream, "GET", "/v1/models")
        return _read_facts(url, info, models)
    finally:
        await upstream.close()


async def tokenize_texts(
    url: str,
    texts: Sequence[str],
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    timeout_s: float = INSPECTION_TIMEOUT_S,
) -> tuple[list[list[int]], list[list[int]]]:
    """Let an engine tokenise texts, without special tokens, and render conversations as for a chat completion.

    Raises: EngineUnavailable, EngineTimeout, EngineBroken, EngineRefused where its chat template takes none of them.
    """
    upstream = Upstream(url, timeout_s=timeout_s)
    try:
        plain = [{"prompt": text, "add_special_tokens": False} for text in texts]
        chats = [{"messages": [dict(message) for message in messages]} for messages in conversations]
        rows = [(await _ask(upstream, "POST", "/tokenize", body))["tokens"] for body in (*plain, *chats)]
        return rows[: len(plain)], rows[len(plain) :]
    except (KeyError, TypeError) as error:
        raise EngineBroken(f"the engine at {url} has no /tokenize that gives tokens") from error
    finally:
        await upstream.close()


async def _ask(upstream: Upstream, method: str, path: str, body: Any = None) -> Any:
    payload = b"" if body is None else msgspec.json.encode(body)
    status, raw = await upstream.exchange(method, path, payload)
    if status == 400:
        raise EngineRefused(f"the engine refused {path}: {raw[:300].decode(errors='replace')}")
    if status != 200:
        raise EngineBroken(f"the engine answered {path} with status {status}")
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise EngineBroken(f"the engine answered {path} with something that is not JSON") from error


def _read_facts(url: str, info: Mapping[str, Any], models: Mapping[str, Any]) -> EngineFacts:
    try:
        targets = info.get("lora_target_modules")
        every = targets is None or "all" in targets
        return EngineFacts(
            url=url,
            version=str(info.get("version") or ""),
            model_path=str(info["model_path"]),
            tokenizer_path=str(info.get("tokenizer_path") or info["model_path"]),
            lora=bool(info.get("enable_lora")),
            max_lora_rank=info.get("max_lora_rank"),
            target_modules=None if every else frozenset(targets or ()),
            max_loaded_loras=info.get("max_loaded_loras"),
            max_loras_per_batch=info.get("max_loras_per_batch"),
            tool_call_parser=str(info.get("tool_call_parser") or ""),
            chat_template=str(info.get("chat_template") or ""),
            adapters=tuple(card["id"] for card in models["data"] if card.get("parent")),
            puts_users_first=_puts_users_first(info),
        )
    except (KeyError, TypeError) as error:
        raise EngineBroken(f"the engine at {url} does not tell how it was started: {error!r}") from error


def _puts_users_first(info: Mapping[str, Any]) -> bool:
    """SGLang puts what has no priority behind everything, but where `--default-priority-value` says otherwise."""
    usual = info.get("default_priority_value")
    return bool(
        info.get("enable_priority_scheduling")
        and not info.get("schedule_low_priority_values_first")
        and isinstance(usual, int)
        and usual >= 0
    )


def describe_failure(url: str, error: MulliganError) -> str:
    """Say that an engine could not be looked at, and why."""
    return f"the engine at {url}: {error}"
