"""The tests' process: runs the tests against an answer that lives in another one, and says how each ended.

Runs in a throw-away fork, as limited as the answer's. Only this process can write to the pipe that it reports to.
"""

import ast
import types
import unittest
from collections.abc import Callable
from typing import Any

from verifiers.code_tests_remote import Session
from verifiers.code_tests_source import Plan, Unit
from verifiers.code_tests_wire import Ended, Late, Wire

MESSAGE_CHARS = 400
LATE = "the answer ran longer than its time"
ENDED = "the answer's process ended"


def run(source: str, plan: Plan, wire: Wire, *, objects: bool) -> dict[str, Any]:
    """Run the tests. Gives `results`, a list of name, whether it passed, and why not; or `broken`: it did not load."""
    try:
        hello = wire.receive()
    except Late:
        return {"broken": LATE}
    except Ended:
        return {"broken": ENDED}
    if "ready" not in hello:
        return {"broken": str(hello.get("broken"))[:MESSAGE_CHARS]}
    session = Session(wire, objects=objects)
    names: dict[str, Any] = {
        name: session.make_entry(original) for name, original in plan.entry_points.items()
    } | {"__name__": "tests"}  # fmt: skip
    results = _Results(source)
    try:
        for statement, unit in plan.statements:
            code = compile(ast.Module([statement], []), "tests", "exec", dont_inherit=True)
            results.attempt(unit or Unit(f"line {statement.lineno}"), _make_step(code, names), counts=unit is not None)
        for unit in plan.later:
            results.attempt(unit, _make_test(unit.name, names), counts=True)
    except Late:
        results.stop(plan, LATE)
    except Ended:
        results.stop(plan, ENDED)
    return {"results": results.listed}


class _Results:
    def __init__(self, source: str) -> None:
        self._lines = source.splitlines()
        self.listed: list[tuple[str, bool, str]] = []
        self._at = ""

    def attempt(self, unit: Unit, test: Callable[[], Any], *, counts: bool) -> None:
        """Run one test, or a statement that is none: that one counts only where it raises.

        Raises: Late, Ended: nothing more can be asked of the answer.
        """
        self._at = unit.name
        try:
            test()
        except (Late, Ended):
            raise
        except unittest.SkipTest:
            why = ""
        except BaseException as error:  # noqa: BLE001 -- SystemExit of a test is its failure too
            why = self._explain(error)
        else:
            why = ""
        if counts or why:
            self.listed.append((unit.name, not why, why))

    def stop(self, plan: Plan, why: str) -> None:
        """Fail what runs, and all that comes after it."""
        done = {name for name, _, _ in self.listed}
        self.listed.append((self._at, False, why))
        self.listed += [
            (unit.name, False, "not reached") for unit in plan.units if unit.name not in done and unit.name != self._at
        ]

    def _explain(self, error: BaseException) -> str:
        line, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "tests":
                line = trace.tb_lineno
            trace = trace.tb_next
        try:
            message = str(error)
        except Exception:  # noqa: BLE001 -- an exception class of the tests
            message = ""
        text = f"{type(error).__name__}: {message}" if message else type(error).__name__
        if line is not None and line <= len(self._lines):
            text = f"{text[:MESSAGE_CHARS]} (line {line}: {self._lines[line - 1].strip()[:200]})"
        return text[: 2 * MESSAGE_CHARS]


def _make_step(code: types.CodeType, names: dict[str, Any]) -> Callable[[], Any]:
    return lambda: exec(code, names)  # noqa: S102 -- running them is the point, and this process can do no harm


def _make_test(name: str, names: dict[str, Any]) -> Callable[[], Any]:
    def test() -> None:
        owner, _, method = name.rpartition(".")
        if not owner:
            names[method]()
            return
        kind = names[owner]
        if issubclass(kind, unittest.TestCase):
            kind(method).debug()
            return
        tested = kind()
        getattr(tested, "setup_method", lambda: None)()
        getattr(tested, method)()

    return test
