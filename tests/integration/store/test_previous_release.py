"""The code of the release before runs on the schema of this one: what an upgrade lives through between its steps.

The commit is named in tests/fixtures/previous_release.txt. Its own contract suite of the stores, and its own tests of
the wired application, run with its code in a process of its own; only the schema under them is today's. No network.
"""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RELEASE = (ROOT / "tests" / "fixtures" / "previous_release.txt").read_text().strip()
TESTS = [
    "tests/contract/store/test_episode_log.py",
    "tests/contract/store/test_episodes.py",
    "tests/contract/store/test_keys.py",
    "tests/contract/store/test_replays.py",
    "tests/contract/store/test_rounds.py",
    "tests/contract/store/test_tasks.py",
    "tests/integration/api/test_lifespan.py::test_the_default_task_is_always_there",
]
PLUGIN = f"""
import subprocess, sys
from pathlib import Path

import server
from server.store import migrations

assert not Path(server.__file__).is_relative_to({str(ROOT)!r}), "this is to be the former code"

def upgrade(url, revision="head"):
    code = "import sys; from server.store import migrations; migrations.upgrade(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, url, revision], cwd={str(ROOT)!r}, check=True, timeout=120)

migrations.upgrade = upgrade
"""


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release before, as its commit has it."""
    folder = tmp_path_factory.mktemp("former")
    archive = subprocess.run(["git", "archive", RELEASE], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        words = f"the history lacks the release before, {RELEASE}: fetch it whole (`git fetch --unshallow`)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{words}: {archive.stderr.decode()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
        content.extractall(folder, filter="data")
    (folder / "new_schema.py").write_text(PLUGIN)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.postgres
@pytest.mark.usefixtures("postgres_server")
def test_the_release_before_runs_on_the_new_schema(former: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "new_schema", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    path = os.pathsep.join([str(former), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        command,
        cwd=former,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, f"release {RELEASE} on today's schema:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert " passed" in done.stdout
