"""The one final answer of a text, and how it is written as LaTeX."""

import contextlib
import time

import pytest

from verifiers.maths_text import NoAnswer, TooLong, check_expression, find_answer, write_latex


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        (" $42$. ", "42"),
        ("\\[ 42 \\]", "42"),
        ("**42**", "42"),
        ("We get 6*7 = 42, so \\boxed{42}.", "42"),
        ("\\boxed{\\frac{1}{2}} and again $\\boxed{ \\frac{1}{2} }$", "\\frac{1}{2}"),
        ("\\boxed {\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("It is 41, no.\nAnswer: 42.", "42"),
        ("**Final answer:** $x = 5$\n", "x = 5"),
        ("The final answer is: \\boxed{3}", "3"),
        ("Answer: \\boxed{3}\nAnswer: 3", "3"),
        ("2*sqrt(3)", "2*sqrt(3)"),
    ],
)
def test_the_final_answer_is_found(text, answer):
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no answer"),
        ("41 or 42", "alternatives"),
        ("\\boxed{41 \\text{ or } 42}", "is not one expression|alternatives"),
        ("\\boxed{41} \\boxed{42}", "2 final answers"),
        ("\\boxed{41}\nAnswer: 42", "2 final answers"),
        ("Answer: 41\nAnswer: 42", "2 final answers"),
        ("\\boxed{42", "not closed"),
        ("\\boxed{}", "empty"),
        ("\\boxed{40 2}", "side by side"),
        ("\\boxed{40\\quad 2}", "side by side"),
        ("\\boxed{40\\ 2}", "side by side"),
        ("\\boxed{x = 41 = 42}", "more than one '='"),
        ("\\boxed{$41$, $42$}", "not one expression"),
        ("the result is 42", "is a word"),
        ("so long " * 1000, "no final answer"),
    ],
)
def test_what_is_no_one_answer_is_refused(text, says):
    with pytest.raises(NoAnswer, match=says):
        find_answer(text)


@pytest.mark.parametrize("text", ["\\boxed{" + "1+" * 2000 + "1}", "(" * 41 + "1" + ")" * 41, "9" * 401])
def test_what_is_too_much_is_not_begun(text):
    with pytest.raises(TooLong):
        find_answer(text)


@pytest.mark.parametrize(
    ("plain", "latex"),
    [
        ("2*sqrt(3)**2", "2\\cdot \\sqrt{3}^2"),
        ("sqrt(2*(1+sqrt(x)))", "\\sqrt{2\\cdot (1+\\sqrt{x})}"),
        ("x**(-2)", "x^{(-2)}"),
        ("2^10 + x^-1", "2^{10} + x^{-1}"),
        ("2e-3", "2\\cdot 10^{-3}"),
        ("50%", "50/100"),
        ("50\\%", "50/100"),
        ("sin(pi/2)", "\\sin (\\pi /2)"),
        ("\\sin(\\pi)", "\\sin(\\pi)"),
        ("oo", "\\infty "),
        ("f(x)", "f(x)"),
    ],
)
def test_plain_notation_becomes_latex(plain, latex):
    assert write_latex(plain) == latex


@pytest.mark.parametrize(
    ("number", "latex"),
    [
        ("2516_8", "1358"),
        ("(2516)_{ 8 }", "1358"),
        ("101_2 + 11_{2}", "5 + 3"),
        ("x_1 + 2x_{10}", "x_1 + 2x_{10}"),
        ("x^2_1", "x^2_1"),
        ("\\log_2 8", "\\log_2 8"),
    ],
)
def test_a_number_in_a_base_becomes_decimal(number, latex):
    assert write_latex(number) == latex


@pytest.mark.parametrize("number", ["9_8", "5_1", "5_0", "101_\\text{two}", "1_000", "10.1_2", "4_5_6", "7_{x}"])
def test_a_subscript_that_is_no_base_is_refused(number):
    with pytest.raises(NoAnswer):
        write_latex(number)


def test_a_bracket_that_is_not_closed_is_told():
    with pytest.raises(NoAnswer, match="not closed"):
        write_latex("sqrt(2")


@pytest.mark.parametrize("reference", ["", "  ", "$ $", "1 or 2", "see above", "sqrt(2"])
def test_references_that_are_no_expression_are_refused(reference):
    with pytest.raises(NoAnswer):
        check_expression(reference)


@pytest.mark.parametrize(
    "unit", ["\\boxed{", ".", "`", "$", "answer\n", "answer: ", "\\boxed{}", "{", "}", "the ", "\\"]
)
def test_the_search_takes_linear_time(unit):
    def measure(text):
        started = time.process_time()
        with contextlib.suppress(NoAnswer, TooLong):
            find_answer(text)
        return time.process_time() - started

    # 16 times the text: 16 times the work where it is linear, 256 times where it is quadratic.
    short = max(min(measure(unit * 1000) for _ in range(3)), 0.001)
    assert min(measure(unit * 16_000) for _ in range(3)) < 100 * short
    assert measure(unit * 10_000 + "}" * 10_000) < 10
