"""`n` > 1: fanned out into single calls, each verified and retried by itself."""

import json

import pytest

from server.domain import Outcome
from server.errors import EngineBroken
from server.orchestration.reflection import REFLECT, RETRY
from tests.component.api.test_streams import gather
from tests.fixtures.api import make_api
from tests.fixtures.engines import HANG, reply

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]


def by_seed(*scripts):
    """Make an engine's line that answers each choice from its own script: attempt, reflection, retry."""

    def answer(body, _adapter):
        if "seed" not in body:  # a reflection has none of the client's sampling
            return "I miscounted."
        script = scripts[body["seed"] - 7]
        return script[body["messages"][-1]["content"] == RETRY]

    return answer


def with_index(events, index):
    return [{**event, "choices": [one for one in event["choices"] if one["index"] == index]} for event in events]


async def test_each_choice_is_verified_and_retried_by_itself():
    api = make_api(by_seed(["4 at once"], ["5", "4 at last"], ["5", "6"]))
    answer = await api.chat(n=3, seed=7, verifiers=FOUR)
    body = answer.json()
    assert [(one["index"], one["message"]["content"]) for one in body["choices"]] == [
        (0, "4 at once"), (1, "4 at last"), (2, "6")
    ]  # fmt: skip
    said = body["mulligan"]
    assert [one["outcome"] for one in said["choices"]] == ["passed", "recovered", "exhausted"]
    assert said["outcome"] == answer.headers["x-mulligan-outcome"] == "exhausted"
    assert [len(one["attempts"]) for one in said["choices"]] == [1, 2, 2]
    assert {one["episode_id"] for one in said["choices"]} == {episode.id for episode in api.log.episodes}
    assert answer.headers["x-mulligan-episode"] == said["choices"][0]["episode_id"]


async def test_usage_is_the_sum_of_everything_and_says_what_it_is_made_of():
    api = make_api(by_seed(["4"], ["5", "4"]))
    body = (await api.chat(n=2, seed=7, verifiers=FOUR)).json()
    parts = body["mulligan"]["usage"]
    assert [parts[name]["total_tokens"] for name in ("answer", "failed_attempts", "reflections")] == [24, 12, 13]
    assert body["usage"]["total_tokens"] == 24 + 12 + 13
    own = [one["usage"]["answer"]["total_tokens"] for one in body["mulligan"]["choices"]]
    assert own == [12, 12]


async def test_engines_get_single_calls_with_seeds_of_their_own():
    api = make_api("4")
    await api.chat(n=3, seed=2**63 - 2)
    assert [call.body["seed"] for call in api.engine.calls] == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert all("n" not in call.body for call in api.engine.calls)
    unseeded = make_api("4")
    await unseeded.chat(n=2)
    assert all("seed" not in call.body for call in unseeded.engine.calls)


async def test_each_episode_has_the_request_as_it_was():
    api = make_api("4")
    await api.chat(n=2, seed=7)
    assert [(one.request["n"], one.request["seed"]) for one in api.log.episodes] == [(2, 7)] * 2


async def test_the_budget_of_tokens_is_shared():
    api = make_api("5", "Hm.", "6")
    await api.chat(n=2, verifiers=FOUR, retry={"max_total_tokens": 1001})
    assert [episode.retry.max_total_tokens for episode in api.log.episodes] == [500, 500]


async def test_choices_do_not_multiply_a_body_beyond_its_limit():
    api = make_api("4", limits={"body_max_bytes": 4096})
    assert (await api.chat(text="x" * 1500, n=2)).status == 200
    answer = await api.chat(text="x" * 1500, n=3)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert (await api.chat(text="x" * 3500)).status == 200


async def test_one_that_failed_is_enough_for_an_error_where_that_is_wanted():
    api = make_api(by_seed(["4"], ["5", "6"]))
    answer = await api.chat(n=2, seed=7, verifiers=FOUR, retry={"on_failure": "error"})
    assert (answer.status, answer.error["code"]) == (422, "verification_failed")
    assert [one["outcome"] for one in answer.error["mulligan"]["choices"]] == ["passed", "exhausted"]
    assert answer.error["usage"]["total_tokens"] > 0


async def test_an_engine_that_breaks_for_one_ends_them_all_and_all_are_logged():
    def answer(body, _adapter):
        return EngineBroken("boom") if body["seed"] == 7 else HANG

    answer_lines = [answer, answer]
    api = make_api(*answer_lines)
    given = await api.chat(n=2, seed=7)
    assert (given.status, given.error["code"]) == (502, "engine_error")
    assert sorted(episode.outcome for episode in api.log.episodes) == [Outcome.CANCELLED, Outcome.ERRORED]
    assert api.engine.running == 0


class TestStreams:
    async def test_held_choices_come_one_after_the_other_under_one_id(self):
        api = make_api(by_seed(["4 at once"], ["5", "4 at last"]))
        answer = await api.chat(n=2, seed=7, stream=True, verifiers=FOUR, stream_options={"include_usage": True})
        events = answer.events
        texts = [gather(with_index(events, index)) for index in (0, 1)]
        assert texts == [("4 at once", [], "stop"), ("4 at last", [], "stop")]
        assert len({event["id"] for event in events}) == 1
        assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 14 + 12 + 13 + 14)
        assert [one["outcome"] for one in events[-1]["mulligan"]["choices"]] == ["passed", "recovered"]
        assert ["mulligan" in event for event in events[-3:]] == [False, True, True]
        assert answer.headers["x-mulligan-outcome"] == "recovered"
        assert answer.lines[-1] == "data: [DONE]"

    async def test_attempts_are_shown_with_the_index_of_their_choice(self):
        api = make_api(by_seed(["4"], ["5", "4"]))
        answer = await api.chat(n=2, seed=7, stream=True, verifiers=FOUR, stream_options={"include_attempts": True})
        shown = [one for event in answer.events for one in event["choices"] if "reasoning_content" in one["delta"]]
        assert [one["index"] for one in shown] == [1, 1]
        assert REFLECT not in json.dumps(shown)

    @pytest.mark.parametrize("with_usage", [True, False])
    async def test_live_choices_are_mixed_and_told_apart_by_their_index(self, with_usage):
        api = make_api(by_seed(["one two"], ["three four five"]))
        options = {"stream_options": {"include_usage": True}} if with_usage else {}
        answer = await api.chat(n=2, seed=7, stream=True, **options)
        events = answer.events
        texts = [gather(with_index(events, index))[0] for index in (0, 1)]
        assert texts == ["one two", "three four five"]
        assert len({event["id"] for event in events}) == 1
        ends = [one["finish_reason"] for event in events for one in event["choices"] if one["finish_reason"]]
        assert ends == ["stop", "stop"]
        assert [event.get("usage", {}).get("total_tokens") for event in events if not event["choices"]] == (
            [13 + 14] if with_usage else []
        )
        assert events[-1]["mulligan"]["outcome"] == "unverified"
        assert sorted(one.attempts[0].answer["content"] for one in api.log.episodes) == ["one two", "three four five"]

    async def test_unverified_ones_are_each_judged_at_the_end(self):
        api = make_api(by_seed(["4"], ["5"]))
        answer = await api.chat(n=2, seed=7, stream=True, verifiers=FOUR, unverified_stream=True)
        assert [one["outcome"] for one in answer.events[-1]["mulligan"]["choices"]] == ["passed", "exhausted"]
        assert len(api.engine.calls) == 2

    async def test_one_that_breaks_off_ends_the_stream_with_an_error(self):
        def answer(body, _adapter):
            return EngineBroken("boom") if body["seed"] == 8 else reply("one two three")

        api = make_api(answer, answer)
        given = await api.chat(n=2, seed=7, stream=True)
        code = given.events[-1]["error"]["code"] if given.status == 200 else given.error["code"]
        assert code == "engine_error"
        assert len(api.log.episodes) == 2
