"""The record of the model's files: the shipped model is the recorded one, and an altered file is found."""

import shutil

import pytest

from demo.model_record import RECORD, RECORDED, find_altered, read_weights_hash, record_model
from server.settings import DEMO_MODEL


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(DEMO_MODEL, tmp_path / "model")


def test_the_shipped_model_is_the_recorded_one():
    assert find_altered(DEMO_MODEL) == []
    assert read_weights_hash(DEMO_MODEL) in (DEMO_MODEL / "README.md").read_text()


@pytest.mark.parametrize("name", RECORDED)
def test_a_changed_byte_is_found_in_any_file(model, name):
    content = bytearray((model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    assert find_altered(model) == [f"{name} is not the one that was recorded"]
    record_model(model)
    assert find_altered(model) == []


def test_what_is_missing_is_named(model):
    (model / "config.json").unlink()
    assert find_altered(model) == ["config.json is missing"]
    (model / RECORD).unlink()
    assert find_altered(model) == [f"{RECORD} is missing"]
