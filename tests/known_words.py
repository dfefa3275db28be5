"""Whether what the page says of prices and best points is true, on surfaces whose answer is known.

    python tests/known_answers.py --words --studies 20 --trials 12 20 60

Per family of surfaces and number of trials, over simulated studies:

    price        the share of the prices of not tuning whose interval holds the true price
    best         the share of studies in which the interval of the best point holds the true accuracy at that very point
    false        the share of studies with a false price: said to be a point or more and surely above 0, in truth below
                 0.1
    top          the share of studies that name the parameter which matters most, where one clearly does
    told         the share of the studies with a wrong interval that carry a warning
    warned       the share of all studies that carry one
    width        the median width of the prices' intervals, points
    regret       the mean accuracy lost at the best point named, points
    seconds      the mean processor time of an analysis

Intervals are printed with one decimal, so a truth within 0.05 of an end counts as inside.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from known_answers import CHANCE, DEFAULT, DIMENSIONS, EPOCHS, IMAGES, NAMES, SIZES, accuracy, reports, simulate, truth
from surfaces import FAMILIES

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.findings import said_of_surface
from kdstudy.analysis.sensitivity.fit import without_failures
from kdstudy.analysis.sensitivity.statements import cautions

ROUNDING = 0.05  # points, half of the last digit shown
FALSE_PRICE, NO_PRICE = 1.0, 0.1  # points: what is said, and what is true
CLEARLY = 0.15  # by so much the largest main effect is above the second, where one parameter is on top


def found_in(reported: pd.DataFrame) -> dict[str, Any]:
    """What sensitivity.json says of a search, of its reports (see `known_answers.reports`)."""
    learned, failures = without_failures(reported, DIMENSIONS, IMAGES, CHANCE)
    model = BudgetModel(learned, DIMENSIONS, EPOCHS, IMAGES, failures)
    full = model.rows[model.rows["epoch"] == EPOCHS]
    left_out = model.leave_trial_out()
    return said_of_surface(model, DEFAULT) | {
        "arm": "distill", "budget": EPOCHS, "epochs": EPOCHS, "searched": list(NAMES),
        "counts": {"trials": model.rows["trial"].nunique(), "full": len(full), "baseline": 0, "failed": 0,
                   "protected": int(full["protected"].sum()), "unlearned": len(failures.failed) if failures else 0},
        "coverage": {"inside": int(left_out["inside"].sum()), "trials": len(left_out)}}


def scored(family: str, trials: int, seed: int, reported: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per price of a study."""
    known, started = truth(FAMILIES[family]), time.process_time()
    found = found_in(reported)
    seconds = time.process_time() - started
    best = found["best"]
    true_best = 100 * accuracy(FAMILIES[family], best["parameters"], EPOCHS)
    effects = {row["parameter"]: row["share"] for row in found["effects"] if row["other"] is None}
    shares = np.array([effects[name] for name in NAMES])
    above = np.sort(known.effects)
    top = NAMES[int(known.effects.argmax())]
    study = {"trials": trials, "family": family, "study": seed, "seconds": seconds, "best": _holds(best, true_best),
             "best_said": best["accuracy"], "best_low": best["low"], "best_high": best["high"], "best_true": true_best,
             "regret": _highest(family) - true_best,
             "error": abs(shares / shares.sum() - known.effects).sum() / 2,
             "cautions": len(cautions(found, ended=True)),
             "top": max(effects, key=effects.__getitem__) == top if above[-1] - above[-2] > CLEARLY else None}
    return [study | {"parameter": row["parameter"], "true": true, "said": row["price"], "low": row["low"],
                     "high": row["high"], "price": _holds(row, true),
                     "false": true < NO_PRICE and row["price"] >= FALSE_PRICE and row["low"] > ROUNDING}
            for row in found["prices"] for true in [known.prices[NAMES.index(row["parameter"])]]]


def _holds(interval: dict[str, Any], true: float) -> bool:
    return bool(interval["low"] - ROUNDING <= true <= interval["high"] + ROUNDING)


def _highest(family: str) -> float:
    grid = np.meshgrid(*[np.linspace(0, 1, 41)] * 3, indexing="ij")
    return float((100 / (1 + np.exp(-FAMILIES[family](*grid, 1.0)))).max())


def by_family(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per family with the measures above (shares in percent), then the mean and the worst family."""
    rows = rows.assign(width=rows["high"] - rows["low"])
    once = rows.drop_duplicates(["family", "study"]).set_index(["family", "study"])
    grouped = rows.groupby(["family", "study"], sort=False)
    once["false"], once["wrong"] = grouped["false"].any(), ~(grouped["price"].all() & once["best"])
    families = once.groupby("family", sort=False)
    warned = once["cautions"] > 0
    table = pd.DataFrame({
        "price": 100 * rows.groupby("family", sort=False)["price"].mean(), "best": 100 * families["best"].mean(),
        "false": 100 * families["false"].mean(),
        "top": 100 * families["top"].apply(lambda named: named.dropna().astype(float).mean()),
        "told": 100 * warned[once["wrong"]].groupby("family", sort=False).mean(),
        "warned": 100 * warned.groupby("family", sort=False).mean(),
        "width": rows.groupby("family", sort=False)["width"].median(), "regret": families["regret"].mean(),
        "seconds": families["seconds"].mean()}).reindex(list(dict.fromkeys(rows["family"])))
    worst = {name: table[name].min() if name in ("price", "best", "top", "told") else table[name].max()
             for name in table}
    return pd.concat([table, pd.DataFrame([table.mean(), pd.Series(worst)], index=["mean", "worst family"])])


def run(studies: int, sizes: Iterable[int], families: Iterable[str], out: Path | None = None, first: int = 0) -> None:
    """Simulates, scores and prints a table per number of trials. first: the seed of the first study."""
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for family in families:
            for seed in range(first, first + studies):
                record = simulate(FAMILIES[family], seed, size, SIZES[size])
                rows += scored(family, size, seed, reports(record))
        mine = pd.DataFrame([row for row in rows if row["trials"] == size])
        print(f"\n{studies} studies per family, {size} trials, {SIZES[size]} protected:\n")
        print(by_family(mine).round(1).to_string())
        if out:
            pd.DataFrame(rows).to_csv(out, index=False)
