"""Other people's clients, unmodified, against a running server with the demo model. Each script is also in the docs."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT, Up, environment
from tools.client_docs import CLIENTS, SCRIPTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NEWEST, OPENAI2 = ROOT / ".venv-clients" / "bin", ROOT / ".venv-clients-openai2" / "bin"
STRICT = ("python", "-W", "error")
COMMANDS = {
    # what is tried: its environment, what runs the script, the script
    "openai-python": (NEWEST, STRICT, "openai_python.py"),
    "openai-python of the major before": (OPENAI2, STRICT, "openai_python.py"),
    "openai-python, responses": (NEWEST, STRICT, "openai_responses.py"),
    "openai-python of the major before, responses": (OPENAI2, STRICT, "openai_responses.py"),
    "openai-node": (NEWEST, ("node",), "openai_node.mjs"),
    "langchain-openai": (NEWEST, STRICT, "langchain_client.py"),
    "litellm": (OPENAI2, ("python",), "litellm_client.py"),  # it leaves sockets open, which STRICT would tell
    "pydantic-ai": (NEWEST, STRICT, "pydantic_ai_client.py"),
    "instructor": (OPENAI2, STRICT, "instructor_client.py"),
    "llm": (NEWEST, ("bash",), "llm_cli.sh"),
    "vercel-ai-sdk": (NEWEST, ("node",), "ai_sdk.mjs"),
    "curl": (NEWEST, ("bash",), "curl.sh"),
    "structured output": (NEWEST, STRICT, "structured_output.py"),
    "structured output with instructor": (OPENAI2, STRICT, "structured_instructor.py"),
}
ON_SGLANG = [client for client in COMMANDS if client.startswith("structured")]


def miss(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI needs {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="module")
def installed() -> None:
    if (NEWEST / "node").exists() and OPENAI2.exists() and (SCRIPTS / "node_modules").exists():
        return
    miss("the clients: run `make clients`")


@pytest.fixture(scope="module")
def variables(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    yield from serve(tmp_path_factory.mktemp("clients") / "data")


@pytest.fixture(scope="module")
def variables_of_sglang(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    python = ROOT / ".venv-sglang" / "bin" / "python"
    if not python.exists():
        miss("the real SGLang: run `make sglang-cpu`")
    options = ["--engine", "sglang", "--model", str(ROOT / "demo" / "model")]
    folder = tmp_path_factory.mktemp("clients-sglang") / "data"
    yield from serve(folder, *options, MULLIGAN_ENGINE__SGLANG_PYTHON=str(python))


def serve(folder: Path, *options: str, **more: str) -> Iterator[dict[str, str]]:
    """Start a server and prepare it by `setup.sh`; give what the scripts find in their environment."""
    up = Up(folder, *options, **more)
    try:
        up.wait_ready(timeout_s=300)
        here = environment(MULLIGAN_DATA_DIR=str(up.data_dir))
        here["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{here['PATH']}"
        done = subprocess.run(
            ["bash", str(SCRIPTS / "setup.sh")],
            cwd=ROOT, env=here, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        key = re.fullmatch(r"export MULLIGAN_API_KEY=(mk-\S+)\n", done.stdout)
        assert key, done.stdout
        yield {"MULLIGAN_BASE_URL": up.url, "MULLIGAN_API_KEY": key[1]}
    finally:
        up.close()


def test_every_client_of_the_page_is_tried():
    assert {script for _, _, script in COMMANDS.values()} == set(CLIENTS)


@pytest.mark.parametrize("client", COMMANDS)
def test_the_client_does_its_job_and_sees_why_an_answer_failed(client: str, variables: dict[str, str], tmp_path: Path):
    run_script(*COMMANDS[client], variables, tmp_path)


@pytest.mark.sglang
@pytest.mark.parametrize("client", ON_SGLANG)
def test_the_client_gets_structured_output(client: str, variables_of_sglang: dict[str, str], tmp_path: Path):
    run_script(*COMMANDS[client], variables_of_sglang, tmp_path)


def run_script(binaries: Path, words: tuple[str, ...], script: str, variables: dict[str, str], folder: Path) -> None:
    program, *options = words
    foreign = ("PYTHON", "OPENAI_", "NODE_", "LLM_")
    clean = {name: value for name, value in environment().items() if not name.startswith(foreign)}
    clean["PATH"] = f"{binaries}{os.pathsep}{clean['PATH']}"
    command = [str(binaries / program) if (binaries / program).exists() else program, *options, str(SCRIPTS / script)]
    done = subprocess.run(
        command,
        cwd=folder, env=clean | {"HOME": str(folder), "NO_PROXY": "127.0.0.1"} | variables,
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}:\n{done.stdout}\n{done.stderr}"
    assert "422" in done.stdout, f"it shows no failure:\n{done.stdout}"
    assert variables["MULLIGAN_API_KEY"] not in done.stdout + done.stderr
