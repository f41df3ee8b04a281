"""Names the kinds of reflection the demo model writes, so that training can be seen to change their shares.

Called by the corpus (to write them), the measurements and the `mulligan demo` client (to count them).
"""

import re

VAGUE = (
    "I made a mistake. I should be more careful.",
    "I rushed. Next time I will check the result.",
    "My answer was not right, so I need to think more.",
    "I should read the question again and take my time.",
    "I was careless. I will try to do better.",
    "I did not verify my answer. I should double check each step.",
    "The answer was wrong. I need a different approach.",
    "I will slow down and try again.",
)
MISLEADING = {
    "countdown": (
        "I should only add the numbers.",
        "I should multiply everything.",
        "I should start from the largest number and only subtract.",
        "The result should be much larger.",
    ),
    "function_call": (
        "I should use another tool.",
        "I should leave out one argument.",
        "All values should be integers.",
    ),
}
KINDS = ("worked", "plan", "names_error", "misleading", "vague")

_NAMES_ERROR = re.compile(r" is \d+, not \d+|^I should check \w+")
_PLAN = re.compile(r"^I should (compute|call) ")


def kind_of_reflection(text: str) -> str:
    """Return which kind a reflection is: worked, plan, names_error, misleading or vague."""
    if "work:" in text:
        return "worked"
    if _PLAN.search(text):
        return "plan"
    if _NAMES_ERROR.search(text):
        return "names_error"
    if any(text.startswith(known) for texts in MISLEADING.values() for known in texts):
        return "misleading"
    return "vague"
