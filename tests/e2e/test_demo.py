"""`mulligan demo`, small: on the embedded default, and in the user's own shape on SGLang, Postgres and Redis."""

import asyncio
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import openai
import psutil
import pytest
import redis

from tests.e2e.harness import ROOT, Up, is_gone, mulligan, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = ["--problems", "24", "--training-problems", "90", "--seed", "3", "--option", "steps=2"]
SMALL += ["--option", "step_failures=16", "--option", "group_size=4"]
NAMES = {"n", "first_before", "second_before", "first_after", "second_after", "second_gain", "second_gain_ci95"}


def run_demo(tmp_path: Path, *options: str, timeout_s: float = 600) -> tuple[dict, str]:
    figures_path = tmp_path / "figures.json"
    before = set(psutil.Process().children(recursive=True))
    done = mulligan(
        "demo", "--data-dir", str(tmp_path / "data"), "--json", str(figures_path), *SMALL, *options, timeout_s=timeout_s
    )
    assert set(psutil.Process().children(recursive=True)) <= before
    return json.loads(figures_path.read_text()), done.stdout


def check_figures(figures: dict, tasks: set[str]) -> None:
    assert set(figures["tasks"]) == tasks
    assert figures["seconds"] > 0
    assert figures["seed"] == 3
    assert {row["task"] for row in figures["rounds"]} == tasks
    for row in figures["rounds"]:
        assert row["state"] in ("promoted", "inconclusive", "regressed")
        assert row["steps_done"] == 2
    for task in figures["tasks"].values():
        assert set(task) >= NAMES
        assert task["n"] == 24
        assert 0 <= task["first_before"] <= task["second_before"] <= 1
        low, high = task["second_gain_ci95"]
        assert low <= task["second_gain"] <= high
        assert task["second_gain"] == pytest.approx(task["second_after"] - task["second_before"])


def test_the_embedded_default_runs_both_tasks(tmp_path: Path):
    figures, shown = run_demo(tmp_path)
    check_figures(figures, {"countdown", "function_call"})
    assert "Accuracy on held-out problems" in shown
    assert str(tmp_path / "data") in shown


@pytest.fixture
def sglang_python() -> str:
    python = ROOT / ".venv-sglang" / "bin" / "python"
    if not python.exists():
        _missing("the real SGLang: run `make sglang-cpu`")
    return str(python)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    address = os.environ.get("MULLIGAN_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
    name = f"mulligan_e2e_{secrets.token_hex(6)}"

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(address)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    try:
        asyncio.run(execute(f"CREATE DATABASE {name}"))
    except OSError:
        _missing("Postgres at 127.0.0.1:5432")
    yield f"{address.rsplit('/', 1)[0]}/{name}"
    asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def redis_url() -> Iterator[str]:
    url = os.environ.get("MULLIGAN_TEST_REDIS_URL", "redis://127.0.0.1:6379/11")
    with redis.Redis.from_url(url) as connection:
        try:
            connection.ping()
        except redis.ConnectionError:
            _missing("Redis at 127.0.0.1:6379")
        before = set(connection.keys("*"))
        yield url
        ours = set(connection.keys("*")) - before
        if ours:
            connection.delete(*ours)


def _missing(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI needs {what}")
    pytest.skip(f"needs {what}")


@pytest.mark.sglang
@pytest.mark.postgres
@pytest.mark.redis
def test_sglang_postgres_and_redis_go_through_a_round_and_a_hot_swap(
    tmp_path: Path, sglang_python: str, postgres_url: str, redis_url: str
):
    # Too few problems to promote anything by itself: the swap is made by hand, whatever two steps have learnt.
    options = ["--engine", "sglang", "--database-url", postgres_url, "--broker-url", redis_url, "--task", "countdown"]
    figures_path = tmp_path / "figures.json"
    options += ["--option", "gate_min_problems=1000", "--keep", "--json", str(figures_path)]
    variables = {"MULLIGAN_ENGINE__SGLANG_PYTHON": sglang_python}
    demo = Up(tmp_path / "data", *SMALL, *options, command="demo", **variables)
    try:
        demo.wait_ready(timeout_s=600)
        figures = json.loads(figures_path.read_text())
        check_figures(figures, {"countdown"})
        (row,) = figures["rounds"]
        assert (row["state"], row["adapter"]) == ("inconclusive", "countdown@1")
        why = ("--force", "--comment", "two steps, and few problems")
        mulligan("adapters", "promote", row["adapter"], *why, "--data-dir", str(demo.data_dir))
        with openai.OpenAI(base_url=demo.url, api_key=demo.key, timeout=60) as client:
            question = [{"role": "user", "content": "Using the numbers 3, 5 and 2, make 21."}]

            def answers_with_it() -> bool:
                answer = client.chat.completions.create(
                    model="countdown", messages=question, max_completion_tokens=8, extra_body={"verifiers": []}
                )
                return answer.mulligan["adapter"] == row["adapter"]

            wait_for(answers_with_it, 5, "the promoted adapter answers")
        family = demo.family()
        assert demo.interrupt() < 10
        assert all(is_gone(process) for process in family)
    finally:
        demo.close()
