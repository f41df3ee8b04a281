"""What `mulligan round show` says of selection and budgets."""

from server.cli.round_words import describe_budget, describe_objective, describe_selection
from server.store.left_out import OPTED_OUT


def test_what_was_left_out_is_said_with_its_reason():
    report = {
        "selection": {
            "failures": 312, "recovered": 40, "new": 234, "replayed": 78,
            "left_out": {OPTED_OUT: 3, "kept for the gate (held out)": 25},
        }
    }  # fmt: skip
    assert describe_selection(report) == {
        "learnt from": "312 failures, 40 of them mended by a logged reflection, 78 from before the last round",
        "left out": "25: kept for the gate (held out); 3: its key opted out of training, or the redactor changed it",
    }
    report["selection"] |= {"replayed": 0, "left_out": {}}
    assert describe_selection(report)["left out"] == "nothing"
    assert describe_selection({}) == {}


def test_what_was_used_is_said_with_its_limit():
    report = {
        "budget": {"minutes": 3.25, "tokens": 81234, "disk_mb": 6.0, "max_tokens": 1_000_000},
        "replayed_steps": 1,
    }
    assert describe_budget(report) == {
        "used": "3.2 minutes, 81,234 of 1,000,000 tokens, 6.0 MiB on disk",
        "resumed": "begun again from 1 kept step",
    }
    assert describe_budget({}) == {}


def test_the_objective_is_said_and_what_the_weights_were_trained_by_before():
    assert describe_objective({}) == ""
    assert describe_objective({"objective": {"name": "reflection", "before": ["reflection"]}}) == "reflection"
    mixed = {"name": "reflection", "before": ["reflection", "reflection+first_try"]}
    assert describe_objective({"objective": mixed}) == (
        "reflection, going on from weights that were trained by reflection+first_try"
    )
