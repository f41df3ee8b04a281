"""Several ranks end with the weights of one, share its memory troubles, and never wait for one that is gone."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.integration.trainer.conftest import ROOT

Crew = Callable[..., tuple[list[int], Path]]

# float32: sums in another order. Adam divides by the gradient's size, so that rounding counts where it is near zero.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}


@pytest.fixture(scope="module")
def crew(tmp_path_factory) -> Iterator[Crew]:
    """Train with so many ranks; gives their exit statuses and the folder that they left."""
    base, count = tmp_path_factory.mktemp("crew"), itertools.count()
    log = base / "log"
    with log.open("w") as file:
        zygote = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.integration.trainer.forked_ranks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT,
        )  # fmt: skip

    def ask(ranks: int = 2, *, fault: str = "", timeout_s: float = 240.0, **options):
        folder = base / str(next(count))
        folder.mkdir()
        asked = {"folder": str(folder), "ranks": ranks, "fault": fault, "timeout_s": timeout_s, "options": options}
        zygote.stdin.write(json.dumps(asked) + "\n")
        zygote.stdin.flush()
        for line in zygote.stdout:
            if line.startswith("ended "):
                return json.loads(line.removeprefix("ended ")), folder
        raise AssertionError(log.read_text()[-4000:])

    yield ask
    zygote.stdin.close()
    zygote.wait(20)
    zygote.stdout.close()


def read(folder: Path, number: int = 0) -> tuple[dict, list, list, dict]:
    return torch.load(folder / f"left-{number}")


def read_error(folder: Path, number: int) -> str:
    return (folder / f"error-{number}").read_text()


def assert_alike(one: dict, other: dict) -> None:
    assert set(one) == set(other)
    for name, weights in one.items():
        torch.testing.assert_close(other[name], weights, **TOLERANCE)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, {"loss_type": "dapo"}),
        (2, {"loss_type": "grpo", "passes": 2, "minibatch_sequences": 5}),
        (2, {"loss_type": "dr_grpo", "objective": "reflection+first_try"}),
        (3, {"loss_type": "cispo", "microbatch_sequences": 22}),
    ],
    ids=lambda value: "-".join(str(one) for one in value.values()) if isinstance(value, dict) else str(value),
)
def test_several_ranks_give_the_weights_of_one(crew, ranks, options):
    options |= {"steps": 2, "max_grad_norm": 0.5}
    statuses, alone = crew(1, **options)
    assert statuses == [0]
    statuses, spread = crew(ranks, **options)
    assert statuses == [0] * ranks
    wanted, figures, passes, _ = read(alone)
    weights, told, _, begun = read(spread)
    assert_alike(wanted, weights)
    assert all((weights[name] - one).abs().max() > 20 * TOLERANCE["atol"] for name, one in begun.items())  # it can tell
    left = [read(spread, number) for number in range(ranks)]
    for other, *_ in left[1:]:  # to the bit: each goes on from its own
        assert all(torch.equal(one, weights[name]) for name, one in other.items())
    rows = [sum(rows for _, rows in passes) for _, _, passes, _ in left]
    assert sum(rows) == sum(rows for _, rows in passes)  # nothing is done twice
    assert min(rows) > 0
    for ours, theirs in zip(told, figures, strict=True):
        assert set(ours) == set(theirs)
        for name in {"loss", "grad_norm", "first_try_loss", "updates", "members_kept", "reward"} & set(theirs):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_memory_that_runs_out_on_one_rank_halves_on_all(crew):
    options = {"steps": 2, "microbatch_sequences": 4}
    statuses, folder = crew(2, fault="short", **options)
    assert statuses == [0, 0]
    (_, told, passes, _), (_, others, short, _) = read(folder, 0), read(folder, 1)
    assert [figures["microbatch"] for figures in told] == [figures["microbatch"] for figures in others] == [4, 2]
    assert [2, 3] in short  # three rows: too many
    assert max(rows for _, rows in passes + short[short.index([2, 3]) + 1 :]) <= 2
    assert_alike(read(crew(2, **options)[1])[0], read(folder)[0])  # what was broken off left nothing behind


@pytest.mark.parametrize(
    ("fault", "timeout_s", "ended"), [("die", 240.0, {-9}), ("fail", 240.0, {1}), ("hang", 10.0, {-9, 1})]
)
def test_no_rank_waits_for_one_that_is_gone(crew, fault, timeout_s, ended):
    statuses, folder = crew(2, fault=fault, timeout_s=timeout_s, steps=3)
    assert statuses[0] == 1
    assert statuses[1] in ended  # on a machine that stalls the time may be up before rank 1 hangs
    assert read_error(folder, 0).startswith("RankLost: rank 0 of 2 lost touch with another one")
    if fault == "fail":
        assert read_error(folder, 1) == "RoundFailed: the loss became nan in step 2"


def test_weights_that_drift_apart_fail_the_round(crew):
    statuses, folder = crew(2, fault="drift", steps=3)
    assert statuses == [1, 1]
    for number in (0, 1):
        assert read_error(folder, number).startswith("RoundFailed: after step 2 the weights of the processes differ")
