"""What the command line says of canaries: a task's policy, and how far an adapter on trial is."""

import getpass
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from server.cli.options import parse_pairs
from server.cli.show import when
from server.domain import Canary, TrainingPolicy
from server.errors import InvalidRequest
from server.orchestration.canary_policy import read_canary_policy

ON = "on"

CanaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--canary",
        metavar="on|KEY=VALUE",
        help="Try what passes the gate on live traffic first: `on`, or e.g. share=0.1, widen=[0.5,1], min_episodes=50, "
        "max_hours=72, margin=0.05, latency_ratio=1.5. May be repeated.",
    ),
]
NoCanary = Annotated[bool, typer.Option("--no-canary", help="What passes the gate becomes champion at once.")]


def name_actor() -> str:
    """Name who runs this command, for the audit log."""
    try:
        return f"command line:{getpass.getuser()}"
    except (OSError, KeyError):  # a container may run under a number without a name
        return "command line"


def apply_canary(training: TrainingPolicy, given: Mapping[str, Any]) -> TrainingPolicy:
    """Apply what the command line says of a task's canary policy. Raises: InvalidRequest."""
    words, off = given.get("canary"), given.get("no_canary")
    if words and off:
        raise InvalidRequest("--canary and --no-canary do not go together")
    if off:
        return replace(training, canary=None)
    if not words:
        return training
    pairs = parse_pairs([word for word in words if word != ON], "--canary")
    return replace(training, canary=read_canary_policy(pairs, training.canary, "--canary"))


def describe_canary(canary: Canary) -> dict[str, Any]:
    """Describe an adapter's canary, label by label."""
    report = canary.report
    shares = " -> ".join(f"{100 * step.share:g} % ({when(step.since)})" for step in canary.steps)
    evidence, needed = report.get("evidence", {}), report.get("needed", {})
    return {
        "canary": f"{canary.state.value} against {canary.champion or '(base)'}",
        "canary shares": shares,
        "canary says": canary.reason or report.get("says", ""),
        "canary episodes": _count(report.get("canary")),
        "champion episodes": _count(report.get("champion")),
        "evidence": ", ".join(f"{name} {evidence[name]:.3g} of {needed[name]:g}" for name in evidence),
        "canary ended": when(canary.ended_at) if canary.ended_at else "",
    }


def _count(side: Mapping[str, Any] | None) -> str:
    if not side:
        return ""
    solved = "nothing verified" if side["solved"] is None else f"{100 * side['solved']:.1f} % solved"
    judged = side["passed"] + side["failed"]
    return f"{side['episodes']}, {judged} verified: {solved}; {side['broken']} broke"
