"""Reads the sources of the kind `code_tests`: the code inside of an answer, and what tests are made of. Runs nothing.

Called in isolated workers: the parser itself can be brought down by hostile source.
"""

import ast
import builtins
import re
import symtable
from dataclasses import dataclass, field

from verifiers.code_tests_modules import may_import

MAX_TESTS = 500
ANSWER_MODULES = ("answer", "solution")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$")
_LANGUAGES = ("", "python", "py", "python3")


class NoCode(ValueError):
    """The answer holds no code, or not the one block that is wanted; the message says so."""


class BadTests(ValueError):
    """The tests cannot be used. `where` is the line, where one is to blame."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.where = None if line is None else f"line {line}"


@dataclass(frozen=True)
class Unit:
    """One test. `name` is a function's, `Class.method`, or `line N`; `node` is None for what runs after the module."""

    name: str
    node: ast.stmt | None = None


@dataclass
class Plan:
    """What running tests means: the module's statements in order, each with its unit if it is one, then the rest."""

    statements: list[tuple[ast.stmt, Unit | None]] = field(default_factory=list)
    later: list[Unit] = field(default_factory=list)
    entry_points: dict[str, str] = field(default_factory=dict)  # the name in the tests: the name in the answer

    @property
    def units(self) -> list[Unit]:
        """All tests, in the order in which they run."""
        return [unit for _, unit in self.statements if unit] + self.later


def find_code(text: str, block: str) -> str:
    """Find the code in an answer: the `first`, `last` or `only` fenced block, or the whole text where none is fenced.

    Raises: NoCode.
    """
    blocks = _list_blocks(text)
    if not blocks:
        if "```" in text or not text.strip():
            raise NoCode("there is no Python code in the answer")
        return text
    if block == "only" and len(blocks) > 1:
        raise NoCode(f"there are {len(blocks)} blocks of Python in the answer, and there may be one")
    return blocks[0] if block == "first" else blocks[-1]


def _list_blocks(text: str) -> list[str]:
    blocks: list[str] = []
    fence, language, lines = "", "", []
    for line in text.splitlines():
        match = _FENCE.match(line)
        if fence:
            if match and match[1].startswith(fence) and not match[2]:
                if language in _LANGUAGES:
                    blocks.append("\n".join(lines) + "\n")
                fence = ""
            else:
                lines.append(line)
        elif match:
            fence, language, lines = match[1], match[2].lower(), []
    return blocks


def plan_tests(source: str, entry_points: list[str] | None) -> Plan:
    """Read tests: what they are, and which names of the answer they use.

    Raises: BadTests.
    """
    try:
        tree = ast.parse(source, "tests")
        unbound = _find_unbound(symtable.symtable(source, "tests", "exec"))
    except SyntaxError as error:
        raise BadTests(f"SyntaxError: {error.msg}", error.lineno) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadTests(f"they cannot be parsed: {type(error).__name__}") from None
    plan = Plan()
    for statement in tree.body:
        _plan_statement(statement, plan)
    _check_imports(tree)
    names = unbound if entry_points is None else entry_points
    plan.entry_points |= {name: name for name in names}
    if not plan.units:
        raise BadTests("there is no test in them: an assert, a function test_..., or a class of such")
    if len(plan.units) > MAX_TESTS:
        raise BadTests(f"there are {len(plan.units):,} tests, and {MAX_TESTS} are allowed")
    if not plan.entry_points:
        raise BadTests("they use nothing of the answer")
    return plan


def _plan_statement(statement: ast.stmt, plan: Plan) -> None:
    if isinstance(statement, ast.ImportFrom) and statement.module in ANSWER_MODULES and not statement.level:
        plan.entry_points |= {alias.asname or alias.name: alias.name for alias in statement.names}
        return
    unit = None
    if isinstance(statement, ast.FunctionDef) and statement.name.startswith("test"):
        _check_parameters(statement, 0)
        plan.later.append(Unit(statement.name))
    elif isinstance(statement, ast.ClassDef):
        for inner in statement.body:
            if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test"):
                _check_parameters(inner, 1)
                plan.later.append(Unit(f"{statement.name}.{inner.name}"))
    elif _is_test(statement):
        unit = Unit(f"line {statement.lineno}", statement)
    plan.statements.append((statement, unit))


def _is_test(statement: ast.stmt) -> bool:
    """Whether a statement of the module is a test: an assert, a call, or what holds an assert."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    return any(isinstance(node, ast.Assert) for node in ast.walk(statement))


def _check_parameters(function: ast.FunctionDef, most: int) -> None:
    arguments = function.args
    needed = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    needed += sum(default is None for default in arguments.kw_defaults)
    if needed > most:
        raise BadTests(f"{function.name} takes arguments, and nobody gives any", function.lineno)


def _check_imports(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [] if node.module in ANSWER_MODULES and node in tree.body else [node.module or "."]
        else:
            continue
        for name in names:
            if not may_import(name):
                raise BadTests(f"{name} cannot be imported: there is a part of the standard library only", node.lineno)


def _find_unbound(table: symtable.SymbolTable) -> list[str]:
    """List the names that the tests use and nowhere bind: these are the answer's."""
    bound = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used: dict[str, None] = {}
    tables = [table]
    while tables:
        scope = tables.pop(0)
        tables += scope.get_children()
        for symbol in scope.get_symbols():
            if symbol.is_declared_global() and symbol.is_assigned():
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (scope is table or symbol.is_global()):
                used[symbol.get_name()] = None
    return [name for name in used if name not in bound and not hasattr(builtins, name) and not _is_dunder(name)]


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
