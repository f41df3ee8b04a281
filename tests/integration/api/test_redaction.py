"""The redaction hook, over the wired application: what it takes out is on no disk, and clients do not notice."""

import json
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from examples.redactor import redact as take_out
from server.app import create_app
from server.errors import InvalidRequest
from server.logs import configure_logs
from server.redaction import RedactionFailed, is_clean, load_redactor, make_log_redactor, redact_value
from server.settings import LogSettings, Settings
from server.store.database import Database
from server.store.deletions import DeletionStore, Doomed
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.keys import KeyStore
from tests.fixtures.asgi import ask
from tests.fixtures.engines import ScriptedEngine
from tests.fixtures.episodes import make_episode

MAIL = "heron@example.com"
VERIFIERS = [{"kind": "regex", "config": {"pattern": f"4 {MAIL}|{MAIL} 4"}}]


def fail(text: str) -> str:
    raise ValueError(text)


@asynccontextmanager
async def live(tmp_path: Path, url: str, place: str, engine: ScriptedEngine):
    settings = Settings(data_dir=tmp_path, database_url=url, log=LogSettings(redact=place))
    database = Database(url)
    secret, _ = await KeyStore(database).create("k", "admin")
    app = create_app(settings, open_engine=lambda _: engine)
    async with app.rest.router.lifespan_context(app.rest):

        async def chat(text: str, headers: dict | None = None, **fields):
            body = {"model": "default", "messages": [{"role": "user", "content": text}], **fields}
            return await ask(app, "POST", "/v1/chat/completions", body, key=secret, headers=headers)

        yield chat, EpisodeStore(database), app.rest.state.context, secret, app
    await database.close()


async def test_what_is_taken_out_is_in_no_file_and_never_trains(tmp_path: Path, sqlite_url: str):
    engine = ScriptedEngine([f"no {MAIL}", f"I forgot {MAIL}", f"4 {MAIL}"])
    async with live(tmp_path, sqlite_url, "examples.redactor:redact", engine) as (chat, episodes, context, secret, app):
        answer = await chat(f"I am {MAIL}", {"idempotency-key": "one"}, verifiers=VERIFIERS, user=MAIL)
        assert answer.status == 200, answer.body
        assert answer.json()["choices"][0]["message"]["content"] == f"4 {MAIL}"  # the client's is as it was
        (episode,) = await episodes.list()
        episode = await episodes.get(episode.id)
        assert episode
        assert episode.request
        assert episode.request["messages"][0]["content"] == "I am [email]"
        assert episode.attempts[1].answer["content"] == "4 [email]"
        (reflection,) = episode.reflections
        assert reflection.text == "I forgot [email]"
        assert (list(reflection.prompt_ids), list(reflection.token_ids), list(reflection.logprobs)) == ([], [], [])
        assert not episode.trains
        said = {"episode_id": episode.id, "passed": True, "source": "s", "comment": f"from {MAIL}"}
        assert (await ask(app, "POST", "/v1/feedback", said, key=secret)).json()["comment"] == "from [email]"
        # An answer to repeat would not be the one that was given: none is kept, and the request runs again.
        calls = len(engine.calls)
        again = await chat(f"I am {MAIL}", {"idempotency-key": "one"}, verifiers=VERIFIERS, user=MAIL)
        assert again.status == 200
        assert len(engine.calls) > calls
        found = await DeletionStore(context.database).count(Doomed(user=MAIL))
        assert found["episodes"] == 2  # by its hash, which was made before
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or MAIL.encode() not in path.read_bytes(), path


async def test_what_has_nothing_to_take_out_is_as_without_it(tmp_path: Path, sqlite_url: str):
    engine = ScriptedEngine(["no", "hm", "4"])
    four = [{"kind": "regex", "config": {"pattern": "4"}}]
    async with live(tmp_path, sqlite_url, "examples.redactor:redact", engine) as (chat, episodes, *_):
        answer = await chat("2+2?", {"idempotency-key": "one"}, verifiers=four, metadata={"who": MAIL})
        (listed,) = await episodes.list()
        episode = await episodes.get(listed.id)
        assert episode
        assert episode.trains
        assert len(episode.reflections[0].token_ids) > 0
        assert (episode.request or {})["metadata"] == {"who": "[email]"}  # no model was shown it
        again = await chat("2+2?", {"idempotency-key": "one"}, verifiers=four, metadata={"who": MAIL})
        assert again.headers["x-mulligan-replayed"] == "true"
        assert again.body == answer.body


async def test_a_redactor_that_raises_keeps_the_content_out_and_fails_nobody(
    tmp_path: Path, sqlite_url: str, capsys: pytest.CaptureFixture[str]
):
    place = "tests.integration.api.test_redaction:fail"
    async with live(tmp_path, sqlite_url, place, ScriptedEngine([f"4 {MAIL}"])) as (chat, episodes, context, *_):
        answer = await chat(f"I am {MAIL}", verifiers=VERIFIERS)
        assert (answer.status, answer.json()["mulligan"]["outcome"]) == (200, "passed")
        (episode,) = await episodes.list()
        assert (episode.store, episode.request, episode.outcome) == (False, None, "passed")
        assert episode.attempts[0].answer == {}
        assert context.log.withheld == 1
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or MAIL.encode() not in path.read_bytes(), path
    said = capsys.readouterr()
    assert "logged without its content" in said.out + said.err
    assert MAIL not in said.out + said.err


async def test_the_spool_holds_what_the_log_would(tmp_path: Path, empty_sqlite_url: str):
    database = Database(empty_sqlite_url)  # never migrated: it is as if it were away
    log = EpisodeLog(database, LogSettings(), tmp_path / "spool", redact=take_out)
    await log.start()
    await log.record(make_episode(question=f"I am {MAIL}"))
    (path,) = (tmp_path / "spool").glob("*.spool")
    content = path.read_bytes()
    assert b"[email]" in content
    assert MAIL.encode() not in content
    await log.stop()
    await database.close()


def test_log_lines_go_through_it(capsys: pytest.CaptureFixture[str]):
    import logging  # noqa: PLC0415

    import structlog  # noqa: PLC0415

    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        configure_logs("info", json=True, redact=make_log_redactor("examples.redactor:redact"))
        structlog.get_logger("x").warning("told", error=f"by {MAIL}", parts=[{"a": MAIL}])
        logging.getLogger("y").warning("told by %s", MAIL)
    finally:
        structlog.reset_defaults()
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
    said = capsys.readouterr().err
    assert MAIL not in said
    line = json.loads(said.splitlines()[0])
    assert (line["error"], line["parts"], line["event"]) == ("by [email]", [{"a": "[email]"}], "told")
    assert "told by [email]" in said


@pytest.mark.parametrize(
    ("body", "clean"),
    [
        (b"", True),
        (b'{"a": ["x"]}', True),
        (json.dumps({"a": {"b": MAIL}}).encode(), False),
        (b'data: {"choices": [{"index": 0, "delta": {"content": "her"}}]}\n\ndata: [DONE]\n\n', True),
        (
            b'data: {"choices": [{"index": 0, "delta": {"content": "heron@exa"}}]}\n\n'
            b'data: {"choices": [{"index": 1, "delta": {"content": "no"}}]}\n\n'
            b'data: {"choices": [{"index": 0, "delta": {"content": "mple.com"}}]}\n\n',
            False,
        ),  # in pieces, another choice between them
        (b"data: {", False),
    ],
)
def test_an_answer_is_clean_as_a_whole(body: bytes, clean: bool):
    assert is_clean(body, take_out) is clean


def test_what_the_client_names_itself_is_no_structure():
    value = {"metadata": {"id": MAIL}, "verifiers": [{"args": {"type": MAIL, "in": {"role": MAIL}}}], "id": MAIL}
    assert redact_value(value, take_out) == {
        "metadata": {"id": "[email]"},
        "verifiers": [{"args": {"type": "[email]", "in": {"role": "[email]"}}}],
        "id": MAIL,
    }
    assert not is_clean(json.dumps({"metadata": {"id": MAIL}}).encode(), take_out)
    assert is_clean(json.dumps({"id": MAIL}).encode(), take_out)


@pytest.mark.parametrize("spelled", [MAIL.replace("@", "\\u0040"), MAIL.replace("h", "\\u0068"), f"\\/{MAIL}"])
def test_escapes_hide_nothing(spelled: str):
    call = {"function": {"name": "mail", "arguments": f'{{"id": "{spelled}", "n": [1.5]}}'}}
    redacted = redact_value(call, take_out)["function"]["arguments"]
    assert MAIL not in json.loads(redacted)["id"]
    assert json.loads(redacted)["n"] == [1.5]
    assert not is_clean(json.dumps(call).encode(), take_out)
    for other in ("{" + spelled[1:], '{"a": "\\u00e9"}'):  # no JSON, nothing to take out
        assert redact_value(other, lambda text: text) == other


def test_structure_stays_and_everything_else_goes_through():
    value = {"role": "x", "content": ["x", {"type": "x", "text": "x"}], "x": None, "n": 1}
    assert redact_value(value, lambda text: text.replace("x", "y")) == {
        "role": "x", "content": ["y", {"type": "x", "teyt": "y"}], "y": None, "n": 1,
    }  # fmt: skip
    with pytest.raises(RedactionFailed, match="it gave a int"):
        redact_value("x", lambda _: 1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("place", ["nowhere", "no.such:thing", "json:nothing", "json:__name__"])
def test_what_cannot_be_loaded_is_refused_in_words(place: str):
    with pytest.raises(InvalidRequest, match="MULLIGAN_LOG__REDACT"):
        load_redactor(place)
    assert load_redactor("") is None
