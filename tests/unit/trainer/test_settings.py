"""The trainer's settings and the options laid over them."""

import pytest

from server.errors import InvalidRequest
from trainer.settings import TrainerSettings


def test_a_rounds_options_win_over_its_tasks():
    settings = TrainerSettings().override({"steps": 3, "seed": 1}, {"steps": 5})
    assert (settings.steps, settings.seed) == (5, 1)
    assert settings.group_size == TrainerSettings().group_size


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(InvalidRequest, match="unknown training option 'learning_rat'") as caught:
        TrainerSettings().override({"learning_rat": 1e-4})
    assert caught.value.param == "learning_rat"


@pytest.mark.parametrize(("name", "value"), [("group_size", 1), ("steps", "many"), ("clip_low", 1.0)])
def test_a_bad_value_is_refused_by_name(name, value):
    with pytest.raises(InvalidRequest, match=name) as caught:
        TrainerSettings().override({name: value})
    assert caught.value.param == name


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("MULLIGAN_TRAINER__STEPS", "7")
    assert TrainerSettings().steps == 7
    assert TrainerSettings().override({"seed": 2}).steps == 7
