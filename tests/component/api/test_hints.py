"""What a refusal tells of what was meant."""

import pytest

from tests.fixtures.api import make_api


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"temprature": 1}, "Did you mean temperature?"),
        ({"retry": {"max_retry": 1}}, "Did you mean max_retries?"),
        ({"verifiers": [{"nam": "x"}]}, "Did you mean name?"),
        ({"extra_body": {}}, "in the body itself"),
        ({"verify": "on"}, "enforce, observe, off"),
        ({"retry": {"show": "all"}}, "reason, verdict"),
    ],
)
async def test_a_refusal_names_what_was_meant(fields, hint):
    answer = await make_api("4").chat(**fields)
    assert answer.status == 400
    assert hint in answer.error["message"]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/completions"])
async def test_so_do_the_other_surfaces(path):
    answer = await make_api("4").post(path, {"model": "default", "input": "x", "prompt": "x", "temprature": 1})
    assert answer.status == 400
    assert answer.error["code"] == "unknown_field"
    wrong = {"input": "x"} if path == "/v1/responses" else {"prompt": "x"}
    answer = await make_api("4").post(path, {"model": "default", **wrong, "temprature": 1})
    assert "Did you mean temperature?" in answer.error["message"]


async def test_what_is_like_nothing_is_left_at_that():
    answer = await make_api("4").chat(zzzz=1)
    assert answer.error["message"] == "Unknown field: zzzz"
