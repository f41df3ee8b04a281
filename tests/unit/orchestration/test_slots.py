import dataclasses

import pytest

from server.domain import CanaryPolicy, Task, TrainingPolicy
from server.errors import Conflict
from server.orchestration.slots import Room, plan_slots, refuse_unplaced


def make_tasks(champions: int, *, canaries: int = 0, pools: int = 1) -> list[Task]:
    return [
        Task(
            f"t{number}",
            champion=f"t{number}@1",
            training=TrainingPolicy(pool=f"p{number % pools}", canary=CanaryPolicy() if number < canaries else None),
        )
        for number in range(champions)
    ]


def test_champions_canaries_and_each_pools_candidate_take_places():
    plan = plan_slots(make_tasks(3, canaries=1), Room(8, 8))
    assert (plan.needed, plan.together, plan.fits, plan.remedy) == (6, 6, True, "")
    assert plan.says == (
        "6 of 8 slots: 3 for champions (t0, t1, t2); 1 for canaries (t0); "
        "2 for the candidate of pool p0 and its next push"
    )
    assert plan_slots(make_tasks(3, pools=2), Room(8, 8)).needed == 3 + 2 * 2


def test_what_does_not_fit_names_the_flag_and_the_number():
    plan = plan_slots(make_tasks(5), Room(6, None))
    assert not plan.fits
    assert "--max-loaded-loras 7" in plan.remedy
    crowded = plan_slots(make_tasks(5), Room(12, 4))
    assert crowded.fits
    assert not crowded.shares_batches
    assert "--max-loras-per-batch 7" in crowded.remedy  # 5 champions, a push, the base


def test_a_task_that_never_trains_takes_no_place_until_a_round_is_asked_for():
    idle = Task("idle")
    assert plan_slots([idle], Room(2, None)).needed == 0
    assert plan_slots([idle], Room(2, None), promoting=idle).needed == 3
    scheduled = dataclasses.replace(idle, training=TrainingPolicy(train_on_new_failures=5))
    assert plan_slots([scheduled], Room(2, None)).needed == 2


def test_a_round_that_cannot_be_placed_is_refused_with_the_flag():
    tasks, new = make_tasks(2), Task("new", training=TrainingPolicy(pool="p0"))
    refuse_unplaced(tasks, Room(4, None), tasks[0])
    with pytest.raises(Conflict, match="--max-loaded-loras 5"):
        refuse_unplaced([*tasks, new], Room(4, None), new)
