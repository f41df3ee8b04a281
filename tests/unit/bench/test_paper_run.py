"""The rest of the paper's set-up: what is checked before anything starts, what a run remembers, what it prints."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.paper.__main__ import build_parser, main, prepare
from bench.paper.journal import Journal
from bench.paper.measure import Measured
from bench.paper.model import check_model, longest_context
from bench.paper.preset import PRESETS, Chosen, list_deviations
from bench.paper.problems import BadInput
from bench.paper.published import COLUMNS, list_rows, read_published
from bench.paper.report import build_figures, print_report
from demo.drive.client import Answered
from trainer.settings import TrainerSettings

ROOT = Path(__file__).resolve().parents[3]
DEMO = str(ROOT / "demo" / "model")


def make_model_folder(folder: Path, **tokenizer: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 300}')
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_models_that_can_be_asked(tmp_path: Path):
    check_model(DEMO, ["countdown", "function_call"])
    plain = make_model_folder(tmp_path / "plain", chat_template="{{ messages }}")
    check_model(str(plain), ["countdown"])
    assert longest_context(str(plain)) == 300
    with pytest.raises(BadInput, match=r"never shows `tools`.*--task countdown"):
        check_model(str(plain), ["function_call"])
    named = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "{{ tools }}"}]
    check_model(str(make_model_folder(tmp_path / "named", chat_template=named)), ["function_call"])


def test_models_that_cannot(tmp_path: Path):
    with pytest.raises(BadInput, match=r"has no chat template: take the -Instruct variant"):
        check_model(str(make_model_folder(tmp_path / "base")), ["countdown"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"without a config\.json"):
        check_model(str(tmp_path / "empty"), ["countdown"])
    with pytest.raises(BadInput, match="there is no such folder"):
        check_model(str(tmp_path / "nowhere"), ["countdown"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--task", "function_call"], "function_call needs --xlam FILE"),
        (["--task", "countdown", "--seeds", "1", "1"], "names a seed twice"),
        (["--task", "countdown", "--json", "/nowhere/at/all.json"], "there is no folder"),
        (["--task", "countdown", "--option", "stepps=3"], "unknown training option 'stepps'"),
        (["--task", "countdown", "--option", "steps"], "--option wants KEY=VALUE"),
        (["--task", "countdown", "--countdown", "/nowhere.jsonl"], "--countdown: there is no file"),
        (["--task", "function_call", "--xlam", "/nowhere.json"], "--xlam: there is no file"),
    ],
)
def test_bad_options_are_told_before_anything_starts(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert main(["--model", DEMO, "--out", str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_papers_preset_leaves_the_gate_at_its_defaults_and_is_what_the_docs_say():
    options = PRESETS["paper"].options
    assert not [name for name in options if name.startswith("gate") or name.endswith("margin")]
    settings = TrainerSettings().override(options)
    assert (settings.kl_beta, settings.logged_share, settings.objective) == (0.001, 0.0, "reflection")
    assert PRESETS["paper"].test == {
        task: read_published()["tasks"][task]["problems"] for task in PRESETS["paper"].test
    }


def test_options_reach_the_plan():
    arguments = build_parser().parse_args(
        ["--model", DEMO, "--task", "countdown", "--engine", "local", "--tries", "4", "--option", "steps=3"]
    )
    run = prepare(arguments, Console(file=io.StringIO()))
    assert run.options["steps"] == 3
    assert run.settings.engine.kind == "local"
    assert run.settings.engine.context_tokens == 2048  # the preset asks for more than this model reaches
    assert run.plan["tries"] == 4
    assert run.chosen.problems == {"countdown": 15_000}


def test_deviations_are_named_only_where_they_are():
    def names(**more: Any) -> set[str]:
        given = {
            "preset": PRESETS["paper"],
            "tasks": ("countdown",),
            "engine": "sglang",
            "problems": {"countdown": 15_000},
        }
        chosen = Chosen(**{**given, **more})
        return {one.name for one in list_deviations(chosen, chosen.preset.options)}

    assert {"weights", "learning_rate", "prompts", "countdown.prompt", "countdown.data", "failures"} <= names()
    assert "function_call.verifier" not in names()
    assert "promotion" not in names()
    assert "countdown.problems" not in names()
    assert {"promotion", "countdown.problems"} <= names(force=True, problems={"countdown": 20})
    own = names(reflect="a", retry="b", countdown_prompt="c", countdown_file=True)
    assert not {"prompts", "countdown.prompt", "countdown.data"} & own


def test_every_published_figure_says_where_it_is_from():
    for task in read_published()["tasks"]:
        for row in list_rows(task):
            told = {column for column in COLUMNS if row.figures[column] is not None}
            assert told
            assert set(row.sources) == told
            assert all(row.sources.values())
    (row,) = list_rows("countdown")
    assert row.figures["trained_second"] - row.figures["vanilla_second"] == pytest.approx(34.7)
    own = list_rows("function_call")[0].figures
    assert own["trained_second"] - own["vanilla_second"] == pytest.approx(18.1)


def test_a_journal_goes_on_where_it_was_cut_off(tmp_path: Path):
    plan = {"model": "m", "problems": {"countdown": 2}, "tasks": ["countdown"]}
    journal = Journal(tmp_path, plan)
    assert not journal.resumed
    journal.add_answer("before", 1, Answered("passed", "base", "ep_1"))
    journal.begin_round("countdown", "rd_1")
    journal.add_round("countdown", {"id": "rd_1", "state": "regressed"})
    journal.begin_round("countdown", "rd_2")
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"phase": "before", "ind')
    again = Journal(tmp_path, {**plan, "tasks": ("countdown",)})
    assert again.resumed
    assert again.answers("before") == {1: Answered("passed", "base", "ep_1")}
    assert again.rounds("countdown") == [{"id": "rd_1", "state": "regressed"}]
    assert again.begun_round("countdown") == "rd_2"
    again.add_answer("before", 0, Answered("exhausted", "base", "ep_2"))
    assert set(Journal(tmp_path, plan).answers("before")) == {0, 1}  # the cut line took nothing with it
    with pytest.raises(BadInput, match="begun with another problems"):
        Journal(tmp_path, {**plan, "problems": {"countdown": 3}})


def measured(outcomes: str, after: str, **more: Any) -> Measured:
    words = {"p": "passed", "r": "recovered", "x": "exhausted", "u": "unverified"}
    made = [[Answered(words[one], "", "ep") for one in text] for text in (outcomes, after)]
    return Measured("countdown", before=made[0], after=made[1], **more)


def print_figures(*results: Measured) -> tuple[dict[str, Any], str]:
    figures = build_figures("mine", dict(enumerate([one] for one in results)), [], {})
    console = Console(file=io.StringIO(), width=160)
    print_report(console, figures)
    return figures, console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_shares_are_of_all_problems_and_stand_beside_the_papers():
    figures, shown = print_figures(
        measured("prxx", "pprx", champion="countdown@1"), measured("xxxx", "prrx", champion="a")
    )
    first, other = figures["tasks"]["countdown"]
    assert [first[column] for column in COLUMNS] == [0.25, 0.5, 0.5, 0.75]
    assert first["second_gain"] == 0.25
    assert other["second_gain"] == 0.75
    assert json.loads(json.dumps(figures)) == json.loads(json.dumps(figures, default=str))
    for said in (
        "mine, seed 0",
        "mine, seed 1",
        "mean of the seeds",
        "* Qwen2.5-1.5B-Instruct",
        "45.0",
        "+34.7",
        "+50.0",
    ):
        assert said in shown


def test_what_was_not_measured_is_no_figure():
    figures, shown = print_figures(measured("prxu", ""))
    (row,) = figures["tasks"]["countdown"]
    assert row["vanilla_second"] == 0.5
    assert row["trained_first"] is row["trained_second"] is row["second_gain"] is None
    assert row["unverified"] == 1
    assert "no adapter was promoted" in shown
    assert "1 answers were not judged" in shown
    assert "a round failed: no signal" in print_figures(measured("px", "", failed="no signal"))[1]
    assert "promoted by force" in print_figures(measured("px", "px", champion="c@1", forced=True))[1]
