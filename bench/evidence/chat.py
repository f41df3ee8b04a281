"""Plain conversation, as the base model learnt it, and how much of it an adapter still answers word for word.

Greedy, through the API, without a verifier. Every sentence of the corpus, alone and under each system prompt.
"""

from collections.abc import Callable
from typing import Any

from bench.evidence.scene import Part, Scene
from bench.evidence.serving import Site
from demo.corpus_chat import ABOUT, GREETINGS, STYLES
from demo.drive.display import Phase

_TOKENS = 64


def list_conversations() -> list[tuple[list[dict[str, str]], str]]:
    """List conversations, and what the corpus answers."""
    said = [*ABOUT.items(), *((greeting, "Hello! How can I help you?") for greeting in GREETINGS)]
    plain = [([{"role": "user", "content": question}], answer) for question, answer in said]
    styled = [
        ([{"role": "system", "content": instruction}, *messages], style(answer))
        for instruction, style in STYLES.items()
        for messages, answer in plain
    ]
    return plain + styled


def make_part(scene: Scene, arm: str, model: Callable[[], str]) -> Part:
    """Make the part that asks a model all of them."""
    conversations = list_conversations()

    async def work(site: Site, phase: Phase) -> list[dict[str, Any]]:
        async def ask(conversation: tuple[list[dict[str, str]], str]) -> dict[str, Any]:
            messages, expected = conversation
            said = await site.client.say(model(), messages, max_tokens=_TOKENS)
            return {"messages": messages, "said": said, "right": said.strip() == expected}

        return await site.map(ask, conversations, phase)

    return Part(scene.name("chat", arm), len(conversations), work)
