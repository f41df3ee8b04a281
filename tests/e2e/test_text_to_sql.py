"""docs/text-to-sql.md as its reader follows it: the model is made and served, and every snippet does what it shows."""

from pathlib import Path

import pytest

from tests.e2e.guide import read_blocks, run_page
from tests.e2e.harness import ROOT, Up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = ROOT / "docs" / "text-to-sql.md"
START = "```sh\nmulligan up --model sql-model\n```\n"


def test_every_snippet_of_the_walk_through_does_what_it_shows(tmp_path: Path):
    before, started, after = PAGE.read_text().partition(START)
    assert started
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "examples").symlink_to(ROOT / "examples")
    assert run_page(write(tmp_path / "before.md", before), first, origin="", key="") == 1
    up = Up(second / "data", "--model", str(first / "sql-model"))
    try:
        up.wait_ready()
        rest = write(tmp_path / "after.md", "\n" * (before + started).count("\n") + after)
        ran = run_page(rest, second, origin=up.url.removesuffix("/v1"), key=up.key)
    finally:
        up.close()
    assert ran == len([block for block in read_blocks(after) if is_run(block.language, block.rest)])
    assert ran == 8


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def is_run(language: str, rest: str) -> bool:
    return language in ("sh", "python") and (not rest or "=" in rest)
