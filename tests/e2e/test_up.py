"""`mulligan up` as a user runs it: from nothing, pasted lines, what is killed, and what is left when it stops."""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import openai
import pytest

from demo.problems import Problem, problems
from tests.e2e.harness import ROOT, Up, environment, is_gone, mulligan, mulligan_json, wait_for

pytestmark = pytest.mark.slow

COUNTDOWN = {"kind": "countdown", "args": {"numbers": [3, 5, 2], "target": 21}}
QUESTION = [{"role": "user", "content": "Using the numbers 3, 5 and 2, make 21."}]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    started = Up(tmp_path_factory.mktemp("up") / "data")
    try:
        yield started.wait_ready()
    finally:
        started.close()


@pytest.fixture(scope="module")
def client(up: Up) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{up.url}", api_key=up.key, max_retries=6, timeout=60) as opened:
        yield opened


def ask(client: openai.OpenAI, **more):
    body = {"model": "default", "messages": QUESTION, "max_completion_tokens": 32, **more}
    return client.chat.completions.create(**body)


def run_pasted(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def test_the_printed_lines_work_when_pasted(up: Up):
    curl = re.search(r"^curl .*$", up.output, re.MULTILINE)[0]
    answered = run_pasted(["bash", "-c", f"{curl} -sS --fail-with-body"])
    assert answered.returncode == 0, answered.stdout + answered.stderr
    assert '"chat.completion"' in answered.stdout
    assert '"verdict":' in answered.stdout

    snippet = re.search(r"^from openai import OpenAI$.*?^print\(.*?$", up.output, re.MULTILINE | re.DOTALL)[0]
    python = run_pasted([sys.executable, "-c", snippet])
    assert python.returncode == 0, python.stderr
    assert re.search(r"(passed|recovered|exhausted)$", python.stdout.strip())


def test_the_openai_sdk_gets_answers_streams_and_its_own_errors(up: Up, client: openai.OpenAI):
    assert {"base", "default"} <= {model.id for model in client.models.list()}
    plain = ask(client)
    assert plain.choices[0].message.role == "assistant"
    assert plain.mulligan["outcome"] == "unverified"

    never = {"kind": "regex", "config": {"pattern": "^never this$"}}
    checked = ask(client, extra_body={"verifiers": [never], "retry": {"reflection_max_tokens": 16}})
    assert checked.mulligan["outcome"] == "exhausted"
    assert [attempt["verdict"] for attempt in checked.mulligan["attempts"]] == ["failed", "failed"]
    assert checked.usage.completion_tokens > checked.mulligan["attempts"][-1]["usage"]["completion_tokens"]

    chunks = list(ask(client, stream=True, extra_body={"verifiers": [COUNTDOWN]}))
    assert chunks[-1].mulligan["outcome"] in ("passed", "recovered", "exhausted")
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed
    assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True) if chunk.choices)

    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="mk-wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        ask(client, model="gpt-nowhere")
    with pytest.raises(openai.BadRequestError, match="colour"):
        ask(client, extra_body={"colour": "blue"})


def test_an_answered_episode_survives_the_api_and_the_api_comes_back(up: Up, client: openai.OpenAI):
    api = up.part("API")
    told = ask(client, extra_body={"verifiers": [COUNTDOWN]})
    api.kill()
    logged = mulligan_json("episodes", "show", told.mulligan["episode_id"], "--data-dir", str(up.data_dir))
    assert logged["outcome"] == told.mulligan["outcome"]
    assert logged["attempts"][-1]["answer"]["content"] == told.choices[0].message.content
    wait_for(lambda: "API is back" in up.output, 30, f"the API is back: {up.output}")
    assert "API died: killed by SIGKILL" in up.output
    assert up.part("API").pid != api.pid
    assert ask(client).choices[0].message.role == "assistant"


def test_the_engine_comes_back(up: Up, client: openai.OpenAI):
    up.part("engine").kill()
    wait_for(lambda: "engine is back" in up.output, 60, "the engine is back")
    assert ask(client, extra_body={"verifiers": [COUNTDOWN]}).mulligan["attempts"]


def test_a_round_survives_its_worker(up: Up, client: openai.OpenAI):
    def post(path: str, body: dict) -> dict:
        return client.post(path, cast_to=object, body=body)

    post("/verifiers", {"name": "countdown", "kind": "countdown"})
    training = {"options": {"min_failures": 4, "steps": 200, "group_size": 2, "step_failures": 4}}
    post("/tasks", {"name": "countdown", "verifiers": ["countdown@1"], "training": training})

    def send(problem: Problem) -> None:
        checked = {"verifiers": [{"name": "countdown", "args": problem.args}], "retry": {"reflection_max_tokens": 32}}
        ask(client, model="countdown", messages=problem.messages, extra_body=checked)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, islice(problems("countdown", "training", 1), 30)))
    row = post("/tasks/countdown/rounds", {})

    def show() -> dict:
        return client.get(f"/rounds/{row['id']}", cast_to=object)["round"]

    wait_for(lambda: show()["phase"] == "training", 90, "the round trains")
    trainer, worker = up.part("trainer"), up.part("worker")
    first_epoch = show()["epoch"]
    worker.kill()
    wait_for(lambda: is_gone(trainer), 5, "the trainer goes with its worker")

    def is_taken_up() -> bool:
        now = show()
        return now["epoch"] > first_epoch or now["state"] == "failed"

    wait_for(is_taken_up, 60, "the round is taken up, or failed with its reason")
    assert ask(client, model="countdown", extra_body={"verifiers": []}).mulligan["adapter"] == ""

    if show()["state"] in ("queued", "running"):
        post(f"/rounds/{row['id']}/cancel", {})
    ended = wait_for(lambda: (now := show())["state"] in ("cancelled", "failed") and now, 60, "the round ends")
    assert ended["reason"]
    again = post("/tasks/countdown/rounds", {})
    assert again["number"] == row["number"] + 1
    post(f"/rounds/{again['id']}/cancel", {})


def test_ctrl_c_leaves_nothing_and_kill_9_neither(tmp_path: Path):
    up = Up(tmp_path / "data").wait_ready()
    try:
        with openai.OpenAI(base_url=up.url, api_key=up.key, timeout=60) as client:
            assert ask(client).choices
        family, key = up.family(), up.key
        assert len(family) >= 5
        assert up.interrupt() < 10
        assert all(is_gone(process) for process in family)
        assert not (up.data_dir / "up.json").exists()

        up = Up(tmp_path / "data").wait_ready()
        assert "shown only this once" not in up.output
        with openai.OpenAI(base_url=up.url, api_key=key, timeout=60) as client:
            assert ask(client).choices
        family = up.family()
        up.kill()
        wait_for(lambda: all(is_gone(process) for process in family), 10, "the children go with the supervisor")
    finally:
        up.close()


def test_a_second_server_in_the_same_folder_or_on_the_same_port_is_refused(up: Up):
    same_folder = mulligan("up", "--data-dir", str(up.data_dir), check=False)
    assert same_folder.returncode == 1
    assert "already serves from" in same_folder.stderr
    port = up.url.rsplit(":", 1)[1].split("/")[0]
    same_port = mulligan("up", "--data-dir", str(up.data_dir.parent / "other"), "--port", port, check=False)
    assert same_port.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in same_port.stderr
    assert "--port" in same_port.stderr
    assert "Traceback" not in same_port.stderr
