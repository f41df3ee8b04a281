"""Cleaning, packing, the hash of a problem, and the URLs of databases."""

import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import asyncpg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError, OperationalError

from server.domain import Binding, BindingMode
from server.store.cleaning import clean_text, decode_json, encode_json
from server.store.database import Database, normalise_url
from server.store.episode_rows import COLUMNS, encode_episode, identify_problem
from server.store.outages import is_outage, is_refusal
from server.store.packing import pack_ids, pack_logprobs, unpack_ids, unpack_logprobs
from tests.fixtures.episodes import make_episode

any_text = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates and U+0000 too
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


@given(any_text)
def test_clean_text_fits_everywhere_and_keeps_the_rest(text: str) -> None:
    cleaned = clean_text(text)
    cleaned.encode()
    assert "\0" not in cleaned
    assert clean_text(cleaned) is cleaned
    assert len(cleaned) <= len(text)
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert cleaned == text.replace("\0", "\u2400")


def test_a_surrogate_pair_becomes_its_character() -> None:
    assert clean_text("a\ud83d\ude00b\ud83d") == "a😀b\ufffd"


@given(any_json)
def test_json_that_is_encoded_is_clean_and_the_same_otherwise(value: object) -> None:
    encoded = encode_json(value)
    encoded.encode()
    assert "\\u0000" not in encoded.replace("\\\\", "")
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        return
    if "\\u0000" not in text:
        assert decode_json(encoded) == value


def test_json_keeps_order_and_big_numbers_and_knows_what_is_near_to_json() -> None:
    value = {"z": 10**40, "a": MappingProxyType({"y": (1, 2), "x": np.float32(0.5)}), "n": np.arange(2)}
    assert encode_json(value) == '{"z":' + str(10**40) + ',"a":{"y":[1,2],"x":0.5},"n":[0,1]}'
    assert encode_json({"x": math.nan, "y": math.inf}) == '{"x":null,"y":null}'
    assert encode_json("\\u0000 \0") == '"\\\\u0000 \u2400"'
    with pytest.raises(TypeError):
        encode_json({"x": object()})


@given(st.lists(st.integers(-(2**31), 2**31 - 1)), st.lists(st.floats(width=32, allow_nan=False)))
def test_packing_is_exact_and_little_endian(ids: list[int], logprobs: list[float]) -> None:
    packed_ids, packed_logprobs = pack_ids(ids), pack_logprobs(logprobs)
    assert packed_ids == np.array(ids, "<i4").tobytes()
    assert packed_logprobs == np.array(logprobs, "<f4").tobytes()
    assert unpack_ids(packed_ids) == tuple(ids)
    assert unpack_logprobs(packed_logprobs) == tuple(logprobs)


def test_a_token_id_beyond_int32_is_refused() -> None:
    with pytest.raises(OverflowError):
        pack_ids([2**31])


def test_rows_stand_in_the_order_of_the_columns() -> None:
    episode = make_episode(created_at=77.5)
    rows = encode_episode(episode)
    for row, columns in ((rows.episode, COLUMNS[0]), (rows.attempts[1], COLUMNS[1]), (rows.reflections[0], COLUMNS[2])):
        assert len(row) == len(columns)
    named = dict(zip(COLUMNS[0], rows.episode, strict=True))
    assert (named["id"], named["created_at"], named["split"]) == (episode.id, 77.5, "training")
    named = dict(zip(COLUMNS[2], rows.reflections[0], strict=True))
    assert (named["token_ids"], named["template_hash"]) == (pack_ids((7, 0, 151_000, 2)), "abc123")


def test_a_problem_is_what_was_asked_not_how_it_was_sampled() -> None:
    binding = Binding("countdown", {}, "countdown", 1, {"target": 6})
    request = {"messages": [{"role": "user", "content": "hi"}], "tools": None, "temperature": 1}
    problem = identify_problem(request, [binding])
    assert identify_problem({**request, "temperature": 0, "seed": 3}, [replace(binding, version=2)]) == problem
    assert identify_problem({"messages": [{"content": "hi", "role": "user"}]}, [binding]) == problem
    assert identify_problem({**request, "messages": [{"role": "user", "content": "ho"}]}, [binding]) != problem
    assert identify_problem({**request, "tools": [{}]}, [binding]) != problem
    assert identify_problem(request, [replace(binding, args={"target": 7})]) != problem
    assert identify_problem(request, [binding, replace(binding, mode=BindingMode.AUDIT)]) == problem
    assert len(identify_problem({"messages": ["\ud800"]}, [])) == 32


@pytest.mark.parametrize(
    ("given", "normalised"),
    [
        ("sqlite:///rel/a.db", "sqlite+aiosqlite:///rel/a.db"),
        ("sqlite:////abs/a.db", "sqlite+aiosqlite:////abs/a.db"),
        ("sqlite+aiosqlite:////abs/a.db", "sqlite+aiosqlite:////abs/a.db"),
        ("postgresql://u:p%40@h:1/d", "postgresql+asyncpg://u:p%40@h:1/d"),
        ("postgresql+asyncpg://h/d", "postgresql+asyncpg://h/d"),
        ("postgresql+psycopg://h/d", "postgresql+asyncpg://h/d"),
        ("postgres://h/d?sslmode=require", "postgresql+asyncpg://h/d?ssl=require"),
    ],
)
def test_urls_get_an_asynchronous_driver(given: str, normalised: str) -> None:
    assert normalise_url(given).render_as_string(hide_password=False) == normalised


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://h/d"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"SQLite needs a file|not supported"):
        normalise_url(url)


async def test_a_database_connects_only_when_used(tmp_path: Path) -> None:
    opened = Database("postgresql://127.0.0.1:1/nothing")
    await opened.close()
    assert opened.dialect == "postgresql"
    assert Database(f"sqlite:///{tmp_path}/new/a.db").dialect == "sqlite"
    assert not (tmp_path / "new" / "a.db").exists()


def wrap(error: Exception) -> DBAPIError:
    return DBAPIError("INSERT", {}, error)


def of_postgres(state: str) -> Exception:
    error = asyncpg.PostgresError.new({"S": "ERROR", "C": state, "M": "no"})
    translated = Exception("no")
    translated.sqlstate = error.sqlstate  # type: ignore[attr-defined] - as SQLAlchemy's driver adapter sets it
    return translated


@pytest.mark.parametrize("state", ["22021", "22P05", "22003", "23505", "54001"])
def test_refusals_of_postgres(state: str) -> None:
    assert is_refusal(wrap(of_postgres(state)))
    assert not is_outage(wrap(of_postgres(state)))


@pytest.mark.parametrize("state", ["08006", "25006", "40001", "42P01", "53100", "57P01"])
def test_outages_of_postgres(state: str) -> None:
    assert is_outage(wrap(of_postgres(state)))


def test_refusals_and_outages_of_sqlite_and_python() -> None:
    for error in (sqlite3.IntegrityError("x"), sqlite3.DataError("x")):
        assert is_refusal(wrap(error))
    for error in (OverflowError("x"), TypeError("x"), UnicodeEncodeError("utf-8", "x", 0, 1, "x")):
        assert is_refusal(error)
        assert not is_outage(error)
    for error in (OperationalError("x", {}, sqlite3.OperationalError("database is locked")), OSError(), TimeoutError()):
        assert is_outage(error)
    assert not is_outage(KeyError("a mistake of ours"))
