"""Which configuration a search should hand on, where the truth is known: the rules compared by simulation.

    python tests/known_choices.py --studies 20 --out choices.csv

A search's best trial is partly lucky, so what it promises is too high, and another trial may be better in truth. Rules:

    raw best        the trial with the best validation accuracy at the full budget
    shrunk best     the trial with the best mean of the fitted surface, which knows its neighbours
    k x s           the default point and the k best trials by the surface run again with s fresh seeds; the best mean
                    validation accuracy of those runs wins, and ties go to the default
    k+lr x s        the same, with one more candidate: the default temperature and alpha at the learning rate that the
                    surface says is best there
    …, own          a configuration's own trial in the search counts as one more seed; the learning rate's has none

    kdstudy's default  what runs again without a setting: the best, the learning rate's point, the next best; as many
                    as a quarter of the search pays for. The default point counts with its own trial.

Regret is the true accuracy at the best point of the surface less that of the configuration chosen, in percentage
points; the average over studies. The cost is in epochs, as a share of the epochs that the search took. Searches are
those of `known_answers`: default point, Sobol points, TPE and ASHA, with the noise of its trials, in logits, times
`--noise`. The committed CIFAR-100 studies have a standard deviation of 0.02 to 0.06 logits over the seeds of one
configuration (0.5 to 1.4 points); a factor of 1 is 0.064.
"""

import argparse
import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from known_answers import (
    DEFAULT,
    DIMENSIONS,
    EPOCHS,
    NAMES,
    REPORT_NOISE,
    SIZES,
    SPACE,
    TRIAL_NOISE,
    fitted,
    simulate,
)
from surfaces import FAMILIES

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.config.messages import validate
from kdstudy.search.manager import METRIC
from kdstudy.stages.finalists import candidates

RULES = ("raw best", "shrunk best")
FINALISTS = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (5, 2)]
DRAWS = 200  # of fresh runs per study and rule


@dataclass(frozen=True)
class Searched:
    """A finished search: its full-budget trials with their true and observed accuracies, percent, and two rankings."""

    truth: np.ndarray
    observed: np.ndarray
    by_accuracy: list[int]
    by_surface: list[int]
    default: int
    shared: int  # the point that tunes only lr; it has no trial of its own, so nothing was observed
    best: float  # of the whole surface
    epochs: int  # that the search took


def searched(family: str, seed: int, trials: int, noise: float) -> Searched:
    """A simulated search. Rankings are indices of `truth`, the best first."""
    surface = FAMILIES[family]
    record = simulate(surface, seed, trials, SIZES[trials], noise)
    full = [trial for trial in record.trials.values() if trial.state == "complete"]
    model = fitted(record)
    points = {name: [trial.parameters[name] for trial in full] for name in NAMES}
    surface_mean = np.array([trial.metric(METRIC) for trial in full]) if model.is_constant else model.mean(points)
    points = {name: [*values, value] for (name, values), value in zip(points.items(), _only_lr(model), strict=True)}
    places = [DIMENSIONS[name].unit(points[name])[:, 0] for name in NAMES]
    truth = _percent(np.broadcast_to(surface(*places, 1.0), len(full) + 1))
    observed = np.array([100 * trial.metric(METRIC) for trial in full])
    grid = np.meshgrid(*[np.linspace(0, 1, 41)] * 3, indexing="ij")
    return Searched(truth, observed, _ranked(observed), _ranked(surface_mean),
                    next(index for index, trial in enumerate(full) if trial.number == 0), len(full),
                    float(_percent(surface(*grid, 1.0)).max()),
                    sum(trial.reports[-1]["epoch"] for trial in record.trials.values()))


def _only_lr(model: BudgetModel) -> list[float]:
    """The default point with the learning rate that the surface says is best there; values of NAMES."""
    if model.is_constant:
        return [DEFAULT[name] for name in NAMES]
    rates = DIMENSIONS["lr"].at(np.linspace(0, 1, 201))
    mean = model.mean({"temperature": [DEFAULT["temperature"]] * 201, "alpha": [DEFAULT["alpha"]] * 201, "lr": rates})
    return [DEFAULT["temperature"], DEFAULT["alpha"], rates[int(np.argmax(mean))]]


def regrets(search: Searched, trials: int, noise: float, random: np.random.Generator) -> list[dict]:
    """A row per rule: name, regret in points, cost as a share of the search's epochs."""
    spread = noise * np.hypot(TRIAL_NOISE, REPORT_NOISE)
    rows = [{"rule": rule, "regret": search.best - search.truth[ranking[0]], "cost": 0.0}
            for rule, ranking in zip(RULES, (search.by_accuracy, search.by_surface), strict=True)]
    observed = np.append(search.observed, 0.0)
    rules = {f"{k} x {s}": ([*search.by_surface[:k], search.default], s, False) for k, s in FINALISTS}
    rules |= {f"{k}+lr x {s}{', own' if own else ''}": ([*search.by_surface[:k], search.shared, search.default], s, own)
              for (k, s), own in itertools.product(FINALISTS, (False, True))}
    if default := _by_default(search, trials):
        rules["kdstudy's default"] = default
    else:
        rows.append(rows[0] | {"rule": "kdstudy's default"})
    for name, (again, seeds, own) in rules.items():
        chosen = list(dict.fromkeys([search.default, *again]))  # the default first: it wins ties
        runs = np.array([seeds if one in again else 0 for one in chosen])
        logits = np.log(search.truth[chosen] / (100 - search.truth[chosen]))
        fresh = _percent(logits + spread * random.standard_normal((DRAWS, seeds, len(chosen))))
        counted = np.array([int(own and one != search.shared) for one in chosen])
        means = ((runs > 0) * fresh.sum(1) + counted * observed[chosen]) / (runs + counted)
        winners = np.array(chosen)[means.argmax(1)]
        rows.append({"rule": name, "regret": search.best - search.truth[winners].mean(),
                     "cost": runs.sum() * EPOCHS / search.epochs})
    return rows


def _by_default(search: Searched, trials: int) -> tuple[list[int], int, bool] | None:
    """What runs again without a setting, as points of `search`, with how many seeds, and whether own trials count."""
    space = {name: one.model_dump(exclude_none=True) for name, one in SPACE.items()}
    config = validate({"name": "simulated", "data": {"source": "digits"}, "teacher": {"model": "resnet18"},
                       "student": {"model": "resnet18"}, "train": {"epochs": EPOCHS},
                       "search": {"trials": trials, "protected": SIZES[trials] - 1, "baseline_trials": trials,
                                  "baseline_protected": SIZES[trials] - 1, **space}})
    finalists = config.finalists_of("distill")
    if finalists is None:
        return None
    ranking = [0 if one == search.default else one + 1 for one in search.by_surface]  # 0 is the default point
    chosen = candidates(ranking, [None], finalists.best, finalists.retrained)
    points = [search.shared if one is None else search.default if one == 0 else one - 1 for one in chosen]
    return points, finalists.seeds, True


def _percent(logits: np.ndarray) -> np.ndarray:
    return 100 / (1 + np.exp(-logits))


def _ranked(values: np.ndarray) -> list[int]:
    return np.argsort(-np.asarray(values), kind="stable").tolist()


def compare(studies: int, sizes: Iterable[int], noise: float = 1.0, families: Iterable[str] = FAMILIES) -> pd.DataFrame:
    """A row per number of trials, family, study and rule."""
    rows = []
    for trials in sizes:
        for family in families:
            for seed in range(studies):
                search = searched(family, seed, trials, noise)
                random = np.random.default_rng([seed, trials])
                rows += [{"trials": trials, "family": family, "study": seed, **row}
                         for row in regrets(search, trials, noise, random)]
    return pd.DataFrame(rows)


def table(compared: pd.DataFrame) -> str:
    """Markdown: per rule and number of trials the mean regret, that of the worst family, and the cost."""
    sizes = sorted(compared["trials"].unique())
    lines = ["| rule | " + " | ".join(f"{size} trials: regret (worst family), cost" for size in sizes) + " |",
             "|---|" + "---:|" * len(sizes)]
    for rule in compared["rule"].unique():
        cells = []
        for size in sizes:
            mine = compared[(compared["rule"] == rule) & (compared["trials"] == size)]
            worst = mine.groupby("family")["regret"].mean()
            cells.append(f"{mine['regret'].mean():.2f} ({worst.max():.2f} {worst.idxmax()}), "
                         f"{100 * mine['cost'].mean():.0f} %")
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20, help="per family")
    parser.add_argument("--trials", type=int, nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--noise", type=float, default=1.0, help="a factor of the noise")
    parser.add_argument("--out", type=Path, help="write a row per study and rule to this CSV file")
    arguments = parser.parse_args()
    started = time.monotonic()
    compared = compare(arguments.studies, arguments.trials, arguments.noise)
    if arguments.out:
        compared.to_csv(arguments.out, index=False)
    print(f"{arguments.studies} studies of each of {len(FAMILIES)} families, noise times {arguments.noise:g}\n")
    print(table(compared))
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
