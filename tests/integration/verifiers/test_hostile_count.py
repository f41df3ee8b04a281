"""There are as many hostile cases as were promised, of every sort, and the page on security says how many."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.verifiers.test_hostile_live import CASES

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "security-of-verifiers.md").read_text()
FOLDERS = ["tests/unit/verifiers", "tests/contract/verifiers", "tests/integration/verifiers"]
LEAST = 150
LEAST_OF_A_SORT = {
    "test_hostile_live.py": 90,
    "test_hostile_webhooks.py": 60,
    "test_sandbox.py": 30,
    "test_schema.py": 20,
    "test_sql_workers.py": 25,
    "test_maths.py": 20,
}
EVERY_ANSWER_TO_EVERY_KIND = "test_every_kind.py"  # a table times a table: not counted
SORTS = {"program": 90, "schema": 40, "pattern": 20, "composite": 15, "answer": 40}


@pytest.fixture(scope="module")
def counted() -> Counter[str]:
    """Count the cases that carry the mark, by file; each once, whatever it is called."""
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "hostile", *FOLDERS]
    listed = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert listed.returncode == 0, listed.stdout[-2000:] + listed.stderr[-2000:]
    names = {line for line in listed.stdout.splitlines() if "::" in line}
    return Counter(name.partition("::")[0].rpartition("/")[2] for name in names)


def test_there_are_150_hostile_cases_and_more(counted):
    assert counted.total() - counted[EVERY_ANSWER_TO_EVERY_KIND] >= LEAST
    short = {name: counted[name] for name, least in LEAST_OF_A_SORT.items() if counted[name] < least}
    assert not short


def test_there_are_so_many_of_every_sort():
    sorts = Counter(name.partition(" ")[0] for name in CASES)
    assert {sort: sorts[sort] for sort, least in SORTS.items() if sorts[sort] < least} == {}


def test_no_case_is_there_twice():
    seen = [repr((case.kind, case.config, case.answer, case.args, case.tools)) for case in CASES.values()]
    assert [name for name, one in zip(CASES, seen, strict=True) if seen.count(one) > 1] == []


def test_every_case_says_how_it_ends():
    for name, case in CASES.items():
        assert case.ends or case.refused or case.says, name
        assert not (case.ends and case.refused), name


def test_the_page_says_how_many():
    said = {sort: int(number) for number, sort in re.findall(r"^\| ([0-9]+) \| (\w+)s\b", PAGE, re.MULTILINE)}
    assert said == dict(Counter(name.partition(" ")[0] for name in CASES))
