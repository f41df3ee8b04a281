"""Owns what the tiny model reads before it is shipped: episodes of both tasks, drills of their skills, plain chat.

The corpus has stages, one for each cycle of pre-training. In the first the tools of a request name and type the same
thing differently, so that the model learns to read schemas; from then on they are those of the demo's problems, and the
authors are a little more able.
"""

import random

from demo import corpus_chat, corpus_countdown, corpus_function_call
from demo.example import Example

COUNTDOWN, FUNCTION_CALL, CHAT = 0.48, 0.48, 0.04
LAST_STAGE = 1


def draw_example(rng: random.Random, stage: int = LAST_STAGE) -> Example:
    """Draw one example of a stage's mixture."""
    countdown, function_call = corpus_countdown.draw_example, corpus_function_call.draw_example
    draw = rng.choices([countdown, function_call, corpus_chat.draw_example], [COUNTDOWN, FUNCTION_CALL, CHAT])[0]
    return draw(rng, stage=min(stage, LAST_STAGE))
