"""The commands that the documents give for their claims name what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
TEST = re.compile(r"\btests/[\w/.-]*\w")
BENCH = re.compile(r"\bpython (?:-m )?(bench[./][\w./]*\w)")
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]+)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_what_a_page_names_is_there(page: Path):
    text = page.read_text()
    named = {name.split("::")[0] for name in TEST.findall(text)}
    tests = [name for name in sorted(named) if "node_modules" not in name]  # `make clients` makes those
    assert [name for name in tests if not (ROOT / name).exists()] == []
    benches = {name.removesuffix(".py").replace(".", "/") for name in BENCH.findall(text)}
    assert [one for one in sorted(benches) if not ((ROOT / one).is_dir() or (ROOT / f"{one}.py").exists())] == []
    links = set(LINK.findall(text))
    assert [link for link in sorted(links) if not (page.parent / link).exists()] == []


def test_there_is_something_to_check():
    named = [name for page in PAGES for name in (*TEST.findall(page.read_text()), *BENCH.findall(page.read_text()))]
    assert len(named) > 40
