from pathlib import Path

from pydantic import BaseModel

from server.settings import Settings
from tools.settings_docs import ABOUT, PAGE, SECTIONS, render_page, rows
from trainer.settings import TrainerSettings


def count_fields(model: type[BaseModel]) -> int:
    inner = [field.annotation for field in model.model_fields.values()]
    return sum(count_fields(kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else 1 for kind in inner)


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text() == render_page(), "run `make docs`"


def test_every_variable_is_there_once_and_says_what_it_is_for():
    listed = list(rows())
    assert len(listed) == len({row.name for row in listed}) == count_fields(Settings) + count_fields(TrainerSettings)
    assert [row.name for row in listed if not row.about.strip()] == [], "say it in a comment at the end of its line"
    assert {row.section for row in listed} == set(SECTIONS)
    assert set(ABOUT) <= {row.name for row in listed}


def test_nothing_of_this_machine_and_no_secret_is_on_the_page(monkeypatch):
    monkeypatch.setenv("MULLIGAN_DATABASE_URL", "postgresql://user:hunter2@host/db")
    monkeypatch.setenv("MULLIGAN_VERIFIERS__SECRETS", '{"judge": "hunter2"}')
    page = render_page()
    assert "hunter2" not in page
    assert str(Path.cwd()) not in page
    assert {row.name for row in rows() if "*secret*" in row.about} == {
        "MULLIGAN_VERIFIERS__SECRETS",
        "MULLIGAN_VERIFIERS__DATABASES",
        "MULLIGAN_TELEMETRY__METRICS_TOKEN",
        "MULLIGAN_TELEMETRY__TRACES_HEADERS",
    }
