"""The snippets of the guides are true: each page is run from top to bottom against a server of its own."""

from pathlib import Path

import pytest

from tests.e2e.guide import read_blocks, run_page
from tests.e2e.harness import ROOT, Up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("page", "snippets"), [("verifiers.md", 15)])
def test_every_snippet_of_the_page_does_what_it_says(page, snippets, tmp_path):
    up = Up(tmp_path / "data")  # where the commands look for it
    try:
        up.wait_ready()
        ran = run_page(ROOT / "docs" / page, tmp_path, origin=up.url.removesuffix("/v1"), key=up.key)
    finally:
        up.close()
    assert ran == snippets


@pytest.mark.parametrize("page", [ROOT / "docs" / "verifiers.md"], ids=lambda path: path.name)
def test_every_block_of_the_page_is_of_a_language_that_is_known(page: Path):
    assert {block.language for block in read_blocks(page.read_text())} <= {"sh", "python", "json", "text", "toml"}
