"""Counts: accuracy, paired differences with intervals, kinds of reflection. Plain numbers, no files.

`Rows` are those of one arm and seed (`bench.evidence.serving.Row`); arms and seeds are paired by the problems' keys.
"""

import hashlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from demo.drive.intervals import paired_gain
from demo.reflections import KINDS

Row = Mapping[str, Any]
Rows = Sequence[Row]
Which = str
"""`first` or `second`: solved at the first try, or by the second."""

DRAWS = 10_000


def describe_arm(by_seed: Mapping[int, Rows]) -> dict[str, Any]:
    """Say how often an arm solved its problems, by seed and on average, and what it took a problem."""
    seeds = [
        {"seed": seed, "n": len(rows), **{which: fmean(row[which] for row in rows) for which in ("first", "second")}}
        for seed, rows in by_seed.items()
    ]
    every = [row for rows in by_seed.values() for row in rows]
    reflections = [row["tokens"]["reflections"] for row in every if "kind" in row]
    return {
        "first": fmean(one["first"] for one in seeds),
        "second": fmean(one["second"] for one in seeds),
        "seeds": seeds,
        "generated_tokens": fmean(row["tokens"]["generated"] for row in every),
        "prompt_tokens": fmean(row["tokens"]["prompt"] for row in every),
        "reflection_tokens": fmean(reflections) if reflections else None,
        "seconds": fmean(row["seconds"] for row in every),
    }


def compare(early: Mapping[int, Rows], late: Mapping[int, Rows], which: Which) -> dict[str, Any]:
    """Say how much more of the same problems `late` solves, in shares, with 95 % intervals.

    Of each seed by resampling problems; of their mean by resampling seeds and problems both. With few seeds even that
    says little about seeds that were not run, so the seeds stand beside it. Raises ValueError where nothing pairs.
    """
    differences, seeds = [], []
    for seed in sorted(set(early) & set(late)):
        before, after = ({row["key"]: bool(row[which]) for row in rows[seed]} for rows in (early, late))
        if before.keys() != after.keys():
            raise ValueError(f"the two arms of seed {seed} have other problems")
        keys = sorted(before)
        gain, interval = paired_gain([before[key] for key in keys], [after[key] for key in keys])
        seeds.append({"seed": seed, "n": len(keys), "gain": gain, "ci95": interval})
        differences.append([int(after[key]) - int(before[key]) for key in keys])
    if not differences:
        raise ValueError("the two arms have no seed in common")
    return {"gain": fmean(one["gain"] for one in seeds), "ci95": resample(np.array(differences)), "seeds": seeds}


def resample(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of differences (S, N), resampling its S seeds and its N problems."""
    rng, (seeds, problems) = np.random.default_rng(seed), differences.shape
    rows = rng.multinomial(seeds, [1 / seeds] * seeds, size=DRAWS) / seeds  # (D, S)
    columns = rng.multinomial(problems, [1 / problems] * problems, size=DRAWS) / problems  # (D, N)
    means = ((rows @ differences) * columns).sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def count_kinds(rows: Rows) -> dict[str, dict[str, float | None]]:
    """Say of each kind of reflection how many of all were of it, and how many of those led to a retry that passed."""
    reflected = [row for row in rows if "kind" in row]
    found: dict[str, dict[str, float | None]] = {}
    for kind in KINDS:
        mine = [row for row in reflected if row["kind"] == kind]
        found[kind] = {
            "count": len(mine),
            "share": len(mine) / len(reflected) if reflected else 0.0,
            "solved": fmean(row["second"] for row in mine) if mine else None,
        }
    return found


def decompose(before: Rows, after: Rows) -> dict[str, float]:
    """Split how much more retries mend into what the mixture of kinds explains, and what success within kinds does.

    Kitagawa's decomposition (1955): the change of shares at the mean success, and the change of success at the mean
    shares. A kind that occurs on one side only counts with that side's success on both.
    """
    early, late = count_kinds(before), count_kinds(after)
    mixture = within = 0.0
    for kind in KINDS:
        then, now = early[kind]["solved"], late[kind]["solved"]
        then, now = (now if then is None else then), (then if now is None else now)
        if then is None or now is None:
            continue
        shares = early[kind]["share"] or 0.0, late[kind]["share"] or 0.0
        mixture += (shares[1] - shares[0]) * (then + now) / 2
        within += (now - then) * (shares[0] + shares[1]) / 2
    return {"mended": mixture + within, "mixture": mixture, "within": within}


def cut_tries(rows: Rows, most: int) -> list[dict[str, Any]]:
    """Turn rows with up to many `tries` into rows of at most so many: `second` is solved by the last of these."""
    cut = []
    for row in rows:
        tries = row["tries"][:most]
        tokens = {name: sum(one["tokens"][name] for one in tries) for name in ("prompt", "generated", "reflections")}
        cut.append({**row, "second": any(one["passed"] for one in tries), "tokens": tokens})
    return cut


def fit_tries(by_seed: Mapping[int, Rows], tokens: float, most: int) -> int:
    """Return with how many tries at most an arm generates no more tokens a problem than given; 1 at least."""
    fits = 1
    for number in range(1, most + 1):
        spent = fmean(row["tokens"]["generated"] for rows in by_seed.values() for row in cut_tries(rows, number))
        fits = number if spent <= tokens else fits
    return fits


def pick_examples(before: Rows, after: Rows, count: int = 10) -> list[tuple[Row, Row]]:
    """Pick the problems that failed at first both times, in the order of their keys' SHA-256, failures included."""
    late = {row["key"]: row for row in after if "kind" in row}
    both = [row for row in before if "kind" in row and row["key"] in late]
    ordered = sorted(both, key=lambda row: hashlib.sha256(row["key"].encode()).hexdigest())
    return [(row, late[row["key"]]) for row in ordered[:count]]


def count_checks(rows: Rows) -> tuple[int, int]:
    """Return how many answers were judged twice, and how often the two verdicts differ."""
    pairs: list[tuple[bool, bool]] = []
    for row in rows:
        if "tries" in row:
            pairs += [(one["passed"], one["checked"]) for one in row["tries"]]
        else:
            pairs.append((row["second"], row["checked"]))
    return len(pairs), sum(verdict != ours for verdict, ours in pairs)
