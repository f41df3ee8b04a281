"""The configuration that both ends of the queue share, and the doorbell over the filesystem."""

import json
from base64 import b64decode
from pathlib import Path

import structlog

from server.broker import celery_config
from server.doorbell import Doorbell
from server.settings import Settings


def test_the_filesystem_transport_gets_its_folders(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, broker_url="filesystem://")
    options = celery_config(settings)["broker_transport_options"]
    assert options["data_folder_in"] == options["data_folder_out"]
    assert 0 < options.pop("polling_interval") < 1
    for folder in options.values():
        assert Path(folder).is_dir()
        assert Path(folder).is_relative_to(settings.broker_dir)


def test_another_transport_needs_no_options_and_makes_no_folders(tmp_path: Path) -> None:
    config = celery_config(Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:6379/1"))
    assert config["broker_url"] == "redis://127.0.0.1:6379/1"
    assert "broker_transport_options" not in config
    assert list(tmp_path.iterdir()) == []


def test_ringing_leaves_a_message(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, broker_url="filesystem://")
    bell = Doorbell(settings)
    bell.ring_round("rd_1")
    bell.ring_tick()
    bell.close()
    messages = [json.loads(path.read_text()) for path in (settings.broker_dir / "messages").iterdir()]
    sent = {message["headers"]["task"]: json.loads(b64decode(message["body"]))[0] for message in messages}
    assert sent == {"mulligan.run_round": ["rd_1"], "mulligan.tick": []}
    assert {message["properties"]["delivery_info"]["routing_key"] for message in messages} == {"mulligan"}


def test_a_broker_that_is_away_is_logged_and_forgiven(tmp_path: Path) -> None:
    bell = Doorbell(Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0"))
    with structlog.testing.capture_logs() as lines:
        bell.ring_round("rd_1")
    bell.close()
    assert [(line["log_level"], line["job"]) for line in lines] == [("error", "mulligan.run_round")]
