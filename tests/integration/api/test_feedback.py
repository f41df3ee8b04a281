"""Feedback as clients send it: curl, plain HTTP and the openai SDK, against a real API process."""

import json
import re
import shutil
import subprocess
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from server.store.events import EventStore
from server.store.keys import KeyStore, digest_secret
from tests.fixtures.server import with_database

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "feedback.md"


@pytest.fixture
def episode(client) -> str:
    """An answered request of the client's."""
    said = client.chat.completions.create(model="sums", messages=[{"role": "user", "content": "4"}]).model_extra
    return said["mulligan"]["episode_id"]


def give(api, episode, *, passed=False, source="support", key="client", **more):
    body = {"episode_id": episode, "passed": passed, "source": source, **more}
    return api.ask("POST", "/v1/feedback", body, key=key)[:2]


def test_it_is_shown_with_its_episode(api, episode):
    status, given = give(api, episode, score=0.25, comment="wrong year")
    assert status == 200
    assert (given["passed"], given["score"], given["comment"], given["trains"]) == (False, 0.25, "wrong year", False)
    give(api, episode, passed=True, source="nightly", key="admin")
    shown = api.ask("GET", f"/v1/episodes/{episode}", key="client")[1]
    assert shown["outcome"] == "passed"
    assert [(one["source"], one["passed"]) for one in shown["feedback"]] == [("nightly", True), ("support", False)]
    assert shown["feedback"][1] == given
    (listed,) = [one for one in api.ask("GET", "/v1/episodes")[1]["data"] if one["id"] == episode]
    assert listed["feedback"] == shown["feedback"]


def test_the_same_again_changes_nothing_and_another_word_has_to_say_so(api, api_database, episode):
    first = give(api, episode, comment="a\0b")
    assert first[0] == 200
    assert first[1]["comment"] == "a␀b"
    assert give(api, episode, comment="a\0b") == first
    status, refused = give(api, episode, passed=True)
    assert (status, refused["error"]["code"], refused["error"]["param"]) == (409, "feedback_exists", "source")
    status, now = give(api, episode, passed=True, replace=True)
    assert (status, now["passed"]) == (200, True)
    events = with_database(api_database, lambda database: EventStore(database).list(500))
    (event,) = [one for one in events if one.subject == episode]
    assert (event.kind, event.details["from"]["comment"]) == ("feedback.replaced", "a␀b")


def test_two_at_once_are_one(api, episode):
    with ThreadPoolExecutor(8) as executor:
        answers = list(executor.map(lambda number: give(api, episode, passed=number % 2 == 0), range(8)))
    assert sorted(status for status, _ in answers) == [200] * 4 + [409] * 4
    (kept,) = api.ask("GET", f"/v1/episodes/{episode}")[1]["feedback"]
    assert all(body == kept for status, body in answers if status == 200)


def test_episodes_are_found_by_it(api, client):
    def ask() -> str:
        made = client.chat.completions.create(model="sums", messages=[{"role": "user", "content": "4"}])
        return made.model_extra["mulligan"]["episode_id"]

    names = [ask() for _ in range(5)]
    for name in names[:3]:
        give(api, name, source="found")
    give(api, names[2], passed=True, source="other")
    found, before = [], ""
    while True:
        page = api.ask("GET", f"/v1/episodes?feedback=failed&limit=2{before}", key="client")[1]
        found += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
        before = f"&before={page['data'][-1]['id']}"
    assert [name for name in found if name in names] == names[2::-1]
    assert len(found) == len(set(found))

    def find(feedback: str) -> list[str]:
        listed = api.ask("GET", f"/v1/episodes?feedback={feedback}&task=sums&limit=200")[1]["data"]
        return [one["id"] for one in listed if one["id"] in names]

    assert find("passed") == [names[2]]
    assert find("none") == [names[4], names[3]]
    assert api.ask("GET", "/v1/episodes?feedback=perhaps")[0] == 400


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"passed": "yes"}, "passed"),
        ({"passed": None}, "passed"),
        ({"score": 1.5}, "score"),
        ({"score": -0.1}, "score"),
        ({"comment": "x" * 4001}, "comment"),
        ({"source": ""}, "source"),
        ({"source": "a b"}, "source"),
        ({"source": "x" * 65}, "source"),
        ({"source": "a\n"}, "source"),
        ({"episode_id": ""}, "episode_id"),
        ({"reward": 1}, "reward"),
    ],
)
def test_what_is_not_feedback_is_refused_by_name(api, episode, change, param):
    body = {"episode_id": episode, "passed": True, "source": "support", **change}
    status, answer, _ = api.ask("POST", "/v1/feedback", body, key="client")
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_a_key_speaks_of_its_own_episodes_and_those_above_of_all(api, api_database, client, episode):
    secret, _ = with_database(api_database, lambda database: KeyStore(database).create("neighbour"))
    api.keys["neighbour"] = secret
    theirs, nothing = give(api, episode, key="neighbour"), give(api, "ep_nothing", key="neighbour")
    assert (theirs[0], theirs[1]["error"]["code"]) == (404, "episode_not_found")
    assert theirs[1]["error"]["message"].replace(episode, "ep_nothing") == nothing[1]["error"]["message"]
    assert give(api, episode, key="viewer")[0] == 403
    assert give(api, episode, key="approver", source="review")[0] == 200
    status, refused = give(api, episode, passed=True, source="review", replace=True)
    assert (status, "sent with another key" in refused["error"]["message"]) == (409, True)
    assert give(api, episode, passed=True, source="review", replace=True, key="admin")[0] == 200


def test_only_keys_that_the_task_trusts_train(api, api_database, client):
    digest = digest_secret(api.keys["client"])  # its name may be another key's as well
    mine = with_database(api_database, lambda database: KeyStore(database).by_sha256(digest)).id
    made = api.ask("POST", "/v1/tasks", {"name": "trusting", "verifiers": ["four"]})
    assert made[1]["training"]["trust_feedback"] == []
    said = client.chat.completions.create(model="trusting", messages=[{"role": "user", "content": "4"}])
    name = said.model_extra["mulligan"]["episode_id"]
    assert give(api, name)[1]["trains"] is False
    wrong = api.ask("PATCH", "/v1/tasks/trusting", {"training": {"trust_feedback": ["key_nobody"]}})
    assert (wrong[0], wrong[1]["error"]["param"]) == (400, "training.trust_feedback")
    trusted = {"trust_feedback": [mine], "audit_off": ["repetition"]}
    changed = api.ask("PATCH", "/v1/tasks/trusting", {"training": trusted})[1]
    assert changed["training"]["trust_feedback"] == [mine]
    assert give(api, name)[1]["trains"] is False  # the same word again is the same record
    assert give(api, name, replace=True)[1]["trains"] is True
    assert give(api, name, source="second")[1]["trains"] is True
    assert give(api, name, source="third", key="admin")[1]["trains"] is False
    kept = api.ask("PATCH", "/v1/tasks/trusting", {"training": {"promotion": "approve"}})[1]["training"]
    assert (kept["trust_feedback"], kept["audit_off"]) == ([mine], ["repetition"])
    cleared = api.ask("PATCH", "/v1/tasks/trusting", {"training": {"trust_feedback": []}})[1]["training"]
    assert cleared["trust_feedback"] == []
    assert api.ask("PATCH", "/v1/tasks/trusting", {"training": {"audit_off": ["mood"]}})[0] == 400


def test_an_episode_that_is_kept_without_content_takes_feedback(api, client):
    said = client.chat.completions.create(model="sums", messages=[{"role": "user", "content": "4"}], store=False)
    name = said.model_extra["mulligan"]["episode_id"]
    assert give(api, name, comment="about what was said")[1]["comment"] == ""
    assert give(api, name, comment="about what was said")[0] == 200


class TestTheGuide:
    """Every snippet of docs/feedback.md runs as it stands there, but for the address, the key and the episode."""

    def fill(self, api, text: str, episode: str) -> str:
        return (
            text.replace("http://127.0.0.1:8000", api.url)
            .replace("mk-...", api.keys["client"])
            .replace("ep_...", episode)
        )

    def snippets(self, language: str) -> list[str]:
        return [textwrap.dedent(one) for one in re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)]

    def test_the_python_snippets(self, api, episode):
        snippets = self.snippets("python")
        assert len(snippets) == 2
        for snippet in snippets:
            exec(compile(self.fill(api, snippet, episode), str(GUIDE), "exec"), {})
        told = api.ask("GET", f"/v1/episodes/{episode}")[1]["feedback"]
        assert [one["source"] for one in told] == ["nightly-check"]
        newest = api.ask("GET", "/v1/episodes?limit=1")[1]["data"][0]
        assert [(one["source"], one["passed"]) for one in newest["feedback"]] == [("support", False)]

    def test_the_shell_snippets(self, api, episode):
        if shutil.which("curl") is None:
            pytest.skip("no curl")
        snippets = [one for one in self.snippets("sh") if one.startswith("curl")]
        assert snippets
        for snippet in snippets:
            words = ["bash", "-c", self.fill(api, snippet, episode)]
            answer = json.loads(subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout)
            assert answer["episode_id"] == episode


def test_the_sdk_raises_its_own_errors(client, episode):
    body = {"episode_id": episode, "passed": True, "source": "support"}
    client.post("/feedback", body=body, cast_to=object)
    with pytest.raises(openai.ConflictError) as caught:
        client.post("/feedback", body={**body, "passed": False}, cast_to=object)
    assert caught.value.code == "feedback_exists"
    with pytest.raises(openai.NotFoundError):
        client.post("/feedback", body={**body, "episode_id": "ep_nothing"}, cast_to=object)
