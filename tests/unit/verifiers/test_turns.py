"""Workers are shared in turn: nobody waits for somebody else's slow work."""

import threading
import time
from concurrent.futures import CancelledError, wait

import pytest

import verifiers.turns
from verifiers.turns import SLOW_RUNS, SLOW_S, Turns

WAIT_S = 20


@pytest.fixture
def turns():
    turns = Turns(3, thread_name="turns")
    yield turns
    turns.close()


@pytest.fixture
def gate():
    """Holds work up until it is set."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def never_slow(monkeypatch):
    """Nothing becomes slow by itself, however busy the machine is."""
    monkeypatch.setattr(verifiers.turns, "SLOW_S", 1000.0)


def hold(turns, gate, name, count):
    """Submit work that waits for the gate, and wait until as much of it runs as may."""
    started = [threading.Event() for _ in range(count)]

    def work(event):
        event.set()
        assert gate.wait(WAIT_S)
        return name

    futures = [turns.submit(name, lambda event=event: work(event)) for event in started]
    return futures, started


def test_work_is_done_and_what_it_raises_is_raised(turns):
    assert turns.submit("a", lambda: 5).result(WAIT_S) == 5
    with pytest.raises(ZeroDivisionError):
        turns.submit("a", lambda: 1 // 0).result(WAIT_S)
    assert turns.submit("a", lambda: 6).result(WAIT_S) == 6


def test_one_name_holds_all_workers_but_one(turns, gate, never_slow):
    futures, started = hold(turns, gate, "slow", 10)
    assert all(event.wait(WAIT_S) for event in started[:2])
    for _ in range(20):
        assert turns.submit("quick", lambda: 1).result(WAIT_S) == 1
    assert [event.is_set() for event in started] == [True] * 2 + [False] * 8
    gate.set()
    assert [future.result(WAIT_S) for future in futures] == ["slow"] * 10


def test_who_was_slow_again_and_again_is_remembered(turns):
    for _ in range(SLOW_RUNS):
        assert not turns._is_slow("a")
        turns.submit("a", lambda: time.sleep(1.1 * SLOW_S)).result(WAIT_S)
    assert turns._is_slow("a")


def test_who_is_quick_again_is_forgotten(turns, never_slow):
    turns._slow["a"] = SLOW_RUNS
    turns.submit("a", lambda: None).result(WAIT_S)
    assert list(turns._slow) == []


def test_all_that_are_slow_leave_a_worker(turns, gate, never_slow):
    turns._slow.update(dict.fromkeys(("slow", "slower", "slowest"), SLOW_RUNS))
    held = [hold(turns, gate, name, 3) for name in ("slow", "slower", "slowest")]
    for _ in range(20):
        assert turns.submit("quick", lambda: 1).result(WAIT_S) == 1
    assert sum(event.is_set() for _, started in held for event in started) == 2
    gate.set()
    for futures, _ in held:
        wait(futures, WAIT_S)


def test_what_runs_for_long_counts_as_slow_before_it_ends(turns, gate):
    _, started = hold(turns, gate, "new", 2)
    assert all(event.wait(WAIT_S) for event in started)
    time.sleep(2 * SLOW_S)
    turns._slow["slow"] = SLOW_RUNS
    _, (waits,) = hold(turns, gate, "slow", 1)
    assert len(turns._running) == 2
    assert not waits.is_set()


def test_names_take_turns(gate):
    turns = Turns(1, thread_name="turns")
    order = []
    _, (started,) = hold(turns, gate, "first", 1)
    assert started.wait(WAIT_S)
    futures = [turns.submit(name, lambda name=name: order.append(name)) for name in "aaaabbc"]
    gate.set()
    wait(futures, WAIT_S)
    turns.close()
    assert "".join(order) == "abcabaa"


def test_what_was_cancelled_is_skipped(turns, gate):
    futures, started = hold(turns, gate, "slow", 2)
    assert all(event.wait(WAIT_S) for event in started)
    ran = []
    unwanted = [turns.submit("slow", lambda: ran.append(1)) for _ in range(100)]
    last = turns.submit("slow", lambda: 7)
    assert all(future.cancel() for future in unwanted)
    gate.set()
    assert last.result(WAIT_S) == 7
    wait(futures, WAIT_S)
    assert ran == []


def test_closing_lets_work_end_and_cancels_what_waits(gate):
    turns = Turns(1, thread_name="turns")
    (runs, waits), (started, _) = hold(turns, gate, "a", 2)
    assert started.wait(WAIT_S)
    closing = threading.Thread(target=turns.close)
    closing.start()
    with pytest.raises(CancelledError):
        waits.result(WAIT_S)
    with pytest.raises(RuntimeError):
        turns.submit("a", lambda: 1)
    gate.set()
    closing.join(WAIT_S)
    assert runs.result(0) == "a"


def test_a_flood_loses_nothing():
    turns = Turns(4, thread_name="turns")
    futures = [turns.submit(index % 7, lambda index=index: index) for index in range(3000)]
    assert [future.result(WAIT_S) for future in futures] == list(range(3000))
    assert turns._waiting == {}
    assert turns._running == set()
    turns.close()
