"""Swaps under streams with two API processes: the benchmark's own run, small; nothing here asks how fast it is."""

import pytest

from bench.swaps.letters import letter_of
from bench.swaps.run import Answer, Run, drive, judge, summarise
from bench.swaps.strategies import TOKENS, Pause, Refuse, open_hot_swap, open_stopped
from bench.swaps.world import World, serve
from tests.integration.swaps.conftest import TASK, EngineProcess

pytestmark = [pytest.mark.timeout(1200)]
SWAPS, STREAMS = 5, 8


@pytest.fixture
def world(engine: EngineProcess, letters, tmp_path) -> World:
    adapters = {f"{TASK}@{number}": letters.parent / f"{TASK}@{number}" for number in range(1, SWAPS + 1)}
    return World(tmp_path, letters, adapters, engine.url, engine.settings.model_copy(update={"url": engine.url}))


async def test_no_stream_fails_is_cut_or_mixed_up_while_adapters_are_swapped(world: World, tmp_path):
    names = [*world.adapters]
    with serve(world, tmp_path / "mulligan") as served:
        async with open_hot_swap(world, served) as mulligan:
            run = await drive(mulligan, names, STREAMS)
            figures = summarise("hot swap", run, names)
            assert list(figures.faults) == []
            assert {answer.adapter for answer in run.answers} == {"", *names}
            assert figures.during > 0
            for name in names:
                await mulligan.engine.unload_adapter(name)


@pytest.mark.parametrize("kind", [Refuse, Pause])
async def test_what_is_compared_with_answers_rightly_too(world: World, kind):
    async with open_stopped(world, kind) as stopped:
        names = [*world.adapters][:2]
        run = await drive(stopped, names, STREAMS)
        assert list(summarise("stopped", run, names).faults) == []
        assert (run.refusals > 0) == (kind is Refuse)


def test_a_faulty_answer_is_found_out():
    whole = letter_of("letters@2") * TOKENS
    assert judge(whole, "letters@2", "length", done=True) == ""
    assert "mixed up" in judge(whole, "letters@1", "length", done=True)
    assert "mixed up" in judge("a" + whole[1:], "letters@2", "length", done=True)
    assert "cut" in judge(whole[1:], "letters@2", "length", done=True)
    assert "cut" in judge(whole, "letters@2", "length", done=False)
    assert "which adapter" in judge(whole, None, "length", done=True)
    names = ["letters@1", "letters@2"]
    answers = [Answer(0, 1, ""), Answer(5, 6, ""), Answer(5, 9, "letters@1"), Answer(7.5, 9.5, "letters@2")]
    figures = summarise("x", Run(answers, [(2, 3), (7, 8)]), names)
    assert figures.faults == ("stale: the base answered after letters@1 had taken over",)
    assert (figures.answers, figures.during, figures.faulty) == (4, 1, 1)
    assert (figures.quiet_p50_ms, figures.during_p50_ms, figures.met_p50_ms) == (1000, 2000, 2000)
