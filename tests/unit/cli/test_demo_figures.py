"""The demo's statistics, its JSON and its table."""

import io
import json
import re

import pytest
from rich.console import Console

from demo.drive.client import Answered
from demo.drive.display import Display
from demo.drive.intervals import paired_gain, share, wilson_interval
from demo.drive.play import TaskResult
from demo.drive.report import build_figures, print_report
from demo.drive.tasks import DEMO_TASKS, choose_tasks


def answers(*outcomes: str, adapter: str = "") -> list[Answered]:
    return [Answered(outcome, adapter, f"ep_{number}") for number, outcome in enumerate(outcomes)]


def a_round(state: str = "promoted") -> dict:
    steps = [{"number": 1, "metrics": {"reward": 0.1}}, {"number": 2, "metrics": {"reward": 0.3}}]
    return {"id": "rd_1", "number": 1, "state": state, "reason": "better", "adapter": "countdown@1", "steps_done": 2,
            "report": {"gain": 0.2}, "steps": steps, "seconds": 12.34}  # fmt: skip


def a_result() -> TaskResult:
    return TaskResult(
        DEMO_TASKS["countdown"],
        before=answers("passed", "exhausted", "exhausted", "recovered"),
        training=answers("passed", "exhausted", "recovered"),
        after=answers("passed", "recovered", "exhausted", "recovered", adapter="countdown@1"),
        rounds=[a_round()],
        champion="countdown@1",
    )


def test_wilson_interval_matches_known_values():
    low, high = wilson_interval([True] * 10 + [False] * 90)
    assert (low, high) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert wilson_interval([False] * 20)[0] == 0.0
    assert wilson_interval([True] * 20)[1] == 1.0


def test_a_share_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no problem was answered"):
        share([])


def test_paired_gain_agrees_with_the_normal_interval():
    before = [False] * 200 + [True] * 100
    after = [True] * 90 + [False] * 110 + [True] * 80 + [False] * 20
    gain, (low, high) = paired_gain(before, after, seed=1)
    assert gain == pytest.approx(70 / 300)
    variance = (110 / 300 - (70 / 300) ** 2) / 300
    assert (low, high) == pytest.approx((gain - 1.96 * variance**0.5, gain + 1.96 * variance**0.5), abs=0.01)


def test_paired_gain_pairs_problems_rather_than_shares():
    same = [True, False] * 50
    assert paired_gain(same, same) == (0.0, (0.0, 0.0))
    swapped = [not hit for hit in same]
    gain, (low, high) = paired_gain(same, swapped)
    assert gain == 0
    assert low < -0.1
    assert high > 0.1


def test_paired_gain_refuses_answers_that_do_not_pair():
    with pytest.raises(ValueError, match="3 answers before do not pair with 2 after"):
        paired_gain([True] * 3, [True] * 2)


def test_figures_have_the_promised_shape():
    figures = json.loads(json.dumps(build_figures([a_result()], {"start": 3.0, "countdown before": 2.5}, seed=7)))
    task = figures["tasks"]["countdown"]
    assert figures["seconds"] == 5.5
    assert figures["phases"] == {"start": 3.0, "countdown before": 2.5}
    assert figures["seed"] == 7
    assert task["n"] == 4
    assert (task["first_before"], task["second_before"]) == (0.25, 0.5)
    assert (task["first_after"], task["second_after"]) == (0.25, 0.75)
    assert task["second_gain"] == 0.25
    assert task["second_gain_ci95"][0] <= 0.25 <= task["second_gain_ci95"][1]
    assert task["recovered_before"] == pytest.approx(1 / 3)
    assert task["adapters_that_answered"] == ["countdown@1"]
    assert task["training_failures"] == 2
    (row,) = figures["rounds"]
    assert (row["task"], row["state"], row["rewards"], row["seconds"]) == ("countdown", "promoted", [0.1, 0.3], 12.3)


def test_a_missing_figure_is_an_error():
    result = a_result()
    result.after = []
    with pytest.raises(ValueError, match="do not pair"):
        build_figures([result], {}, seed=0)


def test_the_table_shows_what_the_json_holds():
    out = io.StringIO()
    figures = build_figures([a_result()], {"start": 3.0, "countdown before": 2.5}, seed=7)
    print_report(Console(file=out, width=80), figures)
    text = out.getvalue()
    assert "countdown" in text
    assert "+25.0" in text
    assert re.search(r"retries right +33.3 +66.7", text)
    assert "countdown 1: better" in text
    assert "countdown@1" in text
    assert "0.10 to 0.30" in text
    assert "steps fitted" not in text
    assert "…" not in text
    assert "start 3 s, countdown before 2 s" in text


def test_phases_are_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    display = Display(Console(file=out))
    with display.phase("countdown before", 3) as phase:
        for _ in range(3):
            phase.advance()
    display.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "countdown before ..."
    assert lines[1].startswith("countdown before: done in")
    assert len(lines) == 2
    assert list(display.seconds) == ["countdown before"]


def test_phases_are_bars_on_a_terminal():
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=120))
    with display.phase("countdown round 1") as phase:
        phase.show(2, 8, "training, reward 0.31")
    display.close()
    assert "training, reward 0.31" in out.getvalue()
    assert "8/8" in out.getvalue()


def test_tasks_are_chosen_by_name():
    assert [task.name for task in choose_tasks("both")] == ["countdown", "function_call"]
    assert [task.name for task in choose_tasks("countdown")] == ["countdown"]
    with pytest.raises(ValueError, match="choose one of countdown, function_call, both"):
        choose_tasks("chess")


@pytest.mark.parametrize(
    ("state", "total", "shown"), [("promoted", 6, True), ("promoted", 2, False), ("failed", 6, False)]
)
def test_a_round_that_time_cut_short_is_told(state, total, shown):
    out = io.StringIO()
    result = a_result()
    result.rounds = [a_round(state) | {"steps_total": total}]
    print_report(Console(file=out, width=80), build_figures([result], {"start": 3.0}, seed=7))
    assert ("countdown 1: only 2 of 6 steps fitted into its time on this machine" in out.getvalue()) is shown
