"""`mulligan doctor` where there is nothing yet."""

from pathlib import Path

import pytest

from tests.e2e.harness import mulligan


@pytest.mark.parametrize("options", [[], ["--wait-s", "0"]])
def test_without_a_database_it_says_what_to_run_and_makes_none(tmp_path: Path, options: list[str]):
    done = mulligan("doctor", "--data-dir", str(tmp_path / "data"), *options, check=False)
    assert done.returncode == 1
    assert "FAIL database: there is none at" in done.stdout
    assert "--data-dir" in done.stdout
    assert "Traceback" not in done.stderr
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / "data"] == []
