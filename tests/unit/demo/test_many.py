"""Many things at once: their order, how many run, and the one that breaks."""

import asyncio

import pytest

from demo.drive import many
from demo.drive.many import do_many


async def test_results_keep_the_order_and_no_more_run_than_may(monkeypatch):
    monkeypatch.setattr(many, "CONCURRENCY", 3)
    running, most = 0, 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(10 - number):  # the last ends first
            await asyncio.sleep(0)
        running -= 1
        return number * number

    assert await do_many(work, range(10)) == [number * number for number in range(10)]
    assert most == 3


async def test_the_one_that_breaks_is_raised_alone():
    async def work(number: int) -> int:
        if number == 1:
            raise ValueError("one")
        return number

    with pytest.raises(ValueError, match="one"):
        await do_many(work, range(3))
