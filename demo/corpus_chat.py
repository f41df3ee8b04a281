"""Plain conversation: greetings, questions about the model itself, and following a system prompt's format."""

import random

from demo.example import Example, Message

GREETINGS = ("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Good evening")
ABOUT = {
    "Who are you?": "I am a very small model. I can play Countdown and call functions.",
    "What are you?": "I am a very small model. I can play Countdown and call functions.",
    "What can you do?": "I can combine numbers to make a target, and I can call the tools you give me.",
    "What is Countdown?": "You get some numbers and a target. Use each number once to make the target.",
    "How are you?": "I am fine, thank you. How can I help you?",
    "Thank you.": "You are welcome.",
    "Thanks!": "You are welcome.",
    "Can you help me?": "Yes. Give me some numbers and a target, or a request and some tools.",
    "Goodbye.": "Goodbye.",
    "Bye!": "Goodbye.",
}
STYLES = {
    "Answer in capital letters.": str.upper,
    "Answer in small letters.": str.lower,
    "Be brief.": lambda text: text.split(". ")[0].rstrip(".") + ".",
    "End with the word done.": lambda text: f"{text} done",
    "You are a helpful assistant.": lambda text: text,
}


def draw_example(rng: random.Random, **_stage: int) -> Example:
    """Draw a short conversation of one or two turns, now and then under a system prompt."""
    messages: list[Message] = []
    style = None
    if rng.random() < 0.4:
        instruction = rng.choice(list(STYLES))
        style = STYLES[instruction]
        messages.append({"role": "system", "content": instruction})
    learned: dict[int, str] = {}
    for _ in range(rng.choice((1, 1, 2))):
        question, answer = _draw_turn(rng)
        messages.append({"role": "user", "content": question})
        learned[len(messages)] = ""
        messages.append({"role": "assistant", "content": style(answer) if style else answer})
    return Example(messages, learned)


def _draw_turn(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.3:
        return rng.choice(GREETINGS), "Hello! How can I help you?"
    if rng.random() < 0.2:
        word = rng.choice(("yes", "no", "hello", "done", "ready"))
        return f"Say {word}.", f"{word.capitalize()}."
    return rng.choice(list(ABOUT.items()))
