"""The answer's process: loads the answer's code and answers calls of its functions, by value.

Runs in a throw-away fork that was made before the tests were read, and can compute and nothing else. Nothing here is
trusted once the answer's code has run: all that it may do is send values to the tests' process.
"""

import contextlib
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from verifiers.code_tests_wire import BadValue, Ended, Wire, decode, encode

MESSAGE_CHARS = 300
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type(operator.itemgetter(0)))
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *given, **named: function(*given, **named),
    "get": getattr, "set": setattr, "item": operator.getitem, "set_item": operator.setitem,
    "del_item": operator.delitem, "len": len, "iter": iter, "in": operator.contains, "bool": bool, "str": str,
    "repr": repr, "is_instance": lambda kind, value: isinstance(value, kind), "==": operator.eq, "<": operator.lt,
    "<=": operator.le, "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def serve(source: str, wire: Wire) -> None:
    """Load the answer and serve calls until the other end closes its pipe."""
    names: dict[str, Any] = {"__name__": "answer", "__builtins__": __builtins__}
    module = types.ModuleType("answer")
    module.__dict__.update(names)
    sys.modules["answer"] = module  # dataclasses and enums look their module up
    try:
        exec(compile(source, "answer", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 -- in here, it may
    except BaseException as error:  # noqa: BLE001 -- SystemExit too says that it did not load
        wire.send({"broken": describe(error)["text"]})
        return
    wire.send({"ready": True})
    with contextlib.suppress(Ended):
        _Server(module.__dict__, wire).run()


def describe(error: BaseException) -> dict[str, Any]:
    """Describe what was raised: its text, and the names of its classes, the nearest first."""
    try:
        message = str(error.msg if isinstance(error, SyntaxError) else error)[:MESSAGE_CHARS]
    except BaseException:  # noqa: BLE001 -- the answer's own __str__
        message = ""
    lines = []
    trace: types.TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "answer":
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return {
        "text": text if line is None else f"{text} (line {line} of the answer)",
        "message": message,
        "classes": [kind.__name__ for kind in type(error).__mro__],
    }


class _Server:
    def __init__(self, names: dict[str, Any], wire: Wire) -> None:
        self._names, self._wire = names, wire
        self._exported: list[Any] = []  # what the other end knows by its number

    def run(self) -> None:
        while True:
            self._answer(self._wire.receive())

    def _answer(self, frame: dict[str, Any]) -> None:
        try:
            target = self._find(frame["on"])
            given: list[Any] = [decode(item, self._take) for item in frame["given"]]
            named = {name: decode(item, self._take) for name, item in frame["named"].items()}
            value = _OPERATIONS[frame["do"]](target, *given, **named)
            changed = [
                self._encode(item) if isinstance(item, list | dict | set | bytearray) else None for item in given
            ]
            reply = {"value": self._encode(value), "changed": changed}
            self._wire.send(reply)
        except Ended:
            raise
        except BaseException as error:  # noqa: BLE001 -- all of it is told
            self._wire.send({"raised": describe(error)})

    def _find(self, on: int | str) -> Any:
        if isinstance(on, int):
            return self._exported[on]
        if on not in self._names:
            raise NameError(f"the answer defines no {on}")
        return self._names[on]

    def _encode(self, value: Any) -> Any:
        return encode(value, self._export)

    def _export(self, value: Any) -> list[Any]:
        self._exported.append(value)
        tag = "fn" if isinstance(value, _FUNCTIONS) else "ob"
        return [tag, [len(self._exported) - 1, str(type(value).__name__)[:100]]]

    def _take(self, tag: str, rest: Any) -> Any:
        if tag == "mine":
            return self._find(rest)
        if tag == "back":
            return lambda *given, **named: self._call_back(rest, given, named)
        raise BadValue("no value")

    def _call_back(self, number: int, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a function of the tests, which they gave as an argument; they may call us meanwhile."""
        self._wire.send({
            "back": number,
            "given": [self._encode(item) for item in given],
            "named": {name: self._encode(item) for name, item in named.items()},
        })  # fmt: skip
        while True:
            frame = self._wire.receive()
            if "do" not in frame:
                break
            self._answer(frame)
        if "raised" in frame:
            raise RuntimeError(frame["raised"])
        return decode(frame["value"], self._take)
