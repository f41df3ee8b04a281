"""Every error can be said, whatever it quotes."""

import json

from server.api.errors import encode_error, respond_error
from server.errors import InvalidRequest, VerificationFailed


def test_what_no_json_can_say_is_said_all_the_same():
    odd = InvalidRequest("no option '\ud800' and no \N{SNOWMAN}", param="\udfff")
    for body in (bytes(respond_error(odd).body), encode_error(odd)):
        said = json.loads(body)["error"]
        assert (said["message"], said["param"]) == ("no option '\ufffd' and no \N{SNOWMAN}", "\ufffd")
    failed = VerificationFailed("no")
    failed.details = {"verdicts": [{"reason": "\ud800", "score": float("nan")}]}
    assert json.loads(respond_error(failed).body)["error"]["verdicts"] == [{"reason": "\ufffd", "score": None}]
    plain = InvalidRequest("as it is", param="a.b")
    assert json.loads(encode_error(plain))["error"]["message"] == "as it is"
