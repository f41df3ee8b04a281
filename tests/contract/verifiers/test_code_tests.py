"""The kind `code_tests`: what passes, what tests may be made of, and that hostile answers harm and forge nothing."""

import asyncio
import os
import socket
import sys
import time

import psutil
import pytest

from verifiers.base import Cause, InvalidArgs, InvalidVerifier, Status
from verifiers.code_tests import CodeTestsVerifier, make_kind
from verifiers.isolation import Isolation
from verifiers.kind import CODE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kind refuses to be registered")
TESTS = """
assert add(1, 2) == 3
assert add(20, 22) == 42
def test_texts():
    assert add("a", "b") == "ab", "texts are to be joined"
"""
RIGHT = "def add(a, b):\n    return a + b"


def open_isolation(workers=1):
    return Isolation("verifiers.code_tests_job:judge", workers=workers, memory_bytes=2**30, fork_each=True)


@pytest.fixture(scope="module")
def kind():
    isolation = open_isolation()
    yield make_kind(isolation)
    isolation.close()


async def judge(kind, code, tests=TESTS, args=None, **config):
    verifier = kind.compile_checked({"tests": tests, "timeout_s": 20, **config})
    return await verifier.verify({}, {"content": f"Here it is:\n```python\n{code}\n```\nDone."}, args or {})


async def test_the_right_answer_passes(kind):
    verdict = await judge(kind, RIGHT)
    assert (verdict.status, verdict.score, verdict.reason) == (Status.PASSED, 1.0, "")


async def test_a_failure_names_the_test_and_its_message(kind):
    verdict = await judge(kind, "def add(a, b):\n    return int(a) + int(b) if a != 20 else 0")
    assert verdict.status is Status.FAILED
    assert verdict.score == pytest.approx(1 / 3)
    assert "2 of 3 tests failed" in verdict.reason
    assert "line 3: AssertionError (line 3: assert add(20, 22) == 42)" in verdict.reason
    assert "test_texts: ValueError: invalid literal" in verdict.reason
    assert not verdict.safe_for_model
    assert "texts are to be joined" in (await judge(kind, "def add(a, b): return 3")).reason


async def test_the_model_is_shown_tests_only_where_it_may_be(kind):
    assert (await judge(kind, "def add(a, b): return 0", show_tests=True)).safe_for_model
    broken = await judge(kind, "def add(a, b) return 0")
    assert "SyntaxError" in broken.reason
    assert broken.safe_for_model  # no test is told


async def test_the_threshold_is_a_share(kind):
    code = "def add(a, b): return 3 if a == 1 else a + b if a == 20 else None"
    assert (await judge(kind, code)).status is Status.FAILED
    verdict = await judge(kind, code, threshold=0.6)
    assert (verdict.status, round(verdict.score, 3)) == (Status.PASSED, 0.667)


async def test_prints_are_kept_short(kind):
    verdict = await judge(kind, "print('loaded\\0')\ndef add(a, b):\n    print('x' * 10000)\n    return a + b")
    assert verdict.status is Status.PASSED
    assert verdict.stdout.startswith("loaded\ufffd\nxxx")
    assert verdict.stdout.endswith("more bytes]")
    assert len(verdict.stdout) < 4300


@pytest.mark.parametrize(
    ("block", "content", "status"),
    [
        ("last", f"```python\nx = 1\n```\n```py\n{RIGHT}\n```", Status.PASSED),
        ("first", f"```python\nx = 1\n```\n```py\n{RIGHT}\n```", Status.FAILED),
        ("first", f"```\n{RIGHT}\n```\n```python\nx = 1\n```", Status.PASSED),
        ("only", f"```python\nx = 1\n```\n```python\n{RIGHT}\n```", Status.FAILED),
        ("only", f"```bash\nls\n```\n```python\n{RIGHT}\n```", Status.PASSED),
        ("last", RIGHT, Status.PASSED),
        ("last", f"````python\n{RIGHT}\n'''\n```\n'''\n````", Status.PASSED),
        ("last", f"```python\n{RIGHT}", Status.FAILED),
        ("last", "```js\nadd\n```", Status.FAILED),
        ("last", "", Status.FAILED),
        ("last", None, Status.FAILED),
        ("last", "I cannot do that.", Status.FAILED),
    ],
)
async def test_which_code_is_run(kind, block, content, status):
    verifier = kind.compile_checked({"tests": TESTS, "block": block, "timeout_s": 20})
    verdict = await verifier.verify({}, {"content": content}, {})
    assert verdict.status is status
    assert verdict.reason or status is Status.PASSED


PASSING = {
    "functions that are imported": ("from answer import f as g\nassert g(1) == 1", "def f(x): return x"),
    "a checker as of HumanEval": (
        "def check(candidate):\n  assert candidate(2) == 4\ncheck(f)",
        "def f(x): return x * 2",
    ),
    "unittest": (
        "import unittest\nclass T(unittest.TestCase):\n  def setUp(self): self.x = 2\n"
        "  def test_a(self): self.assertEqual(f(self.x), 4)\n"
        "  def test_b(self):\n    with self.assertRaises(ValueError): f(None)",
        "def f(x):\n  if x is None: raise ValueError('none')\n  return x * 2",
    ),
    "plain classes": ("class TestIt:\n  def test_a(self): assert f(1) == 1", "def f(x): return x"),
    "loops": ("for x in range(50):\n  assert f(x) == x", "def f(x): return x"),
    "exceptions": (
        "try:\n  f(1)\n  assert False\nexcept KeyError as e:\n  assert 'gone' in str(e)",
        "class Gone(KeyError): pass\ndef f(x): raise Gone('gone')",
    ),
    "every kind of value": (
        "from fractions import Fraction\nfrom decimal import Decimal\nimport datetime\n"
        "for v in [None, True, -1, 10**40, 1.5, float('inf'), 'x\\0\\U0001f600', b'x', (1, [2, {3}]), {1: (2,), 'a': None},"  # noqa: E501
        " frozenset({1}), 1j, Fraction(1, 3), Decimal('0.10'), datetime.date(2020, 1, 2), range(1, 9, 2), set(), [], {}]:\n"  # noqa: E501
        "  w = f(v)\n  assert w == v and type(w) is type(v), (v, w)",
        "def f(x): return x",
    ),
    "not a number": ("assert f() != f()", "def f(): return float('nan')"),
    "changes in place": (
        "x = [3, 1, 2]\nassert f(x) is None\nassert x == [1, 2, 3]\nd = {}\ng(d)\nassert d == {'a': 1}",
        "def f(x): x.sort()\ndef g(d): d['a'] = 1",
    ),
    "generators": (
        "import itertools\nassert list(f(3)) == [0, 1, 2]\nassert list(itertools.islice(g(), 5)) == [0, 1, 2, 3, 4]",
        "import itertools\ndef f(n): yield from range(n)\ndef g(): return itertools.count()",
    ),
    "functions that are given": ("assert f(lambda x: x + 1, [1, 2]) == [2, 3]", "def f(g, x): return list(map(g, x))"),
    "functions that come back": ("assert f(3)(4) == 7", "def f(a): return lambda b: a + b"),
    "subclasses of values": (
        "assert f('aab') == {'a': 2, 'b': 1}\nassert g() == (1, 2)",
        "from collections import Counter, namedtuple\nP = namedtuple('P', 'x y')\ndef f(x): return Counter(x)\n"
        "def g(): return P(1, 2)",
    ),
    "typing and dataclasses": (
        "assert f(1) == 2",
        "from dataclasses import dataclass\nfrom typing import List\n@dataclass\nclass A:\n  x: int\n"
        "def f(x: int) -> int:\n  return A(x).x + 1",
    ),
    "a main part": ("assert f() == 1", "def f(): return 1\nif __name__ == '__main__':\n  print(input())"),
    "dates that are parsed": (
        "assert f('2020-02-03') == 2",
        "from datetime import datetime\ndef f(x): return datetime.strptime(x, '%Y-%m-%d').month",
    ),
    "deep recursion in its bounds": ("assert f(800) == 800", "def f(n): return n and 1 + f(n - 1)"),
}


@pytest.mark.parametrize("name", PASSING)
async def test_what_tests_may_do(kind, name):
    tests, code = PASSING[name]
    verdict = await judge(kind, code, tests)
    assert (verdict.status, verdict.reason) == (Status.PASSED, "")


STACK = """
class Stack:
    size = 0
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); self.size += 1
    def pop(self):
        if not self.items: raise IndexError("empty")
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __getitem__(self, n): return self.items[n]
    def __iter__(self): return iter(self.items)
    def __eq__(self, other): return self.items == other.items
"""


async def test_classes_where_they_are_allowed(kind):
    tests = (
        "s = Stack()\ns.push(1); s.push('b')\nassert len(s) == 2 and s[0] == 1 and 'b' in s and list(s) == [1, 'b']\n"
        "assert s.pop() == 'b' and s.size == 2\nassert isinstance(s, Stack) and Stack() == Stack() and s != Stack()\n"
        "s.size = 7\nassert s.size == 7\ns.pop()\ntry:\n  s.pop()\n  assert False\nexcept IndexError: pass\n"
    )
    assert (await judge(kind, STACK, tests, objects=True)).reason == ""
    verdict = await judge(kind, STACK, tests)
    assert verdict.status is Status.FAILED
    assert "`objects`" in verdict.reason


FORGING = {
    "exits well": "import os\nos._exit(0)",
    "exits when called": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit": "raise SystemExit(0)",
    "raises SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "raises KeyboardInterrupt when called": "def add(a, b): raise KeyboardInterrupt",
    "prints a report": 'print(\'{"results": [["test", true, ""]]}\')\nimport os\nos._exit(17)',
    "prints that all is well": "print('OK')\nprint('3 passed')\ndef add(a, b): return 0",
    "is equal to all": "class A:\n  def __eq__(self, o): return True\n  __ne__ = lambda s, o: False\ndef add(a, b): return A()",  # noqa: E501
    "is an int equal to all": (
        "class A(int):\n  def __eq__(self, o): return True\n  __hash__ = int.__hash__\ndef add(a, b): return A(0)"
    ),
    "is a text equal to all": "class A(str):\n  def __eq__(self, o): return True\ndef add(a, b): return A('x')",
    "is a list equal to all": "class A(list):\n  def __eq__(self, o): return True\ndef add(a, b): return A()",
    "writes to every pipe": (
        "import os, json\nbody = json.dumps({'results': [['t', True, '']], 'value': 'ab'}).encode()\n"
        "for fd in range(64):\n  for b in (body, len(body).to_bytes(4, 'big') + body):\n"
        "    try: os.write(fd, b)\n    except OSError: pass\ndef add(a, b): return 0"
    ),
    "writes replies ahead": (
        "import os, json\nbody = json.dumps({'value': 3, 'changed': []}).encode()\n"
        "for fd in range(3, 64):\n  try: os.write(fd, (len(body).to_bytes(4, 'big') + body) * 3)\n  except OSError: pass\n"  # noqa: E501
        "def add(a, b): return 0"
    ),
    "replaces builtins": (
        "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.isinstance = lambda *a: True\n"
        "builtins.exec = lambda *a: None\ndef add(a, b): return 0"
    ),
    "redefines the tests": "def test_texts(): pass\ndef add(a, b): return 0",
    "patches the test runner": (
        "import sys\nfor name, m in list(sys.modules.items()):\n  if 'code_tests' in name:\n"
        "    for k in list(vars(m)):\n      try: setattr(m, k, lambda *a, **k: {'results': [['t', True, '']]})\n"
        "      except Exception: pass\ndef add(a, b): return 0"
    ),
    "runs at its end": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): return 0",
    "runs when it is deleted": "import os\nclass A:\n  def __del__(self): os._exit(0)\na = A()\ndef add(a, b): return 0",  # noqa: E501
    "traces": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef add(a, b): return 0",
    "looks at its callers": (
        "import sys\ndef add(a, b):\n  f = sys._getframe()\n  while f:\n    for v in f.f_locals.values():\n"
        "      if isinstance(v, list) and len(v) == 3: return v\n    f = f.f_back\n  return 0"
    ),
    "looks for the tests": (
        "import gc\ndef add(a, b):\n  for o in gc.get_objects():\n    if isinstance(o, (list, tuple, dict)):\n"
        "      for v in (o.values() if isinstance(o, dict) else o):\n"
        "        if isinstance(v, str) and 'assert add' + '(20' in v: return 42\n  return 3 if a == 1 else 0"
    ),
    "sends odd tags": (
        "import os, json\ndef send(b): \n  for fd in range(3, 64):\n    try: os.write(fd, len(b).to_bytes(4, 'big') + b)\n"  # noqa: E501
        "    except OSError: pass\ndef add(a, b):\n"
        '  send(b\'{"value": ["ob", [{}, "x"]], "changed": 5}\')\n  return 0'
    ),
    "sends no JSON": (
        "import os\ndef add(a, b):\n  for fd in range(3, 64):\n    try: os.write(fd, b'\\0\\0\\0\\2xx')\n    except OSError: pass"  # noqa: E501
    ),
    "sends what is too deep": (
        "import os\nb = b'[' * 100000\ndef add(a, b_):\n  for fd in range(3, 64):\n"
        "    try: os.write(fd, len(b).to_bytes(4, 'big') + b)\n    except OSError: pass"
    ),
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", FORGING)
async def test_no_verdict_is_forged(kind, name):
    verdict = await judge(kind, FORGING[name])
    assert verdict.status is Status.FAILED
    assert verdict.score <= 1 / 3 + 1e-9  # who always says 3 is right once
    assert verdict.reason
    assert (await judge(kind, RIGHT)).status is Status.PASSED


HARM = {
    "reads a file": "return open('/etc/passwd').read()",
    "reads its own memory": "return open('/proc/self/mem', 'rb').read(1)",
    "reads through os": "import os\n  return os.read(os.open('/etc/passwd', os.O_RDONLY), 9)",
    "lists a folder": "import os\n  return os.listdir('/')",
    "looks whether a file is there": "import os\n  return os.stat('/etc/passwd').st_size",
    "writes a file": "open(MARK, 'w').write('x')",
    "makes a folder": "import os\n  os.mkdir(MARK)",
    "opens a socket": "import _socket\n  _socket.socket()",
    "forks": "import os\n  return os.fork()",
    "starts a thread": "import threading\n  threading.Thread(target=print).start()",
    "starts a program": "import os\n  os.execv('/bin/true', ['true'])",
    "spawns a program": "import os\n  os.posix_spawn('/bin/true', ['true'], {})",
    "kills its parent": "import os, signal\n  os.kill(os.getppid(), signal.SIGKILL)",
    "kills all": "import os, signal\n  os.kill(-1, signal.SIGKILL)",
    "kills its group": "import os, signal\n  os.killpg(0, signal.SIGKILL)",
    "leaves its session": "import os\n  os.setsid()",
    "raises its limits": "import resource\n  resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "makes a pipe": "import os\n  os.pipe()",
    "makes a file in memory": "import os\n  os.memfd_create('x')",
    "calls the kernel itself": (
        "import sys\n  c = sys.modules['ctypes'].CDLL(None, use_errno=True)\n"
        "  r = [c.syscall(n, 2, 1, 0) for n in (41, 57, 56, 435, 2, 59, 101, 425, 319, 62)]\n"
        "  raise OSError(r) if set(r) == {-1} else SystemError(r)"
    ),
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", HARM)
async def test_no_harm_is_done(kind, name, tmp_path):
    mark = tmp_path / "mark"
    body = HARM[name].replace("MARK", repr(str(mark)))
    verdict = await judge(kind, f"def add(a, b):\n  {body}", "assert add(1, 2) == 3")
    assert verdict.status is Status.FAILED
    words = ("PermissionError", "Operation not permitted", "can't start new thread", "ModuleNotFoundError", "OSError")
    words += ("ImportError", "ValueError: not allowed")
    assert any(word in verdict.reason for word in words), verdict.reason
    assert not mark.exists()
    assert os.getpid() == psutil.Process().pid
    assert (await judge(kind, RIGHT)).status is Status.PASSED


HUNGRY = {
    "hangs when loaded": "while True: pass",
    "hangs when called": "def add(a, b):\n  while True: pass",
    "hangs and catches all": "def add(a, b):\n  while True:\n    try:\n      while True: pass\n    except BaseException: pass",  # noqa: E501
    "sleeps": "import time\ntime.sleep(1000)",
    "ignores signals": (
        "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n  except (OSError, ValueError): pass\n"  # noqa: E501
        "while True: pass"
    ),
    "prints for ever": "while True: print('x' * 10000)",
    "calls back for ever": "import os\ndef add(a, b):\n  while True: os.write(1, b'x' * 10000)",
    "waits for input": "import os\ndef add(a, b):\n  for fd in range(3, 64):\n    try: os.read(fd, 9)\n    except OSError: pass",  # noqa: E501
    "power": "def add(a, b): return 9 ** 9 ** 9",
    "backtracks": "import re\nre.match('(a+)+$', 'a' * 100 + 'b')",
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", HUNGRY)
async def test_what_takes_for_ever_fails_in_its_time(kind, name):
    started = time.perf_counter()
    verdict = await judge(kind, HUNGRY[name], timeout_s=0.4)
    assert verdict.status is Status.FAILED
    assert "longer than its time" in verdict.reason
    assert time.perf_counter() - started < 15
    assert (await judge(kind, RIGHT)).status is Status.PASSED


GREEDY = {
    "memory": "x = []\nwhile True: x.append(bytearray(10**7))",
    "memory when called": "def add(a, b): return 'x' * 10**12",
    "a large result": "def add(a, b): return 'x' * (50 * 10**6)",
    "many results": "def add(a, b): return list(range(2 * 10**6))",
    "a deep result": "def add(a, b):\n  x = []\n  for _ in range(100000): x = [x]\n  return x",
    "a result of itself": "def add(a, b):\n  x = []\n  x.append(x)\n  return x",
    "recursion": "def add(a, b): return add(a, b)",
    "recursion without a bound": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)",
    "a crash": "import sys\ndef add(a, b): sys.modules['ctypes'].string_at(0)",
    "deep source": "x = " + "(" * 5000 + ")" * 5000,
    "long source": "x = " + "+".join(["1"] * 40000),
    "a huge fraction": "from fractions import Fraction\ndef add(a, b): return Fraction(10) ** 100000",
    "a huge decimal": "from decimal import Decimal\ndef add(a, b): return Decimal('1e999999')",
    "a long message": "def add(a, b): raise ValueError('x' * 10**7)",
    "a message that raises": "class E(Exception):\n  def __str__(self): raise KeyError\ndef add(a, b): raise E",
    "half a surrogate pair": "def add(a, b): return '\\ud800'",
    "a name that is no text": "def add(a, b): raise type('\\0' * 1000, (Exception,), {})()",
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", GREEDY)
async def test_what_takes_too_much_fails(kind, name):
    verdict = await judge(kind, GREEDY[name])
    assert verdict.status is Status.FAILED
    assert verdict.reason
    assert len(verdict.reason) < 5000
    assert "\0" not in verdict.reason
    assert (await judge(kind, RIGHT)).status is Status.PASSED


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        ("assert add(1, 2 == 3", "SyntaxError"),
        ("import numpy\nassert add(1) == 1", "numpy cannot be imported"),
        ("import pytest\ndef test_a(): assert add(1)", "pytest cannot be imported"),
        ("x = 1", "no test"),
        ("assert 1 == 1", "nothing of the answer"),
        ("def test_a(fixture): assert add(fixture)", "takes arguments"),
        ("x = " + "(" * 5000, "SyntaxError|cannot be parsed"),
        ("assert add(1)\n" * 600, "500 are allowed"),
        ("\0", "cannot be parsed|SyntaxError"),
    ],
)
def test_tests_that_cannot_be_used_are_refused_with_the_place(kind, tests, says):
    with pytest.raises(InvalidVerifier, match=says) as caught:
        kind.compile_checked({"tests": tests})
    assert caught.value.where.startswith("/tests")


async def test_tests_that_hang_or_end_say_nothing_of_the_answer(kind):
    late = await judge(kind, RIGHT, "add(1, 2)\nwhile True: assert True", timeout_s=0.3)
    assert (late.status, late.cause) == (Status.ABSTAINED, Cause.TIMEOUT)
    ended = await judge(kind, RIGHT, "import os\nassert add(1, 2) == 3\nos._exit(0)")
    assert (ended.status, ended.cause) == (Status.ABSTAINED, Cause.CRASHED)


async def test_tests_are_held_as_well(kind):
    verdict = await judge(kind, RIGHT, "assert add(1, 2) == 3\nassert open('/etc/passwd').read()")
    assert "PermissionError" in verdict.reason


async def test_requests_may_add_tests_only_where_they_may(kind):
    with pytest.raises(InvalidArgs):
        kind.check_args({"tests": TESTS}, {"tests": "assert add(1, 1) == 2"})
    with pytest.raises(InvalidArgs):
        kind.check_args({"tests_in_args": True}, {})
    with pytest.raises(InvalidVerifier):
        kind.compile_checked({})
    kind.check_args({"tests_in_args": True}, {"tests": "assert add(1, 1) == 2"})
    more = {"tests": "assert add(1, 1) == 3"}
    verdict = await judge(kind, RIGHT, args=more, tests_in_args=True)
    assert (verdict.status, verdict.score) == (Status.FAILED, 0.75)
    assert (await judge(kind, RIGHT, args={"tests": "x ="}, tests_in_args=True)).cause is Cause.BAD_ARGS


def test_it_needs_the_right_to_give_code(kind):
    assert kind.find_needs({}) == {CODE}


def test_where_the_system_cannot_hold_code_it_is_refused(monkeypatch):
    isolation = open_isolation()
    monkeypatch.setattr(isolation, "hardening", lambda: {"memory": True, "seccomp": False, "dies_with_host": True})
    with pytest.raises(InvalidVerifier, match="seccomp"):
        CodeTestsVerifier({"tests": TESTS}, isolation)


async def test_the_loop_runs_on_and_nothing_is_left_running():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    isolation = open_isolation(workers=2)
    kind = make_kind(isolation)
    stalls = []

    async def tick():
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            stalls.append(time.perf_counter() - began - 0.005)

    verifier = await asyncio.to_thread(kind.compile_checked, {"tests": TESTS, "timeout_s": 0.4})
    ticking = asyncio.create_task(tick())
    hostile = [*HUNGRY.values(), FORGING["writes to every pipe"], GREEDY["memory"], RIGHT]
    await asyncio.gather(*(verifier.verify({}, {"content": f"```python\n{code}\n```"}, {}) for code in hostile))
    ticking.cancel()
    print(f"longest stall of the loop: {max(stalls) * 1000:.1f} ms")
    assert max(stalls) < 0.25
    own = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    direct = {child.pid for child in psutil.Process().children()}
    forked = [child for child in own if child.pid not in direct]
    _, left = psutil.wait_procs(forked, timeout=20)  # the fork of a job ends just after its answer is in
    assert left == []
    isolation.close()
    _, left = psutil.wait_procs(own, timeout=20)
    assert left == []


async def test_no_server_is_reached(kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        code = (
            "import sys\ndef add(a, b):\n  c = sys.modules['ctypes'].CDLL(None)\n  import struct\n"
            f"  s = c.socket(2, 1, 0)\n  c.connect(s, struct.pack('HHI8x', 2, {socket.htons(port)}, 0x0100007F), 16)\n"
            "  return s"
        )
        verdict = await judge(kind, code, "assert add(1, 2) == 3")
        assert verdict.status is Status.FAILED
        with pytest.raises(TimeoutError):
            server.accept()
