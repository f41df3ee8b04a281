"""What is counted, what other processes are told of it, and how it is rendered."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.domain import Attempt, BindingMode, LoggedVerdict, Outcome, Reflection, Usage
from server.telemetry import catalogue as c
from server.telemetry.exposition import render
from server.telemetry.meter import STALE_S, Meter
from server.telemetry.sharing import SLOT_BYTES, SharedSlots
from server.telemetry.tally import Names, Tally
from tests.fixtures.episodes import make_episode
from verifiers.base import Cause, Status


def samples(text: str) -> dict[str, float]:
    """Every sample of an exposition, by its name and labels."""
    return {
        f"{one.name}{dict(sorted(one.labels.items()))}": one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def verdict(status: str, cause: str = "", verifier: str = "four@1") -> LoggedVerdict:
    return LoggedVerdict(verifier, status, 0.0, duration_ms=2.0, cause=cause, mode=BindingMode.ENFORCE)


def attempt(number: int, status: str, *verdicts: LoggedVerdict) -> Attempt:
    return Attempt(number, {}, "stop", Usage(10, 5), status, verdicts=verdicts, engine_ms=200.0)


def recovered():
    episode = make_episode()
    episode.task, episode.outcome, episode.duration_ms = "sums", Outcome.RECOVERED, 480.0
    late = verdict(Status.ABSTAINED, Cause.TIMEOUT, "slow@2")
    episode.attempts = [
        attempt(1, Status.FAILED, verdict(Status.FAILED), late),
        attempt(2, Status.PASSED, verdict(Status.PASSED), verdict(Status.ABSTAINED, Cause.STOPPED, "slow@2")),
    ]
    episode.reflections = [Reflection(1, "it was wrong", Usage(30, 7), engine_ms=50.0)]
    episode.error = ""
    return episode


def test_an_episode_is_counted_part_by_part():
    tally = Tally()
    tally.count_episode(recovered())
    assert dict(tally.counts) == {
        ("mulligan_episodes", "sums", "recovered"): 1,
        ("mulligan_attempts", "sums", "attempt", "failed"): 1,
        ("mulligan_attempts", "sums", "retry", "passed"): 1,
        ("mulligan_reflections", "sums"): 1,
        ("mulligan_tokens", "sums", "attempt", "prompt"): 10,
        ("mulligan_tokens", "sums", "attempt", "completion"): 5,
        ("mulligan_tokens", "sums", "retry", "prompt"): 10,
        ("mulligan_tokens", "sums", "retry", "completion"): 5,
        ("mulligan_tokens", "sums", "reflection", "prompt"): 30,
        ("mulligan_tokens", "sums", "reflection", "completion"): 7,
        ("mulligan_verdicts", "four@1", "failed", "enforce"): 1,
        ("mulligan_verdicts", "four@1", "passed", "enforce"): 1,
        ("mulligan_verdicts", "slow@2", "abstained", "enforce"): 2,
        ("mulligan_abstentions", "slow@2", "timeout"): 1,
        ("mulligan_abstentions", "slow@2", "stopped"): 1,
    }
    # One that was stopped was not asked, so it took no time.
    assert sum(tally.histograms["mulligan_verdict_duration_seconds", "slow@2"][:-1]) == 1


@pytest.mark.parametrize(
    ("error", "outcome", "counted"),
    [
        ("EngineTimeout: no answer to 'who are you'", Outcome.ERRORED, ("EngineTimeout", "true")),
        ("retry 1: EngineRefused: the prompt 'who: are you'", Outcome.EXHAUSTED, ("EngineRefused", "false")),
        ("retry 2: TimeoutError", Outcome.EXHAUSTED, ("TimeoutError", "false")),
        ("SomebodysError: x", Outcome.ERRORED, ("other", "true")),
    ],
)
def test_errors_are_counted_by_classes_of_ours_alone(error, outcome, counted):
    episode = recovered()
    episode.error, episode.outcome = error, outcome
    tally = Tally()
    tally.count_episode(episode)
    assert {key[1:]: n for key, n in tally.counts.items() if key[0] == c.ERRORS.name} == {counted: 1}


def test_a_bounded_number_of_names_is_told_apart():
    names = Names(2)
    assert [names.read(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]
    tally = Tally()
    episode = recovered()
    for number in range(3 * c.MOST_NAMES):
        episode.task = f"task-{number}"
        episode.attempts[0] = attempt(1, Status.FAILED, verdict(Status.FAILED, verifier=f"v@{number}"))
        tally.count_episode(episode)
    assert len({key[1] for key in tally.counts if key[0] == c.EPISODES.name}) == c.MOST_NAMES + 1
    assert len({key[1] for key in tally.counts if key[0] == c.VERDICTS.name}) == c.MOST_NAMES + 1
    assert tally.counts["mulligan_episodes", "other", "recovered"] == 2 * c.MOST_NAMES


def test_buckets_add_up_and_a_bound_counts_what_equals_it():
    meter = Meter()
    for value in (0.005, 0.006, 0.5, 1000.0):
        meter.tally.observe((c.REQUEST_S.name, "chat"), value)
    told = samples(render(meter.read_all(), {}, "")[1].decode())

    def under(bound: str) -> float:
        return told["mulligan_request_duration_seconds_bucket" + str({"le": bound, "surface": "chat", "worker": "0"})]

    assert [under(bound) for bound in ("0.005", "0.01", "0.25", "0.5", "600.0", "+Inf")] == [1, 2, 2, 3, 3, 4]
    assert told["mulligan_request_duration_seconds_sum" + str({"surface": "chat", "worker": "0"})] == 1000.511


def test_a_scrape_of_any_process_tells_of_all():
    now = [100.0]
    slots = SharedSlots.open(2)
    first, second = (Meter(number, SharedSlots(slots.descriptor), clock=lambda: now[0]) for number in (1, 2))
    first.tally.count_request("chat", 200, 0.1)
    second.tally.count_request("chat", 200, 0.1)
    second.tally.count_request("chat", 429, 0.1)
    second.read_gauges = lambda: {(c.QUEUED.name,): 7, (c.SPOOLING.name,): True}
    assert list(first.read_all()) == [1]  # the other has said nothing yet

    async def share() -> None:
        await second.share()

    run(share())
    told = samples(render(first.read_all(), {}, "")[1].decode())
    name = "mulligan_requests_total"
    assert told[name + str({"status": "200", "surface": "chat", "worker": "1"})] == 1
    assert told[name + str({"status": "200", "surface": "chat", "worker": "2"})] == 1
    assert told[name + str({"status": "429", "surface": "chat", "worker": "2"})] == 1
    assert told["mulligan_queue_requests" + str({"worker": "2"})] == 7
    assert told["mulligan_log_spooling" + str({"worker": "2"})] == 1
    now[0] += STALE_S + 1
    assert list(first.read_all()) == [1]  # it is gone, and nobody took its place


def run(work) -> None:
    """Run a coroutine that waits for nothing."""
    with pytest.raises(StopIteration):
        work.send(None)


def test_what_is_being_written_is_not_read():
    slots = SharedSlots.open(1)
    assert slots.read(1) is None
    assert slots.write(1, b"whole", 5.0)
    assert slots.read(1) == (5.0, b"whole")
    slots._region[20] = 0  # as while it is being written
    assert slots.read(1) is None
    assert not slots.write(1, bytes(SLOT_BYTES), 6.0)


def test_how_late_the_loop_is_is_told():
    now = [100.0]
    meter = Meter(clock=lambda: now[0])
    run(meter.share())
    assert meter.read()[c.LAG.name,] == 0
    now[0] += 1.25
    run(meter.share())
    assert meter.read()[c.LAG.name,] == pytest.approx(0.25)


def test_names_keep_to_prometheus_conventions():
    for metric in c.CATALOGUE:
        assert metric.name.startswith("mulligan_")
        assert not metric.name.endswith("_total")
        assert metric.about
        assert bool(metric.bounds) == (metric.kind == "histogram")
        assert list(metric.bounds) == sorted(metric.bounds)
        assert c.WORKER not in metric.labels
        last = metric.name.rpartition("_")[2]
        assert last not in ("ms", "milliseconds", "kb", "mb", "s", "count", "bucket", "sum")
    assert len(c.BY_NAME) == len(c.CATALOGUE)
