"""Programs that mean harm, as the code of a `python` verifier."""

from tests.integration.verifiers.hostile.table import Hostile

SHORT_S, LONG_S = 0.2, 5.0  # for those that always need all of it, and for those that should not
LATE = ("timeout",)
DEAD = ("crashed",)
LATE_OR_DEAD = ("timeout", "crashed")
RAISED = ("broke",)
ODD = ("bad_return",)


def inside(body, *ends, **more):
    """Make a case of what stands inside of `verify`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return whole(f"def verify(request, answer, args):\n{lines}", *ends, **more)


def whole(code, *ends, **more):
    timeout_s = SHORT_S if ends and ends[0] == "timeout" else LONG_S
    return Hostile("python", {"code": code, "timeout_s": timeout_s}, ends, **more)


def refused(code, says, **more):
    return whole(code, refused="config.code", says=says, **more)


TIME = {
    "endless loop": inside("while True: pass", *LATE),
    "endless loop that catches all": inside(
        "while True:\n  try:\n    while True: pass\n  except BaseException:\n    pass", *LATE
    ),
    "endless loop behind a caught end": inside("try:\n  while True: pass\nexcept BaseException:\n  return True", *LATE),
    "endless loop in finally": inside("try:\n  return True\nfinally:\n  while True: pass", *LATE),
    "endless comparison": inside(
        "class A:\n  def __eq__(self, o):\n    while True: pass\nreturn A() == 1", "failed", *LATE, *RAISED
    ),
    "squares": inside("x = 10**1000\nwhile True: x = x * x", *LATE_OR_DEAD),
    "factorial": inside("import math\nreturn math.factorial(10**7) > 0", *LATE_OR_DEAD, *RAISED),
    "digits of a power": inside("return len(str(7 ** 400_000)) > 0", *LATE, *RAISED),
    "number of many digits": inside("return int('9' * 1_000_000) > 0", *LATE, *RAISED),
    "modular power": inside("return pow(3, 10**4000, 10**4000 + 7) > 0", *LATE_OR_DEAD, *RAISED),
    "sorting": inside("return sorted(range(10**9))", *LATE_OR_DEAD),
    "sum": inside("return sum(range(10**12)) > 0", *LATE),
    "search in a text": inside("s = 'a' * 10**6\nwhile True: s.find('a' * 5 * 10**5 + 'b')", *LATE),
    "backtracking pattern": inside("import re\nreturn bool(re.match('(a+)+$', 'a' * 50 + 'b'))", "failed"),
    "backtracking by reference": inside(
        "import re\nreturn bool(re.match(r'^(?:(a+)\\1?)+$', 'a' * 60 + 'c'))", *LATE, *RAISED, "failed"
    ),
    "pattern of a million states": inside(
        "import re\nreturn bool(re.match('((a{1000}){1000}){1000}', 'a'))", *RAISED, *LATE_OR_DEAD
    ),
    "sleep": inside("import time\ntime.sleep(10_000)\nreturn True", "passed"),
    "sleep of a coroutine": inside(
        "import asyncio\nasync def f():\n  await asyncio.sleep(10_000)\n  return True\nreturn asyncio.run(f())",
        *RAISED,
        *LATE,
        "passed",
    ),
}

MEMORY = {
    "doubling list": inside("x = [0]\nwhile True: x = x + x", *DEAD),
    "list times a billion": inside("return [0] * 10**9", *DEAD),
    "text times a million million": inside("return 'a' * 10**12", *DEAD),
    "bytes": inside("return b'a' * 10**10", *DEAD),
    "many objects": inside("x = {}\nwhile True: x[len(x)] = [len(x)]", *LATE_OR_DEAD),
    "many sets": inside("return set(range(10**8))", *LATE_OR_DEAD),
    "joined texts": inside("s = 'a' * 10**6\nwhile True: s = s.join([s] * 1000)", *DEAD),
    "replaced text": inside("return ('a' * 10**6).replace('a', 'b' * 10**6)", *DEAD),
    "padded text": inside("return 'a'.ljust(10**10)", *DEAD),
    "wide format": inside("return f'{1:1000000000}'", *DEAD, *RAISED),
    "wide percent format": inside("return '%1000000000d' % 1", *DEAD, *RAISED),
    "huge power": inside("return 2 ** 10**9 > 0", *DEAD),
    "huge shift": inside("return 1 << 10**10", *DEAD),
    "comprehension": inside("return [[0] * 1000 for _ in range(10**6)]", *LATE_OR_DEAD),
    "split text": inside("return ('a ' * 10**7).split()", *LATE_OR_DEAD),
    "long repr": inside("x = ['a' * 1000]\nfor _ in range(20): x = [x, x]\nreturn repr(x)", *LATE_OR_DEAD),
    "JSON of a bomb": inside(
        "import json\nx = ['a']\nfor _ in range(40): x = [x, x]\nreturn json.dumps(x)", *LATE_OR_DEAD
    ),
}

DEPTH = {
    "recursion": inside("def f(n): return f(n + 1)\nreturn f(0)", *RAISED, says="RecursionError"),
    "recursion that is caught": inside(
        "def f():\n  try:\n    return f()\n  except RecursionError:\n    return f()\nreturn f()", *LATE, *RAISED
    ),
    "recursion of coroutines": inside(
        "import asyncio\nasync def f(): await f()\nreturn asyncio.run(f())", *RAISED, says="RecursionError"
    ),
    "deep JSON": inside("import json\nreturn json.loads('[' * 100_000)", *RAISED),
    "deep evaluation": inside("return eval('(' * 5000 + ')' * 5000)", *RAISED),
    "evaluation of itself": inside("s = 'eval(s)'\nreturn eval(s)", *RAISED),
    "deep comparison": inside(
        "a, b = [], []\nfor _ in range(5000): a, b = [a], [b]\nreturn a == b", *RAISED, *LATE_OR_DEAD
    ),
    "64 KiB of brackets": refused("x = " + "[" * (32 * 1024) + "]" * (31 * 1024), "nested"),
    "64 KiB of brackets that close": refused("(" * 32_768 + ")" * 32_768, "nested"),
    "64 KiB of minus": refused(f"x = {'-' * 65_000}1", ""),
    "64 KiB of not": refused(f"x = {'not ' * 16_000}1", ""),
    "64 KiB of attributes": refused(f"x = a{'.a' * 32_000}", ""),
    "64 KiB of lambdas": refused(f"x = {'lambda: ' * 8_000}1", ""),
    "blocks in blocks": refused("\n".join(" " * n + "if 1:" for n in range(350)), ""),
    "64 KiB of f-strings": refused("f'{" * 16_000, ""),
}

OUTPUT = {
    "print flood": inside("while True: print('spam' * 1000)", *DEAD, says="printed more than"),
    "one long line": inside("print('x' * 10**8)", *DEAD, *RAISED),
    "prints of nothing": inside("while True: print(end='')", *LATE, *RAISED),
    "print of control characters": inside("print('\\x1b[2J\\0\\r\\n\\u202e' * 500)\nreturn True", "passed"),
    "print of surrogates": inside("print('\\ud800')\nreturn True", *RAISED, "passed"),
    "print to stderr": inside("import sys\nprint('x' * 10**5, file=sys.stderr)\nreturn True", *RAISED, "passed"),
    "long error": inside("raise ValueError('x' * 10**7)", *RAISED),
    "error of control characters": inside("raise ValueError('\\0\\x1b[2J\\r\\n')", *RAISED),
    "error whose text is a loop": inside(
        "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E()",
        refused="config.code",
        says="class",
    ),
    "error of an object whose text is a loop": inside(
        "class A:\n  def __str__(self):\n    while True: pass\nraise ValueError(str(A()))", *LATE, *RAISED
    ),
    "error of an object whose repr raises": inside(
        "class A:\n  def __repr__(self): raise ValueError(self)\nraise ValueError(repr(A()))", *RAISED
    ),
    "error that holds itself": inside("e = ValueError(1)\nraise e from e", *RAISED),
    "chain of errors": inside("def f(n):\n  try:\n    f(n + 1)\n  finally:\n    raise ValueError(n)\nf(0)", *RAISED),
    "exit": inside("raise SystemExit(0)", *RAISED),
    "interrupt": inside("raise KeyboardInterrupt", *RAISED),
    "generator's exit": inside("raise GeneratorExit", *RAISED),
}

RETURNS = {
    "nothing": inside("pass", *ODD),
    "NaN": inside("return float('nan')", *ODD),
    "score NaN": inside("return {'passed': True, 'score': float('nan')}", *ODD),
    "score infinite": inside("return {'passed': True, 'score': float('inf')}", *ODD),
    "score of 400 digits": inside("return {'passed': True, 'score': 10**400}", *ODD),
    "score that is none": inside("return {'passed': True, 'score': '1'}", *ODD),
    "itself": inside("return verify", *ODD),
    "a list that holds itself": inside("x = []\nx.append(x)\nreturn x", *ODD, *RAISED, *DEAD),
    "a dict that holds itself": inside("x = {'passed': True}\nx['reason'] = x\nreturn x", "passed", *ODD),
    "5,000 lists": inside("x = []\nfor _ in range(5000): x = [x]\nreturn x", *ODD, *RAISED, *DEAD),
    "60 MB": inside("return {'passed': True, 'reason': 'x' * 60_000_000}", *DEAD, *RAISED, *ODD, *LATE),
    "a million keys": inside("return {str(n): n for n in range(10**6)}", *LATE_OR_DEAD, *RAISED, *ODD),
    "an object": inside("class A: pass\nreturn A()", *ODD, *RAISED),
    "an object that is true": inside("class A:\n  def __bool__(self): return True\nreturn A()", *ODD, *RAISED),
    "one and no bool": inside("return 1", *ODD),
    "keys that are no text": inside("return {1: 2, 'passed': True}", *ODD),
    "a key more": inside("return {'passed': True, 'admin': True}", *ODD),
    "a reason of surrogates": inside("return {'passed': True, 'reason': '\\ud800\\0'}", *RAISED, *ODD, "passed"),
    "a reason of 2 MB": inside("return {'passed': False, 'reason': '\\u202e' * 700_000}", "failed", *RAISED, *ODD),
    "a generator": inside("return (x for x in [True])", *ODD, *RAISED),
    "bytes of markup": inside("return b'<script>'", *ODD),
}

OUTSIDE = {
    "file": inside("return bool(open('/etc/passwd').read())", *RAISED),
    "write": inside("open('/tmp/mulligan', 'w').write('x')\nreturn True", *RAISED),
    "path": inside("import pathlib\nreturn bool(pathlib.Path('/proc/self/environ').read_bytes())", *RAISED),
    "folder": inside("import os\nreturn bool(os.listdir('/'))", *RAISED),
    "environment": inside("import os\nreturn bool(os.environ)", *RAISED, "failed"),
    "one variable": inside("import os\nreturn bool(os.getenv('MULLIGAN_DATABASE_URL'))", *RAISED, "failed"),
    "shell": inside("import os\nreturn os.system('id') == 0", *RAISED),
    "another process": inside("import os\nreturn os.fork() == 0", *RAISED),
    "kill the host": inside("import os\nos.kill(os.getppid(), 9)\nreturn True", *RAISED),
    "import of subprocess": inside("import subprocess\nreturn True", *RAISED),
    "import of socket": inside("import socket\nreturn True", *RAISED),
    "import of ctypes": refused("import ctypes\ndef verify(request, answer, args): return True", "No module named"),
    "import by name": inside("return __import__('os')", *RAISED),
    "builtins": inside("return bool(__builtins__)", *RAISED),
    "subclasses": inside("return bool(().__class__.__base__.__subclasses__())", *RAISED),
    "globals of a function": inside("return bool(verify.__globals__)", *RAISED),
    "code of a function": inside("verify.__code__ = None\nreturn True", *RAISED),
    "frames": inside("import sys\nreturn bool(sys._getframe())", *RAISED),
    "frame of an error": inside(
        "try:\n  1 / 0\nexcept Exception as error:\n  return bool(error.__traceback__.tb_frame)", *RAISED
    ),
    "attributes by format": inside("return '{0.__class__.__mro__}'.format(1)", *RAISED, *ODD),
    "attributes by name": inside("return getattr(answer, '__cl' + 'ass__').__mro__", *RAISED, *ODD),
    "input": inside("return input()", *RAISED),
    "code at run time": inside("exec('import socket')\nreturn True", *RAISED),
}

SHAPES = {
    "verify is a number": refused("verify = 5", "no function"),
    "verify is a class": refused("class verify: pass", "no function"),
    "no verify": refused("x = 1", "defines no function"),
    "verify is gone": refused("def verify(request, answer, args): return True\ndel verify", "no"),
    "verify yields": refused("def verify(request, answer, args):\n  yield True", "yield"),
    "verify waits": whole("async def verify(request, answer, args): return True", *ODD, *RAISED),
    "verify takes nothing": whole("def verify(): return True", *RAISED),
    "verify makes itself a number": inside("global verify\nverify = 5\nreturn True", "passed"),
    "endless loading": refused("while True: pass", "longer than its time"),
    "loading that eats": refused("x = [0]\nwhile True: x = x + x", ""),
    "loading that raises": refused("1 / 0", "ZeroDivisionError"),
    "loading that exits": refused("raise SystemExit", "SystemExit"),
    "NUL": refused("\0", "SyntaxError"),
    "a surrogate": refused("x = '\ud800'", "surrogates"),
    "half a line": refused("def verify(request, answer, args):\n  return (1 +", "SyntaxError"),
    "tabs and spaces": whole("def verify(request, answer, args):\n\tif 1:\n        return True", "passed"),
    "right to left": refused("def verify(request, answer, args): \u202e return True", "SyntaxError"),
    "a name of look-alikes": refused("def v\u0435rify(request, answer, args): return True", "defines no function"),
    "another encoding": whole("# coding: utf-7\ndef verify(request, answer, args): return False", "failed"),
    "longer than 64 KiB": refused("x = 1\n" * 20_000, ""),
    "no code": refused("", ""),
    "code that is no text": Hostile("python", {"code": ["x"]}, refused="config.code"),
    "time without end": Hostile("python", {"code": "x", "timeout_s": 1e308}, refused="config.timeout_s"),
    "verify changes what it is given": inside(
        "request.clear()\nanswer['content'] = 'right'\nargs['x'] = args\nreturn len(request) == 0", "passed"
    ),
    "verify leaves through the call": inside(
        "return True\n)\nimport os\n(0", refused="config.code", says="SyntaxError"
    ),
    "another call behind the end": whole("def verify(request, answer, args): return False\n'''", refused="config.code"),
    "the call shadowed": whole(
        "__request = __answer = __args = None\ndef verify(request, answer, args): return request is None", "passed"
    ),
}

PROGRAMS = {
    f"{group}: {name}": case
    for group, table in {
        "time": TIME,
        "memory": MEMORY,
        "depth": DEPTH,
        "output": OUTPUT,
        "return": RETURNS,
        "outside": OUTSIDE,
        "shape": SHAPES,
    }.items()
    for name, case in table.items()
}
