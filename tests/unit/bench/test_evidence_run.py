"""The evidence's plan, its folder and its page: what may be looked at, what is resumed, what is written."""

import json
from dataclasses import replace

import pytest

from bench.evidence import __main__ as command
from bench.evidence.folder import CannotMeasure, RunFolder, name_part
from bench.evidence.page import publish
from bench.evidence.parts import find_round, make_parts
from bench.evidence.plan import LOOP, QUICK, TABLE, VARIANTS, Plan
from bench.evidence.run import list_open, list_scenes
from demo.drive.tasks import DEMO_TASKS


def read(*words):
    return command.make_plan(command.build_parser().parse_args(words))


def test_a_trial_never_looks_at_the_test_split():
    assert QUICK.split == "development"
    assert read("--quick", "--variants", "curves", "--seeds", "7").split == "development"
    assert read().split == "test"


def test_the_variants_change_what_they_say():
    countdown = DEMO_TASKS["countdown"].training["learning_rate"]
    assert Plan().demo_task("countdown", VARIANTS["rate_x10"]).training["learning_rate"] == 10 * countdown
    assert Plan().demo_task("countdown", VARIANTS[LOOP]) == DEMO_TASKS["countdown"]
    assert QUICK.demo_task("countdown", VARIANTS["rank_2"]).training["steps"] == QUICK.options["steps"]


def test_an_unknown_variant_is_named():
    with pytest.raises(CannotMeasure, match="'quick'"):
        read("--variants", "quick")


def test_every_part_has_a_name_of_its_own(tmp_path):
    plan = replace(Plan(), variants=tuple(VARIANTS))
    names = [part.name for scene in list_scenes(plan, RunFolder(tmp_path)) for part in make_parts(scene)]
    assert len(names) == len(set(names)) > 150
    arms = ("before", "after", "plain", "shuffled_before", "shuffled_after", "prompted", "worked", "sft", "whole")
    assert {f"loop/2/{subject}.{arm}" for subject in ("countdown3", "function_call") for arm in arms} <= set(names)


def test_what_is_done_is_not_done_again(tmp_path):
    plan, folder = replace(Plan(), variants=TABLE[:2], seeds=(0, 1)), RunFolder(tmp_path)
    scenes = list_scenes(plan, folder)
    first = list_open(scenes)
    assert [scene for scene, _ in first] == scenes
    done = [part for part in first[0][1] if "after" not in part.name] + first[1][1]
    for part in done:
        folder.write(part.name, [])
    left = list_open(scenes)
    assert [scene for scene, _ in left] == [scenes[0], *scenes[2:]]
    assert all("after" in part.name for part in left[0][1])


def test_a_round_that_was_begun_is_followed_and_one_that_failed_is_replaced():
    listed = [{"number": n, "state": state} for n, state in ((3, "running"), (1, "failed"), (2, "promoted"))]
    assert find_round([], 1, ("failed",)) is None
    assert find_round(listed, 1, ("failed",)) == {"number": 2, "state": "promoted"}
    assert find_round(listed, 2, ("failed",)) == {"number": 3, "state": "running"}
    assert find_round(listed, 3, ("failed",)) is None
    assert find_round(listed, 1, ("cancelled",)) == {"number": 1, "state": "failed"}


def test_a_folder_belongs_to_one_plan(tmp_path):
    folder = RunFolder(tmp_path)
    folder.agree(Plan().fixed())
    folder.agree(replace(Plan(), seeds=(0, 5), variants=("rounds",)).fixed())
    with pytest.raises(CannotMeasure, match=r"another problems, split"):
        folder.agree(replace(Plan(), split="development", problems=7).fixed())


def test_a_model_that_is_not_the_recorded_one_is_not_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_altered", lambda _: ["model.safetensors is not the one that was recorded"])
    monkeypatch.setattr("sys.argv", ["bench.evidence", "--out", str(tmp_path / "run")])
    assert command.main() == 2
    assert "not the one that was recorded" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def rows(passed, kind, checked=True):
    tokens = {"prompt": 50, "generated": 20, "reflections": 9}
    made = {"adapter": "", "answer": {}, "tokens": tokens, "seconds": 0.5, "reflection": "work: a | b", "kind": kind}
    told = [(n < 2, n < passed) for n in range(20)]
    return [
        {**made, "key": f"problem {n}", "first": first, "second": second, "checked": second == checked}
        for n, (first, second) in enumerate(told)
    ]


@pytest.fixture
def measured(tmp_path):
    plan, folder = replace(QUICK, seeds=(0, 1)), RunFolder(tmp_path / "run")
    for seed in plan.seeds:
        for arm, some in (("before", rows(5, "vague")), ("after", rows(15, "worked")), ("prompted", rows(9, "plan"))):
            folder.write(name_part(LOOP, seed, "countdown3", arm), some)
        step = {"number": 1, "metrics": {"reward": 0.25, "groups": 64}}
        told = {"state": "promoted", "reason": "better", "report": {}}
        folder.write(
            name_part(LOOP, seed, "countdown", "round_1"),
            {"round": told, "steps": [step, step], "champion": "countdown@1", "seconds": 9.0},
        )
    return plan, folder


def test_the_page_shows_what_is_measured_and_says_that_a_trial_is_one(measured, tmp_path):
    plan, folder = measured
    assert publish(plan, folder, tmp_path / "page") == 0
    page = (tmp_path / "page" / "evidence.md").read_text()
    assert "**A trial" in page
    assert "| Countdown, 3 numbers, sampled | second try | 25.0 | 75.0 | +50.0 [" in page
    assert "the best hand-written reflection prompt | 10.0 | 45.0 | +30.0 [" in page
    assert "| worked | 0.0 | 100.0 | - | 75.0 |" in page
    assert "promoted, countdown@1 serves" in page
    assert "120 answers were judged" in page
    for name in ("evidence-learning.svg", "evidence-kinds.svg"):
        assert f"({name})" in page
        assert (tmp_path / "page" / name).read_text().startswith("<svg")
    figures = json.loads((tmp_path / "page" / "evidence.json").read_text())
    gain = figures["subjects"]["countdown3"]["gains"]["sampled"]["second"]
    assert [one["n"] for one in gain["seeds"]] == [20, 20]
    assert gain["ci95"][0] < 0.5 < gain["ci95"][1]


def test_a_verdict_that_the_check_doubts_is_told(measured, tmp_path):
    plan, folder = measured
    folder.write(name_part(LOOP, 1, "countdown3", "prompted"), rows(9, "plan", checked=False))
    assert publish(plan, folder, tmp_path / "page") == 20


def test_a_page_of_nothing_can_be_written(tmp_path):
    assert publish(QUICK, RunFolder(tmp_path), tmp_path) == 0
    assert "0 answers" in (tmp_path / "evidence.md").read_text()
