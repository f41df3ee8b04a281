"""What is selected, and why other episodes are passed over."""

import pytest

from server.domain import Attempt, Binding, Usage
from tests.unit.trainer.conftest import make_failure
from trainer.dataset import read_failure, select
from trainer.errors import RoundFailed
from trainer.settings import TrainerSettings

SETTINGS = TrainerSettings(min_failures=1)


class Log:
    def __init__(self, episodes):
        self.episodes = episodes

    async def failures(self, task, *, since=0.0, limit):
        return self.episodes[:limit]


class Tokenizer:
    """Says what it was asked to render."""

    def apply_chat_template(self, conversation, **options):
        self.conversation, self.options = conversation, options
        return [9, 9, len(conversation)]


async def test_those_that_recovered_come_first_and_keep_their_order():
    episodes = [make_failure(1), make_failure(2, recovered=True), make_failure(3), make_failure(4, recovered=True)]
    selection = await select("t", Log(episodes), Tokenizer(), SETTINGS)
    assert [failure.episode_id for failure in selection.failures] == ["ep_2", "ep_4", "ep_1", "ep_3"]
    assert selection.describe() == {"failures": 4, "recovered": 2, "tokenised": 0, "logged_reflections": 4}


async def test_a_failure_that_came_again_is_one_with_both_reflections():
    again = make_failure(1, recovered=True, id="ep_again")
    selection = await select("t", Log([make_failure(1), again]), Tokenizer(), SETTINGS)
    (failure,) = selection.failures
    assert [one.reward for one in failure.logged] == [0.0, 1.0]
    assert failure.recovered
    assert selection.passed_over == {"the same failure again": 1}


async def test_too_few_failures_end_the_round_with_the_reason():
    episodes = [make_failure(1), make_failure(2, split="held_out"), make_failure(3, bindings=())]
    with pytest.raises(RoundFailed) as caught:
        await select("t", Log(episodes), Tokenizer(), TrainerSettings(min_failures=4))
    assert str(caught.value) == (
        "task 't' has too few logged failures to learn from: 1 of 4 "
        "(1 passed over: held out; 1 passed over: no verifier was bound)"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"split": "held_out"}, "held out"),
        ({"split": ""}, "held out"),
        ({"trains": False}, "its key opted out of training"),
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
