"""What docs/webhooks.md says is true, and the receiver that it shows works: as its own process, asked over the wire."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.orchestration.verification import allow
from server.settings import Settings
from tests.integration.verifiers.conftest import SECRET
from verifiers import judge, judge_prompt, judge_reply, outbound, outbound_body, registry, webhook
from verifiers.base import Cause, Status
from verifiers.outbound import Outbound
from verifiers.webhook import make_kind, sign

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "webhooks.md").read_text()
RIGHT, WRONG = {"content": "Thank you. Next: call us."}, {"content": "Thank you."}
ARGS = {"words": ["thank", "next"]}


@pytest.fixture(scope="module")
def receiver():
    """Start the example and give its port."""
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "webhook_verifier.py"), "0"]
    running = subprocess.Popen(command, env={**os.environ, "WEBHOOK_SECRET": SECRET}, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        yield int(re.findall(r":(\d+)/$", line.strip())[0])
    finally:
        running.terminate()
        running.wait(20)
        running.stdout.close()


async def judge_with(port, secret="crm"):
    out = Outbound()
    made = make_kind(out).compile_checked({"url": f"http://127.0.0.1:{port}/", "secret": secret, "timeout_s": 30})
    verdicts = [await made.verify({"messages": []}, answer, ARGS) for answer in (RIGHT, WRONG)]
    out.close()
    return verdicts


async def test_the_receiver_judges(receiver):
    passed, failed = await judge_with(receiver)
    assert passed.status is Status.PASSED
    assert (failed.status, failed.score, failed.safe_for_model) == (Status.FAILED, 0.5, True)
    assert failed.reason == "the answer does not say next"


async def test_a_secret_is_changed_with_both_for_a_while(receiver, allowed):
    allowed(secrets={"crm": f"whsec_bmV3 {SECRET}"})
    assert [verdict.status for verdict in await judge_with(receiver)] == [Status.PASSED, Status.FAILED]
    allowed(secrets={"crm": "whsec_bmV3"})
    for verdict in await judge_with(receiver):
        assert (verdict.cause, verdict.reason) == (Cause.UNREACHABLE, "the webhook answered with status 401")


def post(port, body, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/", body, headers)
        answered = connection.getresponse()
        return answered.status, json.loads(answered.read())
    finally:
        connection.close()


def question(words):
    return json.dumps({"request": {}, "answer": RIGHT, "args": {"words": words}}).encode()


def test_the_receiver_refuses_what_mulligan_did_not_send(receiver):
    body, now_s = question(["thank"]), int(time.time())
    keys = [webhook._decode(SECRET)]
    good = sign("a", now_s, body, keys)
    assert post(receiver, body, good)[0] == 200
    refused = [
        {},
        {**good, "webhook-signature": ""},
        {**good, "webhook-id": "b"},
        {**good, "webhook-timestamp": str(now_s + 1)},
        {**good, "webhook-timestamp": "\u00b2"},
        sign("a", now_s - 3000, body, keys),
        sign("a", now_s + 3000, body, keys),
        sign("a", now_s, body + b" ", keys),
        sign("a", now_s, body, [b"another"]),
    ]
    assert [post(receiver, body, headers)[0] for headers in refused] == [401] * len(refused)
    assert post(receiver, body, {**good, "content-length": "99999999"})[0] == 413


def test_the_receiver_says_the_same_again_to_the_same_id(receiver):
    keys, now_s = [webhook._decode(SECRET)], int(time.time())
    first, second = question(["thank"]), question(["other"])
    assert post(receiver, first, sign("again", now_s, first, keys)) == (200, {"passed": True})
    assert post(receiver, second, sign("again", now_s, second, keys)) == (200, {"passed": True})
    assert post(receiver, second, sign("anew", now_s, second, keys))[1]["passed"] is False


def test_the_configurations_of_the_page_compile_under_its_settings(monkeypatch):
    found = re.findall(r"^export (\w+)='([^']*)'$|--kind (\w+) --config '([^']*)'$", PAGE, re.MULTILINE)
    compiled = 0
    for name, value, kind, config in found:
        if name:
            monkeypatch.setenv(name, value.replace("whsec_...", SECRET))
        else:
            allow(Settings().verifiers)
            assert registry.compile_verifier(kind, json.loads(config))
            compiled += 1
    assert compiled == 2


@pytest.mark.parametrize(
    "said",
    [
        f"`timeout_s` ({webhook.TIMEOUT_S:g} s, at most {outbound.MAX_TIMEOUT_S:g})",
        f"({webhook.RETRIES}; up to {webhook.MAX_RETRIES})",
        f"after {outbound.BACK_OFF_S:g} s and twice as long each time",
        f"{outbound.MAX_AT_ONCE} calls to the host are under way",
        f"{outbound.MAX_REPLY_BYTES // 1024} KiB a reply",
        f"{judge_prompt.MAX_SHOWN_CHARS:,} characters in all",
        f"whole\nnumber from 0 to {judge_prompt.SCORE_TOP}",
        f"passes from `threshold` ({judge.THRESHOLD:g}",
    ],
)
def test_the_figures_of_the_page(said):
    assert said in PAGE
    assert outbound_body.MAX_SENT_CHARS == 1_000_000
    assert judge_reply.MAX_REASON_CHARS == webhook.MAX_REASON_CHARS
