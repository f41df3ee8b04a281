"""What is selected, and why other episodes are passed over."""

from dataclasses import replace

import pytest

from server.domain import Attempt, Binding, BindingMode, Feedback, Usage
from tests.unit.trainer.conftest import make_failure
from trainer.dataset import Selection, choose_problems, list_pins, read_failure, select
from trainer.errors import RoundFailed
from trainer.settings import TrainerSettings

SETTINGS = TrainerSettings(min_failures=1)


class Log:
    def __init__(self, episodes):
        self.episodes = episodes

    async def failures(self, task, *, since=0.0, until=None, limit):
        found = [one for one in self.episodes if since < one.created_at or not since]
        return [one for one in found if until is None or one.created_at <= until][:limit]

    async def count_left_out(self, task, *, since=0.0):
        return {}


class Tokenizer:
    """Says what it was asked to render."""

    def apply_chat_template(self, conversation, **options):
        self.conversation, self.options = conversation, options
        return [9, 9, len(conversation)]


async def test_those_that_recovered_come_first_and_keep_their_order():
    episodes = [make_failure(1), make_failure(2, recovered=True), make_failure(3), make_failure(4, recovered=True)]
    selection = await select("t", Log(episodes), Tokenizer(), SETTINGS)
    assert [failure.episode_id for failure in selection.failures] == ["ep_2", "ep_4", "ep_1", "ep_3"]
    assert selection.describe() == {
        "failures": 4, "recovered": 2, "new": 4, "replayed": 0, "tokenised": 0, "logged_reflections": 4, "left_out": {},
    }  # fmt: skip


async def test_a_failure_that_came_again_is_one_with_both_reflections():
    again = make_failure(1, recovered=True, id="ep_again")
    selection = await select("t", Log([make_failure(1), again]), Tokenizer(), SETTINGS)
    (failure,) = selection.failures
    assert [one.reward for one in failure.logged] == [0.0, 1.0]
    assert failure.recovered
    assert (failure.episode_id, failure.alike) == ("ep_1", ("ep_again",))
    assert selection.left_out == {"the same failure again": 1}


async def test_too_few_failures_end_the_round_with_the_reason():
    episodes = [make_failure(1), make_failure(2, split="held_out"), make_failure(3, bindings=())]
    with pytest.raises(RoundFailed) as caught:
        await select("t", Log(episodes), Tokenizer(), TrainerSettings(min_failures=4))
    assert str(caught.value) == (
        "task 't' has too few logged failures to learn from: 1 of 4 "
        "(1 left out: held out; 1 left out: no verifier was bound)"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"split": "held_out"}, "held out"),
        ({"split": ""}, "held out"),
        ({"trains": False}, "its key opted out of training, or the redactor changed it"),
        ({"store": False}, "its content is not in the log"),
        ({"request": None}, "its content is not in the log"),
        ({"bindings": ()}, "no verifier was bound"),
        ({"bindings": (Binding("no such kind", {}),)}, "its verifier does not compile any more"),
        ({"attempts": [Attempt(1, {"content": "yes"}, "stop", Usage(), "passed")]}, "its first attempt did not fail"),
        ({"attempts": []}, "its content is not in the log"),
    ],
)
def test_what_cannot_be_learnt_from_is_said(changes, why):
    assert read_failure(make_failure(1, **changes), Tokenizer()) == why


def test_what_was_logged_is_taken_as_it_is():
    failure = read_failure(make_failure(5, recovered=True), Tokenizer())
    assert not isinstance(failure, str)
    assert failure.prompt_ids == (7, 5)
    assert failure.body == {"temperature": 0.7}
    (logged,) = failure.logged
    assert (logged.token_ids, logged.logprobs, logged.reward) == ((1, 2), (-0.5, -0.25), 1.0)
    assert not failure.tokenised


def test_a_failure_without_reflection_is_tokenised_and_marked():
    tokenizer = Tokenizer()
    failure = read_failure(make_failure(5, reflected=False), tokenizer)
    assert not isinstance(failure, str)
    assert failure.tokenised
    assert failure.prompt_ids == (9, 9, 3)
    assert [message["role"] for message in tokenizer.conversation] == ["user", "assistant", "user"]
    assert tokenizer.options["add_generation_prompt"]
    assert failure.logged == ()


@pytest.mark.parametrize("change", [{"top_p": 0.9}, {"temperature": 0.5}, {"top_k": 20}, {"repetition_penalty": 1.1}])
def test_a_reflection_that_was_not_sampled_plainly_is_no_member(change):
    episode = make_failure(5)
    sampling = {**episode.reflections[0].sampling, **change}
    episode.reflections = [type(episode.reflections[0])(**{**_fields(episode.reflections[0]), "sampling": sampling})]
    failure = read_failure(episode, Tokenizer())
    assert not isinstance(failure, str)
    assert failure.logged == ()
    assert failure.prompt_ids == (7, 5)


def _fields(reflection):
    return {name: getattr(reflection, name) for name in type(reflection).__dataclass_fields__}


@pytest.mark.parametrize(
    ("recovered", "passed", "trains", "why"),
    [
        (False, True, True, "trusted feedback contradicts its verifier"),
        (True, False, True, "trusted feedback contradicts its verifier"),
        (False, False, True, None),
        (True, True, True, None),
        (False, True, False, None),
        (True, False, False, None),
    ],
)
def test_trusted_feedback_that_contradicts_the_verifier_keeps_an_episode_out(recovered, passed, trains, why):
    """A round judges the problem again with the verifier that is said to be wrong there; others say nothing."""
    said = (Feedback("ep_1", "other", "k", passed=recovered), Feedback("ep_1", "s", "k", passed=passed, trains=trains))
    failure = read_failure(make_failure(1, recovered=recovered, feedback=said), Tokenizer())
    assert failure == why if why else not isinstance(failure, str)


async def test_a_round_says_how_many_episodes_feedback_kept_out():
    said = (Feedback("ep_2", "s", "k", passed=True, trains=True),)
    selection = await select("t", Log([make_failure(1), make_failure(2, feedback=said)]), Tokenizer(), SETTINGS)
    assert selection.left_out == {"trusted feedback contradicts its verifier": 1}


SQL = Binding("regex", {"pattern": "yes"}, "sql", 2)
WATCHING = replace(SQL, version=3, mode=BindingMode.OBSERVE)


async def test_what_a_revoked_verifier_said_is_never_learnt_from():
    inline = Binding("sql@2", {})  # a kind of that name is no version
    changes = [{"bindings": (SQL,)}, {"bindings": (replace(SQL, version=1), WATCHING)}, {}]
    episodes = [make_failure(number, **change) for number, change in enumerate(changes)]
    selection = await select("t", Log(episodes), Tokenizer(), SETTINGS, {"sql@2", "sql@3"})
    assert [failure.episode_id for failure in selection.failures] == ["ep_1", "ep_2"]
    assert selection.left_out == {"its verifier sql@2 was revoked": 1}
    assert list_pins(selection.failures) == ("sql@1",)
    held_out = [replace(one, split="held_out") for one in episodes]
    problems = choose_problems([*held_out, replace(episodes[0], bindings=(inline,))], {"sql@2", "sql@3"})
    assert [[binding.pin for binding in one.bindings] for one in problems] == [["sql@1"], ["regex"], ["sql@2"]]


def test_what_only_watched_is_no_reward():
    failure = read_failure(make_failure(1, bindings=(SQL, WATCHING)), Tokenizer())
    assert not isinstance(failure, str)
    assert failure.verifiers.bindings == (SQL,)
    assert read_failure(make_failure(1, bindings=(WATCHING,)), Tokenizer()) == "no verifier was bound"


def make_log(new: int, old: int) -> Log:
    return Log(
        [make_failure(number, created_at=200.0 - number) for number in range(new)]
        + [make_failure(100 + number, created_at=50.0 - number / 100) for number in range(old)]
    )


@pytest.mark.parametrize(
    ("share", "new", "old", "replayed"),
    [
        (0.25, 12, 40, 4),  # a quarter of sixteen
        (0.25, 12, 3, 3),
        (0.25, 2, 40, 6),  # too few new ones: up to a whole step of eight
        (0.0, 12, 40, 0),
        (0.0, 2, 40, 0),
        (1.0, 12, 40, 40),
    ],
)
async def test_older_failures_fill_up_their_share(share, new, old, replayed):
    settings = TrainerSettings(min_failures=1, step_failures=8, replay_share=share)
    selection = await select("t", make_log(new, old), Tokenizer(), settings, since=100.0)
    told = selection.describe()
    assert (told["new"], told["replayed"], told["failures"]) == (new, replayed, new + replayed)
    assert [one.episode_id for one in selection.failures[:new]] == [f"ep_{number}" for number in range(new)]
    without = await select("t", make_log(new, old), Tokenizer(), settings)
    assert without.describe()["replayed"] == 0  # the first round of a task knows no older ones


async def test_problems_that_logged_retries_settle_are_left_out():
    def again(number: int, problem: str, *, recovered: bool = False, **changes):
        request = {"messages": [{"role": "user", "content": problem}]}
        return make_failure(number, recovered=recovered, request=request, **changes)

    never = [again(number, "never") for number in range(3)]
    always = [again(10 + number, "always", recovered=True) for number in range(3)]
    mixed = [again(20 + number, "mixed", recovered=number == 0) for number in range(3)]
    elsewhere = [again(30 + number, "elsewhere", adapter="t@1") for number in range(3)]
    unheard = [again(40 + number, "unheard", reflected=False) for number in range(3)]
    log = Log([*never, *always, *mixed, *elsewhere, *unheard])
    settings = TrainerSettings(min_failures=1, settled_after=3)
    selection = await select("t", log, Tokenizer(), settings)
    assert selection.left_out == {
        "no logged retry of its problem passed": 3, "every logged retry of its problem passed": 3,
        "the same failure again": 2,
    }  # fmt: skip
    assert {failure.episode_id[:4] for failure in selection.failures} == {"ep_2", "ep_3", "ep_4"}
    patient = await select("t", log, Tokenizer(), TrainerSettings(min_failures=1, settled_after=4))
    assert patient.left_out == {"the same failure again": 2}
    other = await select("t", log, Tokenizer(), settings, champion="t@1")
    assert {failure.episode_id[:4] for failure in other.failures} == {"ep_0", "ep_1", "ep_2", "ep_4"}


def test_what_groups_settle_is_counted_anew_each_time():
    selection = Selection([], {"held out": 2})
    selection.note_settled(1, 3)
    selection.note_settled(0, 4)
    assert selection.left_out == {"held out": 2, "its whole group failed in this round": 4}
