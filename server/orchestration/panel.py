"""Reads what the frozen panel says of the base model and of every champion.

Pure, but for the reading. Called by the API and the command line. Every figure is over the same problems, with the
verifiers, prompts and sampling that were frozen with them, so that neither other traffic nor another version of a
verifier can pass for learning. Figures of adapters are compared where both were asked under the same conditions (model,
tokenizer and chat template), problem by problem.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.domain import BASE_ADAPTER, AdapterStatus, Panel, PanelResult
from server.orchestration.shares import wilson
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.panels import PanelStore

_Z = 1.959964


@dataclass(frozen=True, slots=True)
class PanelRow:
    """What the panel says of one adapter; accuracies as shares, `ci95` their 95 % intervals.

    `n` problems were judged under it. `difference`, `fixed` and `broken` are against the base, over the `pairs`
    problems that were judged under both; None where there are none.
    """

    adapter: str
    status: str
    n: int
    asked: int
    first_try: float
    second_try: float
    ci95: tuple[float, float]
    tokens_per_passed: float | None
    pairs: int
    difference: float | None
    difference_ci95: tuple[float, float] | None
    fixed: int
    broken: int
    says: str


@dataclass(frozen=True, slots=True)
class PanelReport:
    """A task's panel and what it says; without a panel `says` tells why not yet."""

    task: str
    panel: Panel | None
    rows: tuple[PanelRow, ...]
    says: str


async def read_panel(task: str, database: Database) -> PanelReport:
    """Read the newest version of a task's panel and its results. Raises: StoreUnavailable."""
    store = PanelStore(database)
    panel = await store.find_latest(task)
    if panel is None:
        says = (
            f"no panel yet: it is frozen once there are enough held-out problems, or by `mulligan panel freeze {task}`"
        )
        return PanelReport(task, None, (), says)
    statuses = {one.name: one.status for one in await AdapterStore(database).list(task)}
    return report_panel(panel, await store.list_results(panel), statuses)


def report_panel(panel: Panel, results: Sequence[PanelResult], statuses: Mapping[str, AdapterStatus]) -> PanelReport:
    """Say what the results of a panel's version mean: the base first, then the adapters by name's age."""
    by_adapter: dict[str, dict[int, PanelResult]] = {}
    for one in results:
        by_adapter.setdefault(one.adapter, {})[one.number] = one
    base = by_adapter.get(BASE_ADAPTER, {})
    order = [name for name in statuses if name in by_adapter][::-1]  # they come newest first
    rows = [_describe(panel, name, by_adapter[name], base, statuses) for name in order]
    if base:
        rows.insert(0, _describe(panel, BASE_ADAPTER, base, {}, statuses))
    says = f"version {panel.version}, {panel.size} problems ({panel.reason})"
    return PanelReport(panel.task, panel, tuple(rows), says)


def _describe(
    panel: Panel,
    name: str,
    results: Mapping[int, PanelResult],
    base: Mapping[int, PanelResult],
    statuses: Mapping[str, AdapterStatus],
) -> PanelRow:
    judged = [one for one in results.values() if one.judged]
    n, passed = len(judged), sum(one.second_passed for one in judged)
    pairs = [
        (base[one.number].second_passed, one.second_passed)
        for one in judged
        if one.number in base and base[one.number].judged and base[one.number].conditions == one.conditions
    ]
    fixed = sum(after and not before for before, after in pairs)
    broken = sum(before and not after for before, after in pairs)
    difference, interval = (None, None) if not pairs else compare_pairs(fixed, broken, len(pairs))
    return PanelRow(
        adapter=name,
        status=statuses[name].value if name in statuses else "",
        n=n,
        asked=len(results),
        first_try=sum(one.first_passed for one in judged) / n if n else 0.0,
        second_try=passed / n if n else 0.0,
        ci95=wilson(passed, n),
        tokens_per_passed=sum(one.tokens for one in results.values()) / passed if passed else None,
        pairs=len(pairs),
        difference=difference,
        difference_ci95=interval,
        fixed=fixed,
        broken=broken,
        says=_say(panel, name, len(results), (len(pairs), fixed, broken)),
    )


def _say(panel: Panel, name: str, asked: int, counts: tuple[int, int, int]) -> str:
    """Say a row in words; `counts` are the pairs, and of them the fixed and the broken."""
    rest = "" if asked >= panel.size else f" ({asked} of {panel.size} problems asked so far)"
    pairs, fixed, broken = counts
    if name == BASE_ADAPTER:
        return f"what the others are compared with{rest}"
    if not pairs:
        return f"not asked under the same model as the base: `mulligan panel run {panel.task}`{rest}"
    difference, (low, high) = compare_pairs(fixed, broken, pairs)
    points = f"{difference * 100:+.1f} points [{low * 100:.1f}, {high * 100:.1f}]"
    return f"{points} against base on the frozen panel, n = {pairs}; {fixed} fixed, {broken} broken{rest}"


def compare_pairs(fixed: int, broken: int, pairs: int) -> tuple[float, tuple[float, float]]:
    """Estimate the difference of two paired shares, with its 95 % interval.

    Bonett and Price's adjusted Wald interval (2012): one is added to both kinds of discordant pairs. It keeps its level
    also where few pairs differ.
    """
    up, down = (fixed + 1) / (pairs + 2), (broken + 1) / (pairs + 2)
    half = _Z * math.sqrt(max(0.0, up + down - (up - down) ** 2) / (pairs + 2))
    return (fixed - broken) / pairs, (max(-1.0, up - down - half), min(1.0, up - down + half))
