"""What a deletion over the API covers."""

import time

import pytest

from server.api.rest.deletions import DeletionBody


@pytest.mark.parametrize(
    ("said", "at"),
    [
        ("1970-01-02T00:00:00", 86400.0),
        ("1970-01-02", 86400.0),
        ("1970-01-02T00:00:00+01:00", 82800.0),
        ("1970-01-02T00:00:00Z", 86400.0),
        ("0001-01-01T00:00:00", -62135596800.0),
    ],
)
def test_a_time_without_a_zone_is_utc_wherever_the_server_stands(monkeypatch, said: str, at: float):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        assert DeletionBody.model_validate({"before": said}).read().before == at
    finally:
        monkeypatch.undo()
        time.tzset()
