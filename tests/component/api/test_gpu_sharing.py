"""When the doctor warns of an engine and a trainer on one GPU."""

import pytest

from server.api.preflight import shares_gpu_unsplit
from server.settings import EngineSettings

SHARED = {"kind": "sglang", "url": "http://127.0.0.1:30000"}


@pytest.mark.parametrize(
    ("options", "gpus", "wanted"),
    [
        ({}, 1, True),
        ({"url": "http://localhost:30000"}, 1, True),
        ({}, 0, False),
        ({}, 2, False),  # each may have its own
        ({"colocate": True}, 1, False),
        ({"kind": "local"}, 1, False),
        ({"device": "cpu"}, 1, False),
        ({"url": "http://engine:30000"}, 1, False),  # another machine's
    ],
)
def test_one_gpu_for_both_is_warned_of_where_its_memory_is_not_split(options, gpus, wanted):
    assert shares_gpu_unsplit(EngineSettings(**{**SHARED, **options}), gpus) is wanted
