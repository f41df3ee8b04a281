"""Ids: what was made later sorts later, also within a millisecond."""

import time

from server import domain


def test_ids_sort_by_time_of_making(monkeypatch):
    instants = [1_763_700_000_000_000_000 + step for step in (0, 300, 1_000, 999_999, 1_000_000, 3_600_000_000_000)]
    made = []
    for instant in instants:
        monkeypatch.setattr(time, "time_ns", lambda instant=instant: instant)
        made.append(domain.new_id("ep"))
    assert made == sorted(made)
    assert {len(one) for one in made} == {len("ep_") + 28}


def test_ids_of_one_instant_differ(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1_763_700_000_000_000_000)
    assert len({domain.new_id("ep") for _ in range(1000)}) == 1000
