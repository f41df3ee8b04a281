"""Responses that go on from others, and reading them back: only ever the key's own."""

import pytest

from server.domain import Outcome
from tests.fixtures.api import ADMIN, make_api
from tests.fixtures.engines import reply
from tests.fixtures.responses import CALL, FOUR, LOGPROBS, TOOL, check_response, respond


class TestConversations:
    async def test_the_conversation_goes_on_without_the_old_instructions(self):
        api = make_api("4", "8", "16")
        first = check_response((await respond(api, "2+2?", instructions="Be brief.")).json())
        second = check_response(
            (await respond(api, "twice?", previous_response_id=first.id, instructions="Shout.")).json()
        )
        assert second.previous_response_id == first.id
        await respond(api, "twice?", previous_response_id=second.id)
        two = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
        again = {"role": "user", "content": "twice?"}
        assert api.engine.calls[1].messages == [{"role": "system", "content": "Shout."}, *two, again]
        assert api.engine.calls[2].messages == [*two, again, {"role": "assistant", "content": "8"}, again]

    async def test_calls_go_on_with_their_outputs(self):
        said = reply(None, calls=[CALL])
        said.message["tool_calls"][0]["id"] = None
        api = make_api(said, "3")
        first = check_response((await respond(api, tools=[TOOL])).json())
        output = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "3"}
        second = await respond(api, [output], previous_response_id=first.id)
        assert check_response(second.json()).output_text == "3"
        *_, answer, tool = api.engine.calls[1].messages
        assert answer["tool_calls"][0]["id"] == tool["tool_call_id"] == output["call_id"]
        unanswered = await respond(api, "hello", previous_response_id=first.id)
        assert (unanswered.status, unanswered.error["param"]) == (400, "input")

    async def test_a_retried_answer_goes_on_as_it_was_returned(self):
        api = make_api("5", "Hm.", "4", "8")
        first = (await respond(api, verifiers=FOUR)).json()["id"]
        await respond(api, "twice?", previous_response_id=first)
        assert [message["content"] for message in api.engine.calls[-1].messages] == ["2+2?", "4", "twice?"]

    @pytest.mark.parametrize("role", ["client", "admin"])
    async def test_nobody_goes_on_from_anothers(self, role):
        api = make_api("4")
        api.keys.put("mk-other", role)
        first = (await respond(api)).json()["id"]
        answer = await respond(api, previous_response_id=first, key="mk-other")
        assert (answer.status, answer.error["code"]) == (404, "previous_response_not_found")
        mine = (await respond(api, key=ADMIN)).json()["id"]
        assert (await respond(api, previous_response_id=mine)).status == 404
        for path in (first, f"{first}/input_items"):
            shown = await api.get(f"/v1/responses/{path}", key="mk-other")
            assert (shown.status, shown.error["code"]) == (404, "response_not_found")
        reference = [{"type": "item_reference", "id": first.replace("resp_", "msg_")}]
        refused = await respond(api, reference, key="mk-other")
        assert (refused.status, refused.error["code"]) == (404, "item_not_found")
        assert len(api.engine.calls) == 2

    async def test_a_key_loses_what_its_task_list_no_longer_has(self):
        api = make_api("4")
        first = (await respond(api)).json()["id"]
        api.keys.put("mk-client", tasks=("other",))
        api.context.keyring.forget(next(iter(api.keys.keys)))
        assert (await respond(api, previous_response_id=first)).status == 404

    async def test_what_was_not_stored_cannot_be_found(self):
        api = make_api("4")
        first = (await respond(api, store=False)).json()["id"]
        assert api.logged.request is None
        assert (await respond(api, previous_response_id=first)).status == 404
        assert (await api.get(f"/v1/responses/{first}")).status == 404

    @pytest.mark.parametrize("given", ["resp_x", "resp_\0", "ep_x", "", "chatcmpl-x"])
    async def test_a_chat_is_no_response(self, given):
        api = make_api("4")
        chat = await api.chat()
        ids = [given, "resp_" + chat.headers["x-mulligan-episode"].removeprefix("ep_")]
        for one in ids:
            answer = await respond(api, previous_response_id=one)
            assert answer.status == (404 if one else 400)
            assert answer.error["param"] == "previous_response_id"

    async def test_an_item_can_be_referred_to(self):
        api = make_api("4")
        first = check_response((await respond(api)).json())
        items = (await api.get(f"/v1/responses/{first.id}/input_items")).json()["data"]
        asked = [
            {"type": "item_reference", "id": items[0]["id"]},
            {"id": first.output[0].id},
            {"role": "user", "content": "so?"},
        ]
        assert (await respond(api, asked)).status == 200
        assert [message["content"] for message in api.engine.calls[-1].messages] == ["2+2?", "4", "so?"]
        missing = await respond(api, [{"type": "item_reference", "id": "msg_nothing"}])
        assert (missing.status, missing.error["param"]) == (404, "input[0].id")


class TestReading:
    async def test_a_stored_response_reads_as_it_was_answered(self):
        api = make_api("5", "Hm.", reply("4", calls=[CALL], choice_logprobs=LOGPROBS))
        asked = {"verifiers": FOUR, "tools": [TOOL], "instructions": "x", "metadata": {"a": "b"}, "top_logprobs": 1}
        answered = (await respond(api, **asked)).json()
        shown = (await api.get(f"/v1/responses/{answered['id']}")).json()
        check_response(shown)
        assert shown == answered
        refused = await api.get(f"/v1/responses/{answered['id']}?stream=true")
        assert (refused.status, refused.error["param"]) == (400, "stream")

    async def test_input_items_are_paged(self):
        api = make_api(reply(None, calls=[CALL]), "3")
        first = check_response((await respond(api, "add", tools=[TOOL])).json())
        output = {"type": "function_call_output", "call_id": "call_0", "output": "3"}
        second = (await respond(api, [output], previous_response_id=first.id)).json()["id"]
        path = f"/v1/responses/{second}/input_items"
        whole = (await api.get(f"{path}?order=asc")).json()
        assert [item["type"] for item in whole["data"]] == ["message", "function_call", "function_call_output"]
        assert whole["has_more"] is False
        page = (await api.get(f"{path}?limit=2")).json()
        assert ([item["type"] for item in page["data"]], page["has_more"]) == (
            ["function_call_output", "function_call"],
            True,
        )
        rest = (await api.get(f"{path}?limit=2&after={page['last_id']}")).json()
        assert rest["data"] == whole["data"][:1]
        assert (await api.get(f"{path}?after=nothing")).error["param"] == "after"

    async def test_a_response_that_its_client_left_is_cancelled(self):
        api = make_api("4")
        response = (await respond(api)).json()["id"]
        api.logged.outcome = Outcome.CANCELLED
        shown = check_response((await api.get(f"/v1/responses/{response}")).json())
        assert (shown.status, shown.output) == ("cancelled", [])
        refused = await respond(api, previous_response_id=response)
        assert (refused.status, refused.error["param"]) == (400, "previous_response_id")
