"""Patterns that mean harm, and texts that do to patterns."""

from tests.integration.verifiers.hostile.table import Hostile

LETTERS = "a" * 100_000


def pattern(text, answer, *ends, **more):
    return Hostile("regex", {"pattern": text}, ends, answer=answer, **more)


def refused(text, says=""):
    return Hostile("regex", {"pattern": text}, refused="config.pattern", says=says)


PATTERNS = {
    "a repeat too many": refused("a{1001}", "invalid repetition size"),
    "repeats of repeats": refused("((a{100}){100}){100}", ""),
    "optional repeats": refused("((a?){500}){500}", ""),
    "a program too large": refused("(?:\\pL{1000}){1000}", ""),
    "classes of all letters": refused("(\\pL|\\pN|\\pS){900}", ""),
    "look-ahead": refused("(?=a)", "invalid perl operator"),
    "look-behind": refused("(?<=a)b", "invalid"),
    "back-reference": refused("(a)\\1", "invalid escape sequence"),
    "atomic group": refused("(?>a+)b", "invalid"),
    "an open group": refused("(" * 4000, "missing )"),
    "1,500 groups in each other": pattern("(" * 1500 + "a" + ")" * 1500, "a", "passed"),
    "a surrogate": refused("\ud800", "surrogate"),
    "longer than 4,096": refused("a" * 4097, ""),
    "a bad range": refused("[z-a]", "invalid character class range"),
    "recursion": refused("(?R)", ""),
    "nested counts": pattern("^(a+)+$", LETTERS + "b", "failed"),
    "nested stars": pattern("(((((a*)*)*)*)*)*b", LETTERS, "failed"),
    "alternatives that overlap": pattern("^(a|aa|a?)*$", LETTERS + "b", "failed"),
    "dots": pattern("^" + ".*" * 30 + "x$", LETTERS, "failed"),
    "a window of a thousand": pattern("(a|b)*a(a|b){900}c", LETTERS, "failed", "too_costly"),
    "letters of any script": pattern(
        "(?i)(\\pL|\\pN|\\pS|\\pP){20}\\x{10FFFF}", "\u00e9" * 50_000, "failed", "too_costly"
    ),
    "one byte at a time": pattern("\\C\\C*$", "\U0001f600" * 1000, "passed"),
    "NULs": pattern("\0+$", "\0" * 1000, "passed", "failed"),
    "a long program, a long text": pattern("(?:abc|abd|abe){150}x", "ab" * 400_000, "failed", "too_costly"),
    "nothing, many times": pattern("(|a|b|)*(|){100}$", LETTERS, "passed"),
}
