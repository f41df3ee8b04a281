import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["server", "trainer", "verifiers", "local_engine", "demo"])
def test_our_folders_are_ours(name):
    """PyPI has packages of these names; installed beside us they would overwrite or shadow ours."""
    assert Path(importlib.import_module(name).__file__ or "").parent == ROOT / name


def test_the_library_of_migrations_is_not_shadowed():
    assert not (ROOT / "alembic" / "__init__.py").exists()
    assert ROOT not in Path(importlib.import_module("alembic").__file__ or "").parents or "site-packages" in str(
        importlib.import_module("alembic").__file__
    )
