"""Embeddings of a real SGLang that was started to make them (`--is-embedding`); no other engine of ours has any."""

import base64
import json
import struct
from pathlib import Path

import pytest

from server.engine.sglang import SGLangEngine
from server.errors import EngineRefused, Unsupported
from tests.contract.engine.conftest import World, run_engine

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


async def test_embeddings_pass_through(world: World, tmp_path: Path):
    with run_engine("sglang", world, tmp_path, "--is-embedding") as url:
        engine = SGLangEngine(url, timeout_s=120)
        try:
            await _check_embeddings(engine)
        finally:
            await engine.close()


async def _check_embeddings(engine: SGLangEngine) -> None:
    reply = json.loads(await engine.embed({"input": ["hello", "goodbye"], "encoding_format": None}))
    assert [row["index"] for row in reply["data"]] == [0, 1]
    one, other = (row["embedding"] for row in reply["data"])
    assert len(one) == len(other) > 0
    assert one != other
    assert reply["usage"]["prompt_tokens"] == len("hello") + len("goodbye")
    again = json.loads(await engine.embed({"input": "hello", "encoding_format": "base64"}))
    packed = base64.b64decode(again["data"][0]["embedding"])
    assert struct.unpack(f"<{len(one)}f", packed) == pytest.approx(one, abs=1e-4)
    with pytest.raises(EngineRefused, match="empty"):
        await engine.embed({"input": ""})
    with pytest.raises(Unsupported):  # one that is too high would kill it
        await engine.embed({"input": [1_000_000]})
    assert await engine.ready()
