"""What an audit looks at."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class JudgedAttempt:
    """A logged attempt that passed or failed, as far as an audit looks at it.

    `question` tells apart what was asked: by the arguments that verifiers were given, else by the whole problem. `text`
    is a digest of the answer, case and white space aside, and `length` its characters. All three are empty where the
    content is not in the log. `audits` has what the verifiers that only measure said, by pin, where they passed or
    failed it.
    """

    episode_id: str
    passed: bool
    question: str = ""
    text: str = ""
    length: int = 0
    audits: Mapping[str, bool] = field(default_factory=dict)
