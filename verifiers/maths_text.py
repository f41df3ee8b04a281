r"""Finds the one final answer in a text, and writes it as LaTeX. Knows no mathematics.

Called by `verifiers.maths_job` in an isolated worker, and by the kind `math` for references, which are short.

Strict: an answer that says two things said neither. The final answer is what stands in `\boxed{...}`, else what follows
`Answer:` on its line, else the whole text where that is one expression.
"""

import re

MAX_CHARS = 2000
MAX_DEPTH = 40
MAX_DIGITS = 400

_FLAGS = re.IGNORECASE | re.MULTILINE | re.ASCII
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(_BOX.pattern + r"|\\.|[{}]", re.DOTALL)
_MARK = re.compile(r"^[ \t>*_#-]*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:=][*_ \t]*(.*)$", _FLAGS)
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))
_ALTERNATIVES = re.compile(r"(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z])", re.IGNORECASE)
_APART = re.compile(r"\d(?:\s|\\[ ,;:!]|~|\\q?quad)+\d")
_EQUALS = re.compile(r"(?<![<>!:])=")
_BASE = re.compile(r"(?<![\w.^])(?:(\d+)|\(\s*(\d+)\s*\))\s*_\s*(?:([1-9]\d?)|\{\s*([1-9]\d?)\s*\})(?![\w.])", re.ASCII)
_ODD_BASE = re.compile(r"(?<![\w^])(?:[\d.]*\d|\(\s*\d+\s*\))\s*_", re.ASCII)
_COMMAND = re.compile(r"\\[a-zA-Z]+\*?|\\.")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|operatorname|begin|end)\s*\{[^{}]*\}")
_WORD = re.compile(r"[a-zA-Z]+")
_FUNCTIONS = frozenset({
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp", "log", "ln",
    "min", "max", "gcd", "lcm", "det", "pi", "infty",
})  # fmt: skip
_PLAIN = re.compile(
    r"(?P<times>\*)|(?P<root>\bsqrt\s*\()|(?P<group>\^\s*\()|(?P<sign>\^\s*[-+]\s*\d+)"
    r"|(?P<digits>\^\s*\d\d+)|(?P<exponent>(?<=\d)[eE][-+]?\d+)|(?P<percent>\\?%)"
    r"|(?P<word>(?<!\\)\b(?:oo|inf|infinity|" + "|".join(sorted(_FUNCTIONS)) + r")\b)"
)


class NoAnswer(ValueError):
    """The text holds no final answer, or more than one; the message says which, and never tells a reference."""


class TooLong(ValueError):
    """The final answer is too much to be parsed; the message says why."""


def find_answer(text: str) -> str:
    """Find the final answer in a text.

    Raises: NoAnswer, TooLong.
    """
    boxes = _find_boxes(text)
    marked = [_undress(found[1]) for found in _MARK.finditer(text)]
    marked = [answer for answer in marked if answer and not _BOX.search(answer)]
    found = list(dict.fromkeys(_squeeze(answer) for answer in [*boxes, *marked]))
    if len(found) > 1:
        raise NoAnswer(f"there are {len(found)} final answers, and there may be one")
    if found and not found[0]:
        raise NoAnswer("the final answer is empty")
    answer = found[0] if found else _undress(text)
    if not answer:
        raise NoAnswer("there is no answer")
    _check_size(answer, marked=bool(found))
    _check_words(answer, marked=bool(found))
    return answer


def check_expression(expression: str) -> None:
    """Check that a text is one expression as a whole, as far as that can be told without reading it.

    Raises: NoAnswer, TooLong.
    """
    expression = _squeeze(_undress(expression))
    if not expression:
        raise NoAnswer("it is empty")
    _check_size(expression, marked=True)
    _check_words(expression, marked=True)
    write_latex(expression)


def write_latex(answer: str) -> str:
    r"""Write an answer as LaTeX: `2*sqrt(3)**2` is `2 \cdot \sqrt{3}^2`. What is LaTeX already stays as it is.

    Raises: NoAnswer for brackets that do not fit, and for numbers in a base that cannot be read.
    """
    answer = _read_bases(_squeeze(_undress(answer)).replace("**", "^"))
    parts: list[str] = []
    closers: list[str] = []  # what each open round bracket is to be closed with
    at = 0
    while at < len(answer):
        match = _PLAIN.match(answer, at)
        if match is not None:
            parts.append(_write_match(match, closers))
            at = match.end()
            continue
        letter = answer[at]
        if letter == "(":
            closers.append(")")
        elif letter == ")" and closers:
            letter = closers.pop()
        parts.append(letter)
        at += 1
    if any(closer != ")" for closer in closers):
        raise NoAnswer("a bracket of the answer is not closed")
    return "".join(parts)


def _read_bases(answer: str) -> str:
    """Write numbers in a base, `2516_8` or `(2516)_{8}`, as decimal ones: math-verify reads past the base.

    Raises: NoAnswer.
    """

    def write(match: re.Match[str]) -> str:
        try:
            return str(int(match[1] or match[2], int(match[3] or match[4])))
        except ValueError:
            raise NoAnswer(f"{match[0][:40]!a} is no number of that base") from None

    answer = _BASE.sub(write, answer)
    if _ODD_BASE.search(_COMMAND.sub(" ", answer)):
        raise NoAnswer("a number has a subscript that is no base")
    return answer


def _write_match(match: re.Match[str], closers: list[str]) -> str:
    found = match[0]
    if match["root"]:
        closers.append("}")
        return r"\sqrt{"
    if match["group"]:
        closers.append(")}")
        return "^{("
    if match["sign"] or match["digits"]:
        return "^{" + found[1:].replace(" ", "") + "}"
    if match["word"]:
        return r"\infty " if found in ("oo", "inf", "infinity") else f"\\{found} "
    if match["exponent"]:
        return r"\cdot 10^{" + found[1:].removeprefix("+") + "}"
    return {"times": r"\cdot ", "percent": r"/100"}[match.lastgroup or "times"]


def _find_boxes(text: str) -> list[str]:
    """List what stands in boxes; of boxes in boxes the innermost counts."""
    boxes: list[str] = []
    opened: list[tuple[int, bool, int]] = []  # where it begins, whether it is a box, how many boxes were there before
    for match in _BRACE.finditer(text):
        found = match[0]
        if found == "}":
            start, is_box, before = opened.pop() if opened else (0, False, 0)
            if is_box and before == len(boxes):
                boxes.append(_undress(text[start : match.start()]))
        elif found.endswith("{") and found != "\\{":
            opened.append((match.end(), found != "{", len(boxes)))
    if any(is_box for _, is_box, _ in opened):
        raise NoAnswer("a \\boxed{...} is not closed")
    return boxes


def _undress(text: str) -> str:
    text = text.strip()
    for _ in range(4):
        text = text.removesuffix(".").strip()
        for opening, closing in _WRAPPERS:
            inside = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inside and opening not in inside:
                text = inside.strip()
    return text


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _check_size(answer: str, *, marked: bool) -> None:
    if len(answer) > MAX_CHARS:
        if not marked:
            raise NoAnswer("there is no final answer: give it in \\boxed{...} or after 'Answer:'")
        raise TooLong(f"the final answer is longer than {MAX_CHARS:,} characters")
    depth = deepest = 0
    for letter in answer:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise TooLong(f"the final answer is nested deeper than {MAX_DEPTH} levels")
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", answer):
        raise TooLong(f"a number has more than {MAX_DIGITS} digits")


def _check_words(answer: str, *, marked: bool) -> None:
    if "$" in answer:
        raise NoAnswer("the final answer is not one expression")
    if _ALTERNATIVES.search(answer):
        raise NoAnswer("the final answer gives alternatives, and there may be one")
    if _APART.search(answer):
        raise NoAnswer("two numbers stand side by side in the final answer")
    if len(_EQUALS.findall(answer)) > 1:
        raise NoAnswer("there is more than one '=' in the final answer")
    rest = _COMMAND.sub(" ", _TEXT.sub(" ", answer))
    for word in _WORD.findall(rest):
        if len(word) > 3 and word.lower() not in _FUNCTIONS and word.lower() not in ("sqrt", "infinity", "frac"):
            what = "the final answer" if marked else "the answer"
            raise NoAnswer(f"{what} is not one expression: {word[:40]!a} is a word")
