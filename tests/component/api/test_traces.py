"""Traces over the API in memory: what spans an episode has, where they hang, and what they do not say."""

from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.engine.trace_context import name_trace
from server.errors import EngineRefused
from server.settings import TelemetrySettings
from server.telemetry.traces import Traces
from tests.fixtures.api import MemoryApi, make_api
from tests.fixtures.engines import ScriptedEngine

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]


def trace(*script: Any, **settings: Any) -> tuple[MemoryApi, InMemorySpanExporter]:
    api, exporter = make_api(*script), InMemorySpanExporter()
    traces = Traces(TelemetrySettings(**settings), exporter=exporter)
    object.__setattr__(api.context, "traces", traces)
    return api, exporter


def tell(exporter: InMemorySpanExporter) -> tuple[Any, list[Any]]:
    """The episode's span, and the others by their beginnings."""
    (root,) = [span for span in exporter.get_finished_spans() if span.name == "episode"]
    others = [span for span in exporter.get_finished_spans() if span is not root]
    assert {span.parent.span_id for span in others} <= {root.context.span_id}
    assert {span.context.trace_id for span in others} <= {root.context.trace_id}
    for span in others:
        assert span.end_time >= span.start_time >= root.start_time
    return root, sorted(others, key=lambda span: span.start_time)


async def test_an_episode_is_one_trace_with_all_that_was_done():
    api, exporter = trace("5", "one too many", "4")
    answer = await api.chat(text="2+2?", verifiers=FOUR, temperature=0.5, headers={"traceparent": PARENT})
    assert answer.json()["mulligan"]["outcome"] == "recovered"
    root, spans = tell(exporter)
    assert [span.name for span in spans] == ["queue", "attempt", "verify", "reflection", "retry", "verify", "log"]
    assert format(root.context.trace_id, "032x") == PARENT.split("-")[1]
    assert format(root.parent.span_id, "016x") == PARENT.split("-")[2]
    assert root.attributes["mulligan.episode"] == api.logged.id
    assert root.attributes["mulligan.outcome"] == "recovered"
    assert root.attributes["gen_ai.usage.input_tokens"] == api.logged.usage.prompt_tokens
    attempt, reflection = spans[1], spans[3]
    assert {name: attempt.attributes[name] for name in attempt.attributes if name.startswith("gen_ai")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mulligan",
        "gen_ai.request.model": "base",
        "gen_ai.response.model": "base",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 2,
    }
    assert reflection.attributes["gen_ai.usage.output_tokens"] == 4
    assert spans[2].attributes["gen_ai.evaluation.name"] == "regex"
    assert spans[2].attributes["gen_ai.evaluation.score.label"] == "failed"
    assert spans[5].attributes["gen_ai.evaluation.score.label"] == "passed"
    assert [event.name for event in spans[5].events] == ["gen_ai.evaluation.result"]


async def test_the_engine_is_told_of_the_very_span(monkeypatch):
    told = []
    whole = ScriptedEngine._next

    async def note(self, body, adapter):
        told.append(name_trace().decode())
        return await whole(self, body, adapter)

    monkeypatch.setattr(ScriptedEngine, "_next", note)
    api, exporter = trace("5", "no", "4")
    await api.chat(verifiers=FOUR, headers={"traceparent": PARENT})
    _, spans = tell(exporter)
    asked = [span for span in spans if span.name in ("attempt", "reflection", "retry")]
    lines = [f"traceparent: 00-{one.context.trace_id:032x}-{one.context.span_id:016x}-01\r\n" for one in asked]
    assert told == lines
    assert len(told) == 3


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "verifiers": FOUR}, {"n": 3}])
async def test_nothing_that_was_said_is_in_a_span(fields):
    api, exporter = trace("HERON 4", "HERON", "HERON 4")
    await api.chat(text="HERON?", **fields)
    spans = exporter.get_finished_spans()
    assert len([span for span in spans if span.name == "episode"]) == fields.get("n", 1)
    assert len([span for span in spans if span.name == "attempt"]) == fields.get("n", 1)
    assert "HERON" not in "".join(span.to_json() for span in spans)


async def test_an_error_is_told_by_its_class_and_not_its_words():
    api, exporter = trace(EngineRefused("cannot read 'HERON?'"))
    assert (await api.chat(text="HERON?")).status == 400
    root, spans = tell(exporter)
    assert [span.name for span in spans] == ["queue", "attempt", "log"]
    assert root.attributes["error.type"] == spans[1].attributes["error.type"] == "EngineRefused"
    assert not root.status.is_ok
    assert "HERON" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_what_was_said_is_told_where_the_settings_ask_for_it_but_not_of_what_is_not_stored():
    api, exporter = trace("5 HERON", "a reflection", "4", traces_content=True)
    await api.chat(text="2+2, HERON?", verifiers=FOUR)
    root, spans = tell(exporter)
    asked = '[{"role":"user","parts":[{"type":"text","content":"2+2, HERON?"}]}]'
    assert root.attributes["gen_ai.input.messages"] == asked
    assert "5 HERON" in spans[1].attributes["gen_ai.output.messages"]
    assert "a reflection" in spans[3].attributes["gen_ai.output.messages"]
    exporter.clear()
    await api.chat(text="HERON", store=False)
    assert "HERON" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_what_the_client_would_not_have_traced_is_not():
    api, exporter = trace("4")
    assert (await api.chat(headers={"traceparent": PARENT[:-1] + "0"})).status == 200
    assert not exporter.get_finished_spans()
    for wrong in ("no", "00-0-0-01", "\x7f" * 55):
        assert (await api.chat(headers={"traceparent": wrong})).status == 200
    assert len([span for span in exporter.get_finished_spans() if span.name == "episode"]) == 3


async def test_a_raw_text_is_an_operation_of_its_own():
    api, exporter = trace("and so on")
    answer = await api.post("/v1/completions", {"model": "default", "prompt": "once"})
    assert answer.status == 200, answer.body
    _, spans = tell(exporter)
    assert [span.name for span in spans] == ["queue", "attempt", "log"]
    assert spans[1].attributes["gen_ai.operation.name"] == "text_completion"
