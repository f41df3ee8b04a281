"""The benchmark of verifiers runs, has every figure, and notices what is wrong. Nothing here asks how fast it is."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.verifiers.beside import bind_spin, judge_slow, measure_beside
from bench.verifiers.cases import CASES, Case, text
from bench.verifiers.measure import NotMeasured, ask, judge, measure, pick, prepare, run_service
from verifiers import policy, registry

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def clean():
    """Leave neither what the cases allow nor what they started."""
    before = policy.current()
    yield
    policy.configure(before)
    registry.close()


@pytest.fixture(scope="module")
def service():
    with run_service() as address:
        yield address


def test_every_kind_has_a_case():
    assert {case.kind for case in CASES} >= set(registry.kinds())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind} {case.note}")
def test_a_case_passes(case, service):
    if case.kind not in registry.kinds():
        pytest.skip("the kind is not registered")
    verifier, bound = prepare(case, service)

    async def run():
        await ask(verifier, case)
        await judge(bound, case)

    asyncio.run(run())


def test_the_command_has_every_figure(tmp_path):
    written = tmp_path / "figures.json"
    options = ["--seconds", "0.05", "--kind", "regex,webhook", "--json", str(written)]
    command = [sys.executable, "-m", "bench.verifiers", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(written.read_text())
    assert found["missing"] == {}
    assert [one["kind"] for one in found["kinds"]] == ["regex", "webhook"]
    for one in found["kinds"]:
        assert 0 < one["p50_us"] <= one["p99_us"]
        assert min(one["judged_p50_us"], one["per_s"], one["verdicts"]) > 0
    assert "webhook (a service on loopback)" in done.stdout


def test_an_unknown_kind_is_refused():
    command = [sys.executable, "-m", "bench.verifiers", "--kind", "vibes"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "there is no case for 'vibes'" in done.stderr) == (2, True)


def test_a_verdict_that_did_not_pass_is_no_measurement(service):
    with pytest.raises(NotMeasured, match="exact: failed"):
        measure(Case("exact", text("Rome"), args={"reference": "Paris"}), 0.05, service)


def test_quantiles():
    assert (pick([3.0, 1.0, 2.0], 0.5), pick([5.0], 0.99), pick(range(100), 0.99)) == (2.0, 5.0, 99)


async def test_the_slow_verifier_is_as_slow_as_it_is_told():
    await judge_slow(bind_spin(1))
    assert await judge_slow(bind_spin(400_000)) > await judge_slow(bind_spin(4_000))


def test_quick_verdicts_do_not_wait_for_the_slow_ones():
    """The slow ones queue up for many times as long as a quick one takes beside them."""
    for one in measure_beside(0.5):
        assert one.verdicts > 0
        assert min(one.alone_p50_ms, one.alone_p99_ms, one.p50_ms, one.p99_ms) > 0
        assert one.p50_ms / 1000 < one.slow_s / 2
