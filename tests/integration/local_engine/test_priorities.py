"""Patient sequences stand still while urgent ones decode, and come to their end all the same."""

import asyncio

import pytest

from local_engine import decoder as module
from local_engine.decoder import Decoder
from local_engine.models import load_base
from local_engine.sampling import Sampling
from local_engine.sequences import Sequence
from tests.fixtures.models import make_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = make_model(tmp_path_factory.mktemp("model"), arch="llama", hidden=32, heads=2, scripted=False)
    return load_base(str(path), dtype="float32", device="cpu", context_tokens=None)


def make_sequence(name: str, *, patient: bool, tokens: int) -> Sequence:
    sampling = Sampling(max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
    return Sequence(name, [5, 6, 7], "", sampling, tokens, patient=patient)


@pytest.fixture
async def start(base):
    made: list[Decoder] = []

    def begin(*, max_running: int = 4) -> Decoder:
        made.append(Decoder(base, max_running=max_running, max_adapters=1))
        return made[-1]

    yield begin
    for one in made:
        one.stop()


async def finish(*sequences: Sequence) -> None:
    async with asyncio.timeout(60):
        for sequence in sequences:
            await sequence.changed.wait()


async def test_users_go_first_and_rounds_still_move(start, monkeypatch):
    monkeypatch.setattr(module, "YIELD_STEPS", 10)
    decoder = start()
    patient = [make_sequence(f"p{number}", patient=True, tokens=200) for number in range(3)]
    for one in patient:
        decoder.submit(one)
    while not all(one.tokens for one in patient):
        await asyncio.sleep(0.001)
    urgent = make_sequence("u", patient=False, tokens=60)
    decoder.submit(urgent)
    while not urgent.tokens:
        await asyncio.sleep(0)
    before = len(patient[0].tokens)
    await finish(urgent)
    after = len(patient[0].tokens)
    if before < 150:  # else they were about to end when the user came
        assert 60 // 10 - 3 <= after - before <= 60 // 10 + 40
    await finish(*patient)
    assert [len(one.tokens) for one in patient] == [200] * 3
    alone = make_sequence("again", patient=False, tokens=200)
    decoder.submit(alone)
    await finish(alone)
    assert patient[0].tokens == alone.tokens  # standing still changes nothing


async def test_patient_sequences_take_no_room_from_urgent_ones(start):
    decoder = start(max_running=2)
    patient = [make_sequence(f"p{number}", patient=True, tokens=150) for number in range(4)]
    for one in patient:
        decoder.submit(one)
    while not patient[1].tokens:
        await asyncio.sleep(0.001)
    urgent = [make_sequence(f"u{number}", patient=False, tokens=20) for number in range(2)]
    for one in urgent:
        decoder.submit(one)
    await finish(*urgent)
    assert not patient[2].tokens  # there was no room for it, and there was for both users
    assert all(one.finish is None for one in patient)
    await finish(*patient)
