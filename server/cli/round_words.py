"""Says in words what a round selected, what it left out and why, and what it used. Called by `mulligan round show`."""

from collections.abc import Mapping
from typing import Any

_UNITS = {"minutes": "minutes", "tokens": "tokens", "disk_mb": "MiB on disk"}


def describe_selection(report: Mapping[str, Any]) -> dict[str, str]:
    """Say what was learnt from and what was left out; nothing where the round has not selected yet."""
    chosen = report.get("selection")
    if not chosen:
        return {}
    parts = [f"{chosen['failures']} failures", f"{chosen['recovered']} of them mended by a logged reflection"]
    if chosen.get("replayed"):
        parts.append(f"{chosen['replayed']} from before the last round")
    left_out = sorted(chosen.get("left_out", {}).items(), key=lambda one: -one[1])
    return {
        "learnt from": ", ".join(parts),
        "left out": "; ".join(f"{count}: {why}" for why, count in left_out) or "nothing",
    }


def describe_objective(report: Mapping[str, Any]) -> str:
    """Say what a round trained, and what else its weights were trained by before; "" where it has not begun to."""
    objective = report.get("objective")
    if not objective:
        return ""
    words = objective["name"]
    if "first_try_weight" in objective:
        words += f" (successful retries distilled into first answers, weight {objective['first_try_weight']:g})"
    if others := [one for one in objective.get("before", ()) if one != objective["name"]]:
        words += f", going on from weights that were trained by {', '.join(others)}"
    return words


def describe_budget(report: Mapping[str, Any]) -> dict[str, str]:
    """Say what a round has used, and of how much where there is a limit."""
    budget = report.get("budget")
    if not budget:
        return {}
    used = []
    for name, unit in _UNITS.items():
        limit = budget.get(f"max_{name}")
        used.append(f"{_round(budget[name])}{'' if limit is None else f' of {_round(limit)}'} {unit}")
    again = report.get("replayed_steps")
    resumed = f"begun again from {again} kept step{'' if again == 1 else 's'}" if again else ""
    return {"used": ", ".join(used), "resumed": resumed}


def _round(number: float) -> str:
    return f"{number:,.1f}" if isinstance(number, float) else f"{number:,}"
