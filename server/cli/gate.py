"""`mulligan gate`: what a gate can see before it is held, and what one made of each problem; and a gate in words."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from server.cli.named import find_task
from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.show import print_fields, print_json, print_things
from server.errors import NotFound
from server.orchestration.gate_plan import ASSUMED, Plan, Spread, foretell_power, plan_gate, read_sizes, read_spread
from server.settings import RoundSizes
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.gates import BROKEN, FIXED, SAME, GateStore, Pair
from server.store.progress import ProgressStore
from server.store.rounds import RoundStore
from server.store.verifiers import VerifierStore

app = typer.Typer(help="Plan a task's gate, and look at what one made of each problem.", no_args_is_help=True)

ROUNDS_BACK = 10  # as the trainer looks back
_MORE_PROBLEMS = (100, 200, 500, 1000)
_QUESTION_CHARS = 60


class Change(StrEnum):
    """How a problem changed from the champion to the candidate."""

    FIXED = FIXED
    BROKEN = BROKEN
    SAME = SAME


def _points(share: float) -> str:
    return f"{share * 100:+.1f}"


def _say_lead(arm: Mapping[str, Any]) -> str:
    if "lead" not in arm:
        return ""
    low, high = arm["lead_ci95"]
    return f"{_points(arm['lead'])} points ({_points(low)} to {_points(high)})"


PAIRS = {
    "episode": lambda row: row[0].episode_id,
    "change": lambda row: row[0].change,
    "second try": lambda row: f"{row[0].second_before * 100:.0f} % -> {row[0].second_after * 100:.0f} %",
    "first try": lambda row: f"{row[0].first_before * 100:.0f} % -> {row[0].first_after * 100:.0f} %",
    "samples": lambda row: f"{row[0].samples_before} and {row[0].samples_after}",
    "asked": lambda row: row[1],
}
GUARDS = {
    "guard": lambda guard: guard["name"],
    "state": lambda guard: guard["state"],
    "what was seen": lambda guard: guard["says"],
}
LOOKS = {
    "look": lambda look: look["look"],
    "problems": lambda look: f"{look['n']} x {look['samples']}",
    "gain": lambda look: _points(look["difference"]),
    "interval": lambda look: f"{_points(look['low'])} to {_points(look['high'])}",
    "its level": lambda look: f"{look['level'] * 100:.4f} %",
}
ARMS = {
    "retry with": lambda arm: arm["words"],
    "mended": lambda arm: f"{arm['mended'] * 100:.1f} %",
    "lead of the trained one": _say_lead,
    "tokens": lambda arm: f"{arm['tokens']:.0f}",
}


@app.command(epilog="Examples: mulligan gate plan sql | mulligan gate plan sql --effect 0.03 --json")
def plan(
    task: Annotated[str, typer.Argument(help="The task's name.")],
    effect: Annotated[
        float | None,
        typer.Option(min=0.001, max=0.999, help="Plan for this gain of the second try. [default: gate_effect]"),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Say what the task's next gate can see: how many problems and samples it takes, and how surely it promotes.

    Planned with how much answers varied at the task's latest gate; before the first one that is assumed.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def make(database: Database) -> tuple[RoundSizes, int, Spread]:
        found = await find_task(database, task)
        sizes = read_sizes(found.training.options, RoundSizes())
        revoked = await VerifierStore(database).revoked()
        available = await ProgressStore(database).count_problems(task, revoked, most=sizes.gate_problems)
        latest = await RoundStore(database).list(task, ROUNDS_BACK)
        return sizes, available, read_spread([(row.number, row.report) for row in latest]) or ASSUMED

    sizes, available, spread = ask_database(settings, make)
    if effect is not None:
        sizes = sizes.model_copy(update={"gate_effect": effect})
    planned = plan_gate(available, spread, sizes)
    rows = _tell_power(planned, sizes)
    if as_json:
        print_json({**planned.describe(), "gate_problems": sizes.gate_problems, "table": rows})
        return
    print_fields(
        {
            "task": task,
            "held-out problems": f"{available} of at most {sizes.gate_problems} (gate_problems)",
            "answers vary": f"{spread.discordance * 100:.0f} % discordant single samples, {spread.source}",
            "plan": planned.say(),
            "": ""
            if available >= sizes.gate_min_problems
            else f"below {sizes.gate_min_problems} problems (gate_min_problems) nothing is promoted by itself",
        }
    )
    names = [name for name in rows[0] if name != "problems"]
    columns = {"problems": lambda row: row["problems"], **{name: _power(name) for name in names}}
    title = f"how often a gain of {sizes.gate_effect * 100:.1f} points is seen, by problems and samples of each"
    print_things(rows, columns, as_json=False, title=title)


def _tell_power(planned: Plan, sizes: RoundSizes) -> list[dict[str, Any]]:
    counts: list[int] = sorted({*_MORE_PROBLEMS, planned.available or _MORE_PROBLEMS[0]})
    samples: list[int] = sorted({1, 2, 4, sizes.gate_max_samples, planned.samples})
    return [
        {
            "problems": count,
            **{f"x {k}": foretell_power(sizes.gate_effect, planned.spread.error(count, k)) for k in samples},
        }
        for count in counts
    ]


def _power(name: str):  # noqa: ANN202
    return lambda row: f"{row[name] * 100:.0f} %"


@app.command(epilog="Examples: mulligan gate pairs rd_0193... | mulligan gate pairs rd_0193... --change broken --json")
def pairs(
    round_id: Annotated[str, typer.Argument(metavar="ROUND", help="As `mulligan round list` shows it.")],
    *,
    change: Annotated[Change | None, typer.Option(help="Only the problems that changed so.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, those that changed most first.")] = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the held-out problems of a round's gate: which the candidate fixed, and which it broke."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def read(database: Database) -> list[tuple[Pair, str]]:
        row = await RoundStore(database).get(round_id)
        if row is None:
            raise NotFound(f"there is no round {round_id!r}: `mulligan round list` shows those there are")
        if "pairs" not in row.report and not as_json:
            raise NotFound(
                f"round {round_id} has no gate to show: `mulligan round show {round_id}` says where it stands"
            )
        found = await GateStore(database).list(round_id, change=change.value if change else None, limit=limit)
        episodes = EpisodeStore(database)
        return [(one, _read_question(await episodes.get(one.episode_id))) for one in found]

    rows = ask_database(settings, read)
    if as_json:
        print_json([{**_describe(one), "asked": asked} for one, asked in rows])
        return
    print_things(rows, PAIRS, as_json=False, none="no problem changed so" if change else "the gate asked no problem")


def _describe(pair: Pair) -> dict[str, Any]:
    return {**{name: getattr(pair, name) for name in Pair.__dataclass_fields__}, "change": pair.change}


def _read_question(episode: Any) -> str:
    """Read the beginning of what was asked last; "" where its content is gone."""
    messages = (episode.request or {}).get("messages") if episode else None
    said = [one.get("content") for one in messages or () if one.get("role") == "user"]
    text = " ".join(said[-1].split()) if said and isinstance(said[-1], str) else ""
    return text if len(text) <= _QUESTION_CHARS else f"{text[: _QUESTION_CHARS - 3]}..."


def describe_gate(report: Mapping[str, Any], round_id: str) -> dict[str, str]:
    """Say what a gate found, as fields; empty for a round without one, or one of an earlier release."""
    if "n" not in report or "plan" not in report:
        return {}
    low, high = report["ci95"]
    counted = report.get("pairs") or {}
    fields = {
        "second try": f"{report['second_before'] * 100:.1f} % -> {report['second_after'] * 100:.1f} %: "
        f"{_points(report['difference'])} points ({_points(low)} to {_points(high)}) on {report['n']} problems",
        "first try": f"{report['first_before'] * 100:.1f} % -> {report['first_after'] * 100:.1f} %: "
        f"{_points(report['first_difference'])} points on these",
        "plan": report["plan"]["says"],
    }
    if report["n"]:
        told = ", ".join(f"{count} {name}" for name, count in counted.items())
        fields["problems"] = f"{told} (`mulligan gate pairs {round_id}`)"
    if controls := report.get("controls"):
        fields["controls"] = controls["says"]
    return fields


def print_gate(report: Mapping[str, Any]) -> None:
    """Print a gate's looks, guards and controls as tables."""
    controls = report.get("controls") or {}
    for title, rows, columns in (
        ("looks", report.get("looks"), LOOKS),
        ("guards", report.get("guards"), GUARDS),
        ("controls", list((controls.get("arms") or {}).values()), ARMS),
    ):
        if rows:
            print_things(rows, columns, as_json=False, title=title)
