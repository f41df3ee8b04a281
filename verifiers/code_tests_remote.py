"""What tests see of an answer: functions that call over the wire, and objects whose every deed is a call.

Lives in the tests' process. What comes back are plain values; what is compared is compared here, by Python's own types.
Operators between an answer's object and a plain value are refused: they would let the answer say what is equal.
"""

import builtins
from collections.abc import Iterator
from typing import Any, NoReturn

from verifiers.code_tests_wire import BadValue, Ended, Wire, decode, encode

MAX_EXPORTS = 10_000
_CHANGING = (list, dict, set, bytearray)


class AnswerRaised(Exception):
    """The answer raised what is no built-in exception."""


class Session:
    """The tests' end of the wire."""

    def __init__(self, wire: Wire, *, objects: bool) -> None:
        self._wire, self._objects = wire, objects
        self._given: list[Any] = []  # functions of the tests that the answer may call

    def make_entry(self, name: str) -> "Function":
        """Make what stands for the answer's `name` in the tests."""
        return (Thing if self._objects else Function)(self, name, name)

    def do(self, deed: str, on: Any, *given: Any, **named: Any) -> Any:
        """Let the answer do something.

        Raises: what the answer raised, as a built-in exception or AnswerRaised; BadValue, Late, Ended.
        """
        self._wire.send({
            "do": deed,
            "on": on,
            "given": [encode(item, self._export) for item in given],
            "named": {name: encode(item, self._export) for name, item in named.items()},
        })  # fmt: skip
        while True:
            frame = self._wire.receive()
            if "back" not in frame:
                break
            self._serve(frame)
        if "raised" in frame:
            raise _rebuild(frame["raised"])
        if "value" not in frame:
            raise Ended
        self._take_changes(given, frame.get("changed"))
        return decode(frame["value"], self._take)

    def _take_changes(self, given: tuple[Any, ...], changed: Any) -> None:
        """Take over what the answer changed in place."""
        if not isinstance(changed, list) or len(changed) != len(given):
            return
        for item, written in zip(given, changed, strict=True):
            if type(item) not in _CHANGING or written is None:
                continue
            new = decode(written, self._take)
            if type(new) is not type(item) or _looks_same(new, item):
                continue
            if isinstance(item, list | bytearray):
                item[:] = new
            else:
                item.clear()
                item.update(new)

    def _serve(self, frame: dict[str, Any]) -> None:
        """Call a function of the tests for the answer."""
        try:
            function = self._given[frame["back"]]
            given = [decode(item, self._take) for item in frame["given"]]
            named = {name: decode(item, self._take) for name, item in frame["named"].items()}
            reply = {"value": encode(function(*given, **named), self._export)}
        except Exception as error:  # noqa: BLE001 -- the function may raise anything, and the answer is told
            reply = {"raised": f"{type(error).__name__}: {error}"[:300]}
        self._wire.send(reply)

    def _export(self, value: Any) -> list[Any]:
        if isinstance(value, Function):
            return ["mine", value._on]  # noqa: SLF001 -- one mechanism
        if not callable(value) or isinstance(value, type):
            raise BadValue(f"a {type(value).__name__} of the tests cannot be given to the answer")
        if len(self._given) >= MAX_EXPORTS:
            raise BadValue("too many functions were given to the answer")
        self._given.append(value)
        return ["back", len(self._given) - 1]

    def _take(self, tag: str, rest: Any) -> Any:
        number, kind = rest
        if type(number) is not int or not isinstance(kind, str):
            raise BadValue("no value")
        if tag == "fn":
            return (Thing if self._objects else Function)(self, number, kind)
        if tag == "ob" and self._objects:
            return Thing(self, number, kind)
        if tag == "ob":
            raise BadValue(f"the answer gave a {kind[:50]}, which is no plain value (see `objects`)")
        raise BadValue("no value")


class Function:
    """A function of the answer."""

    _session: Session
    _on: Any
    _name: str

    def __init__(self, session: Session, on: Any, name: str) -> None:
        self.__dict__.update(_session=session, _on=on, _name=name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call it, in the answer's process."""
        return self._session.do("call", self._on, *given, **named)

    def __repr__(self) -> str:
        return f"<{self._name} of the answer>"


class Thing(Function):
    """An object or class of the answer, where the tests are allowed such."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._session.do("get", self._on, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._session.do("set", self._on, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._session.do("item", self._on, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._session.do("set_item", self._on, key, value)

    def __delitem__(self, key: Any) -> None:
        self._session.do("del_item", self._on, key)

    def __len__(self) -> int:
        return self._session.do("len", self._on)

    def __iter__(self) -> Iterator[Any]:
        return self._session.do("iter", self._on)

    def __contains__(self, value: Any) -> bool:
        return self._session.do("in", self._on, value)

    def __bool__(self) -> bool:
        return self._session.do("bool", self._on)

    def __str__(self) -> str:
        return self._session.do("str", self._on)

    def __repr__(self) -> str:
        return self._session.do("repr", self._on)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Thing) and self._session.do("is_instance", self._on, value)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> Any:
        return self._between("==", other) if isinstance(other, Thing) else False

    def __lt__(self, other: Any) -> Any:
        return self._between("<", other)

    def __le__(self, other: Any) -> Any:
        return self._between("<=", other)

    def __add__(self, other: Any) -> Any:
        return self._between("+", other)

    def __sub__(self, other: Any) -> Any:
        return self._between("-", other)

    def __mul__(self, other: Any) -> Any:
        return self._between("*", other)

    def __truediv__(self, other: Any) -> Any:
        return self._between("/", other)

    def _between(self, operator: str, other: Any) -> Any:
        if not isinstance(other, Thing):
            _refuse(operator, other)
        return self._session.do(operator, self._on, other)


def _refuse(operator: str, other: Any) -> NoReturn:
    raise BadValue(f"{operator} between an object of the answer and a {type(other).__name__} is not allowed")


def _looks_same(new: Any, old: Any) -> bool:
    return repr(new) == repr(old)


def _rebuild(told: Any) -> Exception:
    """Make the exception that the answer raised: the nearest built-in one."""
    if not isinstance(told, dict) or not isinstance(told.get("classes"), list):
        return AnswerRaised("the answer raised something")
    text = str(told.get("message", ""))[:300]
    for name in told["classes"][:20]:
        kind = getattr(builtins, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError wants five arguments
                continue
    return AnswerRaised(str(told.get("text", ""))[:300])
