"""The doorbell over a real Redis."""

import json
import os
import secrets
from base64 import b64decode
from pathlib import Path

import pytest
import redis

from server.broker import QUEUE
from server.doorbell import Doorbell
from server.settings import Settings

REDIS = os.environ.get("MULLIGAN_TEST_REDIS", "redis://127.0.0.1:6379")


@pytest.fixture
def broker_url():
    """A Redis database of our own choice, swept of what this test leaves."""
    url = f"{REDIS}/{secrets.choice(range(8, 16))}"
    client = redis.Redis.from_url(url, socket_connect_timeout=2)
    try:
        client.ping()
    except redis.ConnectionError as error:
        client.close()
        if os.environ.get("CI") == "true":
            pytest.fail(f"Redis is missing in CI: {error}")
        pytest.skip(f"no Redis at {REDIS}: {error}")
    before = set(client.keys())
    yield url
    if left := set(client.keys()) - before:
        client.delete(*left)
    client.close()


@pytest.mark.redis
def test_a_round_is_rung_through_redis(broker_url: str, tmp_path: Path) -> None:
    client = redis.Redis.from_url(broker_url)
    waiting = client.llen(QUEUE)
    bell = Doorbell(Settings(data_dir=tmp_path, broker_url=broker_url))
    bell.ring_round("rd_7")
    bell.close()
    assert client.llen(QUEUE) == waiting + 1
    message = json.loads(client.lpop(QUEUE))
    client.close()
    assert message["headers"]["task"] == "mulligan.run_round"
    assert json.loads(b64decode(message["body"]))[0] == ["rd_7"]
