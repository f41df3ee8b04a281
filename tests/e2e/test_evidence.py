"""`make evidence`, tiny: every part through a real server, stopped in the middle and gone on with, and a page."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.evidence.folder import RunFolder
from bench.evidence.parts import make_parts
from bench.evidence.plan import QUICK
from bench.evidence.run import list_scenes
from tests.e2e.harness import ROOT, environment, is_gone

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]

WAIT_S = 1200


def start(out: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench.evidence", "--quick", "--out", str(out), *words]
    with (out.parent / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True)


def finish(running: subprocess.Popen[bytes], out: Path) -> None:
    assert running.wait(WAIT_S) == 0, (out.parent / "log").read_text()[-4000:]


def test_every_part_is_measured_once_though_the_run_is_interrupted(tmp_path: Path):
    out = tmp_path / "run"
    running = start(out)
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + WAIT_S
        while not (out / "loop/0/countdown.sent.json").exists():
            assert running.poll() is None, (tmp_path / "log").read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        family = psutil.Process(running.pid).children(recursive=True)
        os.kill(running.pid, signal.SIGTERM)  # while the round is under way, or about to be
        assert running.wait(120) == 130
        assert all(is_gone(process) for process in family)
        before = (out / "loop/0/countdown3.before.json").stat().st_mtime_ns
        running = start(out)
        finish(running, out)
    finally:
        if running.poll() is None:
            os.kill(running.pid, signal.SIGTERM)
            running.wait(120)
    assert (out / "loop/0/countdown3.before.json").stat().st_mtime_ns == before
    folder = RunFolder(out)
    (scene,) = list_scenes(QUICK, folder)
    for part in make_parts(scene):
        assert folder.has(part.name), part.name
    check_figures(out, scene)
    finish(start(out), out)  # nothing is left to do, so nothing is started


def check_figures(out: Path, scene) -> None:
    figures = json.loads((out / "evidence.json").read_text())
    assert figures["checks"]["differ"] == 0
    assert figures["checks"]["judged"] > 20 * 15
    told = figures["subjects"]["countdown3"]
    arms = {"plain", "plain_equal_tokens", "worked", "worked_equal_tokens", "shuffled_before", "shuffled_after"}
    assert set(told["controls"]) == {*arms, "prompted", "sft", "whole", "chosen"}
    for arm in (*told["arms"].values(), *(one for name, one in told["controls"].items() if name != "chosen")):
        assert 0 <= arm["first"] <= arm["second"] <= 1
        assert [one["n"] for one in arm["seeds"]] == [20]
    (row,) = figures["rounds"]
    assert row["state"] in ("promoted", "inconclusive", "regressed")
    assert len(row["steps"]) == 2
    for mode in ("sft_0", "sft_1", "whole"):
        notes = scene.read("countdown3", f"{mode}_trained")
        assert notes["updates"] > 0
    adapters = {row["adapter"] for row in scene.read("countdown3", "whole")}
    assert adapters == {"countdown-whole@1"}
    page = (out / "evidence.md").read_text()
    assert "**A trial" in page
