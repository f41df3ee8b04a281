import pytest

from tools.reference_docs import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name):
    assert (DOCS / name).read_text() == PAGES[name](), "run `make docs`"
