"""What is said of a lineage: facts, in plain values and as a tree, and never what anybody wrote."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from server.cli.lineage import grow
from server.domain import Adapter, AdapterStatus, BindingMode, LoggedVerdict, Round, RoundState
from server.orchestration.lineage import describe_own, describe_trace
from server.store.lineage import Served, Trace, TracedAdapter, TracedRound, find_ancestors, find_descendants
from tests.fixtures.episodes import make_episode

PARENTS = {"a@1": "", "a@2": "a@1", "a@3": "a@2", "a@4": "a@1", "b@1": ""}
ADAPTER = Adapter(
    "a@2", "a", "/secret/place", {"x.safetensors": "ab12"}, AdapterStatus.CHAMPION, "rd_1", "a@1", forced=True,
    verifiers=("v@3",), flags=("trained_on_revoked:v@2",),
)  # fmt: skip
TRACED = TracedAdapter(ADAPTER, Served(2, "ep_8", 8.0, "ep_9", 9.0), ("a@1",), ("a@3",))
ROUND = TracedRound(Round("rd_1", "a", 2, RoundState.PROMOTED, reason="better"), 12, (), TRACED, 4)


def episode():
    one = make_episode(model="[bold]odd\x1b[31m")
    hidden = LoggedVerdict("hidden@1", "failed", 0.0, "why", mode=BindingMode.AUDIT)
    one.attempts[0] = replace(one.attempts[0], verdicts=(*one.attempts[0].verdicts, hidden))
    return one


def draw(trace: Trace) -> str:
    drawn = io.StringIO()
    Console(width=300, file=drawn).print(grow(describe_trace(trace)))
    return drawn.getvalue()


@pytest.mark.parametrize(
    ("name", "above", "below"),
    [
        ("a@1", (), ("a@2", "a@3", "a@4")),
        ("a@3", ("a@2", "a@1"), ()),
        ("b@1", (), ()),
        ("gone@1", (), ()),
    ],
)
def test_the_family_of_an_adapter(name, above, below):
    assert find_ancestors(name, PARENTS) == above
    assert find_descendants(name, PARENTS) == below


def test_a_circle_of_parents_ends():
    assert find_ancestors("a@1", {"a@1": "a@2", "a@2": "a@1"}) == ("a@2", "a@1")


def test_an_episode_is_described_without_a_word_that_was_written():
    one = episode()
    described = describe_trace(Trace("episode", one.id, one, TRACED, (ROUND,)))
    (reflection,) = described["episode"]["reflections"]
    assert reflection["kept"] == {"prompt_ids": 4, "token_ids": 4, "logprobs": 4}
    assert (reflection["template_hash"], reflection["adapter"]) == ("abc123", "countdown@1")
    assert [one["verifier"] for one in described["episode"]["attempts"][0]["verdicts"]] == ["countdown@3", "hidden@1"]
    (used_by,) = described["rounds"]
    assert (used_by["step"], used_by["episodes"]["count"], used_by["adapter"]["forced"]) == (4, 12, True)
    text = json.dumps(described)
    assert all(written not in text for written in ("I added wrongly", "Make 6 of", "1 + 2", "not 6", "/secret/place"))


def test_a_client_is_told_of_its_episode_alone():
    described = describe_own(episode())
    assert (described["adapter"], described["rounds"]) == (None, None)
    assert "hidden@1" not in json.dumps(described)
    assert described["episode"]["reflections"][0]["kept"]["logprobs"] == 4


def test_the_tree_of_an_episode_goes_from_the_request_to_what_its_adapters_served():
    one = episode()
    drawn = draw(Trace("episode", one.id, one, None, (ROUND,)))
    parts = ["request model", "attempt 1", "reflection on attempt 1", "template abc123", "4 token ids", "attempt 2",
             "trained on by rd_1, promoted", "from step 4", "12 episodes", "adapter a@2, champion, forced",
             "a@1 < (base)", "v@3", "trained_on_revoked:v@2", "x.safetensors, sha256 ab12", "2 episodes, first ep_8",
             "went on in a@3"]  # fmt: skip
    assert [part for part in parts if part not in drawn] == []
    assert [drawn.index(part) for part in parts] == sorted(drawn.index(part) for part in parts)
    assert "[bold]odd" in drawn  # as it was written, and nothing that steers a terminal
    assert "\x1b" not in drawn


def test_the_tree_says_what_is_not_kept_and_that_nothing_came_of_it():
    one = replace(episode(), store=False, trains=False)
    one.reflections[0] = replace(one.reflections[0], prompt_ids=(), token_ids=(), logprobs=())
    drawn = draw(Trace("episode", one.id, one))
    for part in ("not in the log", "opted out", "it is never trained on", "no round trained on it"):
        assert part in drawn


def test_the_trees_of_a_round_and_an_adapter():
    listed = replace(ROUND, episodes=tuple(f"ep_{number:02}" for number in range(12)), step=0)
    drawn = draw(Trace("round", "rd_1", rounds=(listed,)))
    assert drawn.startswith("round rd_1, promoted, number 2 of a")
    assert ("ep_09" in drawn, "ep_10" in drawn, "and 2 more" in drawn) == (True, False, True)
    drawn = draw(Trace("adapter", "a@2", adapter=TRACED, rounds=(replace(listed, adapter=None),)))
    assert drawn.startswith("adapter a@2, champion, forced")
    assert "round rd_1" in drawn
