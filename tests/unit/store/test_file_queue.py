"""The queue of files hands on whole messages only, oldest first, and survives what it cannot read."""

from pathlib import Path
from queue import Empty

import pytest
import structlog
from kombu import Connection

from server.broker import celery_config
from server.settings import Settings


@pytest.fixture
def queue(tmp_path: Path):
    config = celery_config(Settings(data_dir=tmp_path, broker_url="filesystem://"))
    with (
        Connection(config["broker_url"], transport_options=config["broker_transport_options"]) as connection,
        connection.SimpleQueue("mulligan", serializer="json") as ends,
    ):
        ends.folder = tmp_path / "broker" / "messages"
        yield ends


def receive(queue):
    message = queue.get(block=False)
    message.ack()
    return message.payload


def test_messages_come_in_the_order_in_which_they_were_sent(queue):
    for number in range(5):
        queue.put({"number": number})
    assert [receive(queue)["number"] for _ in range(5)] == list(range(5))
    with pytest.raises(Empty):
        queue.get(block=False)
    assert list(queue.folder.iterdir()) == []


def test_a_message_that_is_still_written_is_not_taken(queue):
    (queue.folder / "00_a.mulligan.msg.part").write_text('{"half": ')
    with pytest.raises(Empty):
        queue.get(block=False)
    assert (queue.folder / "00_a.mulligan.msg.part").exists()


@pytest.mark.parametrize("text", ["", '{"half": '])
def test_what_cannot_be_read_is_dropped_and_the_next_one_comes(queue, text):
    (queue.folder / "00_a.mulligan.msg").write_text(text)
    queue.put({"number": 1})
    with structlog.testing.capture_logs() as lines:
        assert receive(queue) == {"number": 1}
    assert [line["message"] for line in lines] == ["00_a.mulligan.msg"]
