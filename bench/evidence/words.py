"""The words, numbers and tables of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

ARMS = {
    "before": "base model, its own reflection (before)",
    "after": "**trained reflection (after)**",
    "plain": "asked again, no reflection, one retry",
    "plain_equal_tokens": "asked again, no reflection, tries: {tries}, as fit into the trained loop's tokens",
    "shuffled_before": "base model, reflection on another problem",
    "shuffled_after": "trained adapter, reflection on another problem",
    "prompted": "base model, the best hand-written reflection prompt",
    "worked": "asked for worked answers at first, one try",
    "worked_equal_tokens": "asked for worked answers, tries: {tries}, as fit into the trained loop's tokens (or 1)",
    "sft": "supervised fine-tuning on the second tries that passed, same compute",
    "whole": "GRPO on the whole second try, same compute but for twice the tokens",
}


def percent(value: float | None) -> str:
    """Word a share."""
    return "-" if value is None else f"{100 * value:.1f}"


def points(value: float, interval: Sequence[float]) -> str:
    """Word a difference of shares with its interval."""
    return f"{100 * value:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def word_arm(arm: str, told: Mapping[str, Any]) -> str:
    """Word an arm of the controls."""
    return ARMS[arm].format(tries=told.get("tries", 1))


def describe_kinds(title: str, kinds: Mapping[str, Any], arms: Mapping[str, Any]) -> str:
    """Describe the kinds of reflection before and after, and what their mixture explains."""
    rows = []
    for kind in kinds["before"]:
        then, now = kinds["before"][kind], kinds["after"][kind]
        shares = [percent(then["share"]), percent(now["share"])]
        rows.append([kind, *shares, percent(then["solved"]), percent(now["solved"])])
    gain = kinds["gain"]
    mixture = f" ({gain['mixture'] / gain['mended']:.0%} of it)" if gain["mended"] > 0 else ""
    lengths = [arms[when]["reflection_tokens"] for when in ("before", "after")]
    tokens = " to ".join("-" if one is None else f"{one:.0f}" for one in lengths)
    return (
        f"### {title}\n\n"
        + table(["kind of reflection", "share before, %", "after", "retry passed before, %", "after"], rows)
        + f"\n\nRetries mend {100 * gain['mended']:+.1f} points more of what failed. That other kinds are written "
        "explains\n"
        f"{100 * gain['mixture']:+.1f}{mixture}; that reflections of the same kind help more explains "
        f"{100 * gain['within']:+.1f} (Kitagawa's decomposition).\nA reflection went from {tokens} tokens."
    )


def describe_chosen(chosen: Mapping[str, Any]) -> str:
    """Describe what was chosen on development problems: prompts, and fine-tuning's learning rate."""
    lines = []
    for seed, counted in (chosen.get("prompts") or {}).items():
        told = "; ".join(f'"{one["prompt"]}" {one["second"]}/{one["n"]}' for one in counted)
        lines.append(f"- Prompts, solved by the second try on development problems, seed {seed}: {told}.")
    for seed, counted in (chosen.get("sft_rates") or {}).items():
        told = "; ".join(f"{one['rate']:g} {one['second']}/{one['n']}" for one in counted)
        lines.append(f"- Fine-tuning's learning rates, likewise, seed {seed}: {told}.")
    for seed, told in (chosen.get("sft_0_trained") or {}).items():
        sizes = f"{told['updates']} updates of {told['an_update']} second tries, of {told['second_tries']} that passed"
        lines.append(f"- Fine-tuning, seed {seed}: {sizes}.")
    for seed, told in (chosen.get("whole_trained") or {}).items():
        lines.append(
            f"- GRPO on the whole second try, seed {seed}: {told['updates']} updates in {told['steps']} steps."
        )
    return "\n".join(lines)


def describe_examples(title: str, examples: Mapping[str, Any]) -> str:
    """Describe the examples of a subject."""
    rows = []
    for before, after in examples["rows"]:
        cells = [_cell(before["key"])]
        for row in (before, after):
            cells += [_cell(row["reflection"]), "passed" if row["second"] else "failed"]
        rows.append(cells)
    head = ["problem", "reflection before", "retry", "reflection after", "retry"]
    return f"### {title}, seed {examples['seed']}\n\n{table(head, rows)}"


def _cell(text: str) -> str:
    shown = text if len(text) <= 400 else text[:400] + "..."
    return "`" + shown.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"
