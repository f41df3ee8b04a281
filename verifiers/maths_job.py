"""What an isolated worker does for the kind `math`: find the answer, parse, compare. Imported there alone.

math-verify's own search for the answer in a text is not used: it takes "41 or 42" for 42 and "2*sqrt(3)" for 2.
"""

import logging
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Eq, MatrixBase

from verifiers.maths_text import NoAnswer, TooLong, find_answer, write_latex

logging.disable(logging.WARNING)  # both libraries warn that they have no time limit: it is outside


@lru_cache(maxsize=256)
def read(latex: str, *, units: bool) -> Any:
    """Read LaTeX as a sympy object; None where it is none."""
    rules = NormalizationConfig(basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="none")
    extraction = LatexExtractionConfig(normalization_config=rules, boxed_match_priority=-1)
    found = parse(f"$${latex}$$", [extraction], fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return next((item for item in found if isinstance(item, Basic | MatrixBase)), None)


def judge(job: dict[str, Any]) -> list[str]:
    """Judge the text of an answer: a word, and why.

    The words are `equal`, `different`, `no_answer`, `too_long`, `bad_reference`; without `text` the reference is only
    read, and is `readable`.
    """
    reference = read(write_latex(job["reference"]), units=job["units"])
    if reference is None:
        return ["bad_reference", ""]
    if "text" not in job:
        return ["readable", ""]
    try:
        answer = read(write_latex(find_answer(job["text"])), units=job["units"])
    except NoAnswer as error:
        return ["no_answer", str(error)]
    except TooLong as error:
        return ["too_long", str(error)]
    return compare(reference, answer, job["digits"])


def compare(reference: Any, answer: Any, digits: int) -> list[str]:
    """Compare two sympy objects; the answer may be None, where it could not be read."""
    if answer is None:
        return ["no_answer", "the final answer cannot be read as mathematics"]
    if isinstance(answer, Eq) and not answer.free_symbols and not are_equal(answer.lhs, answer.rhs, digits):
        return ["different", "the final answer is an equation that is not true"]
    if are_equal(reference, answer, digits):
        return ["equal", ""]
    return ["different", "the final answer is not the right one"]


def are_equal(reference: Any, answer: Any, digits: int) -> bool:
    """Compare two sympy objects, as math-verify does: numbers to so many digits after the point."""
    return verify(reference, answer, float_rounding=digits, timeout_seconds=None, raise_on_error=True)


judge({"reference": "1/2", "text": r"\frac{1}{2}", "units": True, "digits": 6})  # the parser builds its tables once
