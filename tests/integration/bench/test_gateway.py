"""The gateway benchmark runs, has every figure, and notices what is wrong. How fast anything is, is not asked here."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httptools
import pytest

from bench.gateway import gateways
from bench.gateway.accounting import read_usage
from bench.gateway.engine import reply
from bench.gateway.goals import Goal
from bench.gateway.load import Spec, find_flaw
from bench.gateway.measure import measure
from bench.gateway.profiling import read_samples
from bench.gateway.script import CHUNKS, FAILING, PASSING, REFLECTION, completion, request_body, stream_events
from bench.gateway.start import NotMeasured, Started, pick_cores, start_engine

ROOT = Path(__file__).resolve().parents[3]
if sys.platform != "linux":
    pytest.skip("the kernel's accounting is read as Linux has it", allow_module_level=True)
EVERYWHERE = pick_cores().rest


@pytest.fixture
def engine():
    with start_engine(sys.executable, EVERYWHERE, interval_ms=1.0) as started:
        yield started


def spec(**changes) -> Spec:
    given = {"requests": 40, "warm_up": 8, "concurrency": 4, **changes}
    return Spec(host="", port=0, body=given.pop("body", request_body("base").decode()), text=PASSING, **given)


def ask(engine: Started, messages: list[dict], **fields) -> dict:
    status, body = engine.ask("POST", "/v1/chat/completions", json.dumps({"messages": messages, **fields}).encode())
    assert status == 200
    return json.loads(body)["choices"][0]


def test_quick_run_has_every_figure(tmp_path):
    written = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.gateway", "--quick", "--json", str(written)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(written.read_text())
    assert found["missing"] == {}
    assert found["flaws"] == []  # among them: answers that are not in the log
    figures = {(one["row"], one["stream"]): one for one in found["measurements"]}
    assert set(figures) == {(row, stream) for row in ("direct", "mulligan-sqlite") for stream in (False, True)}
    for one in figures.values():
        assert one["answered"] > 0
        assert one["wrong"] == 0
        assert min(one[name] for name in ("cpu_us", "per_s", "p50_ms", "p99_ms", "rss_bytes", "load_cpu_us")) > 0
    stream = figures["mulligan-sqlite", True]
    assert stream["chunks"] >= CHUNKS * stream["answered"]
    assert stream["chunk_us"] > 0
    assert 0 < stream["first_p50_ms"] <= stream["p50_ms"]
    assert "Mulligan, no verifier (SQLite)" in done.stdout


def test_a_row_that_cannot_be_measured_says_why(tmp_path):
    written = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.gateway", "--quick", "--rows", "mulligan-postgres", "--json", str(written)]
    command += ["--postgres", "postgresql://nobody:secret@127.0.0.1:9/none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    found = json.loads(written.read_text())
    assert "--postgres" in found["missing"]["mulligan-postgres"]
    assert "secret" not in done.stdout + done.stderr + written.read_text()
    assert found["measurements"] == []


def test_a_missing_peer_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gateways, "PEERS", tmp_path)
    with pytest.raises(NotMeasured, match="make bench-peers"):
        gateways.find_peer("litellm")


def test_load_counts_what_it_was_told(engine):
    found = measure(engine, engine, spec(), python=sys.executable, cores=EVERYWHERE)
    assert found.result.answered == 40
    assert engine.answered == 48
    seen = json.loads(engine.ask("GET", "/seen")[1])
    assert seen["/v1/chat/completions"] == 48


def test_load_reads_streams(engine):
    body = request_body("base", stream=True).decode()
    found = measure(
        engine, engine, spec(body=body, stream=True, chunks=CHUNKS), python=sys.executable, cores=EVERYWHERE
    )
    assert found.result.chunks == 40 * CHUNKS
    assert found.result.first_p50_ms < found.result.p50_ms


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({"path": "/nowhere"}, "status 404"),
        ({"outcome": "passed"}, "outcome ''"),
        ({"body": request_body("base", fail_once=True).decode()}, "another text"),
    ],
)
def test_a_wrong_answer_is_noticed(engine, changes, flaw):
    with pytest.raises(NotMeasured, match=flaw):
        measure(engine, engine, spec(**changes), python=sys.executable, cores=EVERYWHERE)


def test_find_flaw_reads_streams():
    streamed = spec(stream=True, chunks=CHUNKS)
    events = stream_events("base", include_usage=False)
    assert find_flaw(streamed, 200, b"".join(events)) == ""
    assert "no end" in find_flaw(streamed, 200, b"".join(events[:-1]))
    assert "chunks in place of" in find_flaw(streamed, 200, b"".join([*events[:5], *events[6:]]))
    assert find_flaw(streamed, 200, b"data: {\n\ndata: [DONE]\n\n") != ""


def test_engine_fails_reflects_and_passes(engine):
    hard = json.loads(request_body("base", fail_once=True))["messages"]
    first = ask(engine, hard)
    assert first["message"]["content"] == FAILING
    asked = [*hard, first["message"], {"role": "user", "content": "Reflect."}]
    reflection = ask(engine, asked, logprobs=True, return_meta_info=True, return_token_ids=True)
    assert reflection["message"]["content"] == REFLECTION
    rows = reflection["meta_info"]["output_token_logprobs"]
    assert [token for _, token, _ in rows] == reflection["response_token_ids"]
    assert reflection["prompt_token_ids"]
    retried = ask(engine, [*asked, reflection["message"], {"role": "user", "content": "Again."}])
    assert retried["message"]["content"] == PASSING


def test_engine_refuses_what_it_does_not_read(engine):
    with pytest.raises(NotMeasured, match="501"):
        measure(engine, engine, spec(headers={"transfer-encoding": "x"}), python=sys.executable, cores=EVERYWHERE)


def test_completion_is_what_clients_read():
    seen = []

    class Reader:
        def on_body(self, body):
            seen.append(json.loads(body))

    httptools.HttpResponseParser(Reader()).feed_data(reply(completion("base")))
    assert seen[0]["choices"][0]["message"]["content"] == PASSING


def test_usage_counts_children_and_what_they_spent():
    burn = "import subprocess, sys, time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(1, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        used = read_usage(child.pid)
    finally:
        child.communicate(b"\n", timeout=30)
    assert used.members == 1
    assert used.cpu_s >= 0.29  # the child has ended: its time came through its parent
    assert used.rss_bytes > 1_000_000


def test_goals_are_judged():
    assert Goal("", 2.0, "x", 1.9).verdict == "met"
    assert Goal("", 2.0, "x", 2.1).verdict == "not met"
    assert Goal("", 2.0, "x", None).verdict == "not measured"
    assert Goal("", 1 / 60, "share", 1 / 50).verdict == "not met"
    assert Goal("", 1 / 60, "share", 1 / 70).show(1 / 70) == "1/70"


def test_what_was_started_ends_with_the_benchmark():
    run = """
import time
from bench.gateway.start import open_child, pick_cores
print(open_child(["sleep", "60"], pick_cores().rest).pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", run], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        child = int(parent.stdout.readline())
        assert "sleep" in Path(f"/proc/{child}/comm").read_text()
    finally:
        parent.kill()
        parent.communicate(timeout=10)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}/comm").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "it outlived the benchmark"
        time.sleep(0.05)


def test_samples_become_shares():
    raw = "run (/a/b/loop.py:1);ask (/a/c/x.py:2) 30\nrun (/a/b/loop.py:9);ask (/a/c/x.py:3);ask (/a/c/x.py:3) 10\n"
    found = {one.name: (one.own, one.whole) for one in read_samples(raw)}
    assert found == {"run (b/loop.py)": (0.0, 1.0), "ask (c/x.py)": (1.0, 1.0)}
