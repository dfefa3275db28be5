"""Sensitivity analyses against surfaces whose answer is known.

    python tests/known_answers.py --studies 20                   # main effects, beside other analyses
    python tests/known_answers.py --studies 20 --trials 12 20 60 --words    # prices and best points, on all families

A surface says what accuracy any (temperature, alpha, lr) reaches at any epoch. Studies of it are run by the project's
own search (default point, Sobol points, TPE, ASHA) in simulated time; then each analysis names the normalised main
effects at the full budget, which are known from the surface itself.
"""

import argparse
import heapq
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from scipy.stats import spearmanr
from surfaces import FAMILIES

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.effects import main_effects
from kdstudy.analysis.sensitivity.fit import without_failures
from kdstudy.analysis.sensitivity.grid import Grid
from kdstudy.analysis.sensitivity.space import Dimension
from kdstudy.config.sections import Range
from kdstudy.search.manager import METRIC, TrialManager
from kdstudy.search.proposer import OptunaProposer
from kdstudy.store.record import Record

EPOCHS, RUNGS, WORKERS, TRIALS, PROTECTED = 27, [3, 9], 4, 60, 12
SIZES = {8: 4, 12: 6, 20: 9, 60: 12}  # trials: protected ones, the default point among them
CHANCE = 0.1  # of the surfaces on which training can fail
NAMES = ("temperature", "alpha", "lr")
SPACE = {"temperature": Range(log=(1, 16)), "alpha": Range(linear=(0, 1)), "lr": Range(log=(3e-4, 3e-2))}
DIMENSIONS = {name: Dimension.of(name, space.model_dump(exclude_none=True)) for name, space in SPACE.items()}
DEFAULT = {"temperature": 4.0, "alpha": 0.5, "lr": 1e-3}
TRIAL_NOISE, REPORT_NOISE, IMAGES = 0.05, 0.04, 5000  # in logits; the images bound how finely accuracies are measured


SURFACES = {name: FAMILIES[name] for name in ("aligned", "crossing", "cliff")}


def accuracy(surface: Callable, parameters: dict, epoch: int, noise: float = 0.0) -> float:
    places = [DIMENSIONS[name].unit([parameters[name]])[0, 0] for name in NAMES]
    return 1 / (1 + np.exp(-surface(*places, np.log(epoch) / np.log(EPOCHS)) - noise))


@dataclass(frozen=True)
class Truth:
    """What a perfect analysis would say of a surface at the full budget."""

    effects: np.ndarray  # of NAMES, adding up to 1
    prices: np.ndarray  # of leaving each of NAMES at its default, points
    rank_correlation: float  # of epoch 1 with the last, over the space


def truth(surface: Callable, points: int = 61) -> Truth:
    places = np.linspace(0.5 / points, 1 - 0.5 / points, points)
    grid = np.meshgrid(places, places, places, indexing="ij")
    last, first = (100 / (1 + np.exp(-surface(*grid, s))) for s in (1.0, 0.0))
    effects = np.array([last.mean(tuple({0, 1, 2} - {axis})).var() for axis in range(3)])
    default = [int(abs(places - DIMENSIONS[name].unit([DEFAULT[name]])[0, 0]).argmin()) for name in NAMES]
    lost = [last.max() - last.take(default[axis], axis).max() for axis in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a surface that is the same everywhere
        correlation = float(spearmanr(first.ravel(), last.ravel())[0])
    return Truth(effects / max(effects.sum(), 1e-12), np.array(lost), correlation)


# ---------------------------------------------------------------------------------------------------------------------
# Studies in simulated time


class MemoryRecord(Record):
    """A record without a file."""

    def __init__(self) -> None:
        super().__init__(Path("in memory"), write=False)

    def _append(self, event: dict) -> None:
        self._replay({"sequence": self._sequence, "time": 0.0, **event})


def simulate(surface: Callable, seed: int, trials: int = TRIALS, protected: int = PROTECTED,
             noise: float = 1.0) -> Record:
    """A search by the project's own code: WORKERS trials at a time, each epoch as long as its trial's speed has it.

    noise: a factor of TRIAL_NOISE and REPORT_NOISE."""
    record, random = MemoryRecord(), np.random.default_rng(seed)
    proposer = OptunaProposer(SPACE, DEFAULT, trials, protected - 1 if protected else 0, seed, "distill", WORKERS)
    manager = TrialManager(record, proposer, epochs=EPOCHS, rungs=RUNGS)
    events: list[tuple[float, int, int, float, float]] = []  # when, trial, epoch, seconds an epoch, the trial's noise

    def start(now: float) -> None:
        trial = manager.next()
        if trial is not None:
            if not protected:
                trial.protected = False
            pace = random.uniform(0.9, 1.1)
            heapq.heappush(events, (now + pace, trial.number, 1, pace, random.normal(0, noise * TRIAL_NOISE)))

    for _ in range(WORKERS):
        start(0.0)
    while events:
        now, number, epoch, pace, effect = heapq.heappop(events)
        luck = effect + random.normal(0, noise * REPORT_NOISE)
        value = accuracy(surface, record.trials[number].parameters, epoch, luck)
        value = round(value * IMAGES) / IMAGES
        if manager.report(number, {"epoch": epoch, METRIC: value, "validation_loss": 1 - value}) == "continue":
            heapq.heappush(events, (now + pace, number, epoch + 1, pace, effect))
        else:
            start(now)
    return record


def reports(record: Record) -> pd.DataFrame:
    return pd.DataFrame([
        {"trial": trial.number, "epoch": report["epoch"], "accuracy": report["metrics"][METRIC],
         "protected": trial.protected, **{name: trial.parameters[name] for name in NAMES}}
        for trial in record.trials.values() for report in trial.reports])


# ---------------------------------------------------------------------------------------------------------------------
# Analyses: normalised main effects of NAMES


def fitted(record: Record) -> BudgetModel:
    learned, failures = without_failures(reports(record), DIMENSIONS, IMAGES, CHANCE)
    return BudgetModel(learned, DIMENSIONS, EPOCHS, IMAGES, failures)


def ours(record: Record) -> np.ndarray:
    return normalised(main_effects(Grid.of(fitted(record), DEFAULT)))


def normalised(effects: pd.DataFrame) -> np.ndarray:
    shares = effects[effects["other"].isna()].set_index("parameter")["share"].reindex(list(NAMES)).to_numpy()
    return shares / shares.sum()


def by_optuna(evaluator: optuna.importance.BaseImportanceEvaluator, complete_only: bool) -> Callable:
    """Optuna's importance of the trials' last values; Ray tells it so of stopped trials as well.

    temperature and lr are handed over as logarithms: fANOVA itself would take them on a linear scale.
    """
    def importance(record: Record) -> np.ndarray:
        study = optuna.create_study(direction="maximize")
        distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in NAMES}
        for trial in record.trials.values():
            if trial.state == "complete" or not complete_only:
                places = {name: float(DIMENSIONS[name].unit([trial.parameters[name]])[0, 0]) for name in NAMES}
                study.add_trial(optuna.trial.create_trial(params=places, distributions=distributions,
                                                          value=trial.metric(METRIC)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(NAMES))
        shares = np.array([found[name] for name in NAMES])
        return shares / shares.sum() if shares.sum() > 0 else np.full(3, 1 / 3)

    return importance


ANALYSES: dict[str, Callable[[Record], np.ndarray]] = {
    "kdstudy: budget GP": ours,
    "fANOVA, all trials": by_optuna(optuna.importance.FanovaImportanceEvaluator(seed=0), False),
    "fANOVA, complete trials": by_optuna(optuna.importance.FanovaImportanceEvaluator(seed=0), True),
    "PED-ANOVA, all trials": by_optuna(optuna.importance.PedAnovaImportanceEvaluator(), False),
    "PED-ANOVA, complete trials": by_optuna(optuna.importance.PedAnovaImportanceEvaluator(), True),
}


def compare(studies: int, analyses: dict[str, Callable], **search: int) -> pd.DataFrame:
    """A row per surface, study and analysis: total-variation error of the effects, and whether the top one is right."""
    rows = []
    for surface, function in SURFACES.items():
        known = truth(function)
        for seed in range(studies):
            record = simulate(function, seed, **search)
            for name, analysis in analyses.items():
                found = analysis(record)
                rows.append({"surface": surface, "study": seed, "analysis": name,
                             "error": abs(found - known.effects).sum() / 2,
                             "top": bool(found.argmax() == known.effects.argmax())})
    return pd.DataFrame(rows)


def table(compared: pd.DataFrame) -> str:
    """Markdown: per analysis and surface, the mean error and how often the top parameter is right."""
    surfaces = list(SURFACES)
    lines = ["| analysis | " + " | ".join(f"{surface}: error, top right" for surface in surfaces) + " |",
             "|---|" + "---:|" * len(surfaces)]
    for name in compared["analysis"].unique():
        mine = compared[compared["analysis"] == name].groupby("surface")[["error", "top"]].mean()
        cells = [f"{mine.loc[surface, 'error']:.2f}, {100 * mine.loc[surface, 'top']:.0f} %" for surface in surfaces]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20, help="per surface")
    parser.add_argument("--trials", type=int, nargs="+", choices=list(SIZES), default=[TRIALS])
    parser.add_argument("--words", action="store_true", help="score prices and best points on all families")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="of --words")
    parser.add_argument("--first", type=int, default=0, help="seed of the first study of --words; of 0 to 99 and "
                                                             "300 to 425, some served to choose the constants")
    parser.add_argument("--out", type=Path, help="write a row per study and price to this CSV file (of --words)")
    arguments = parser.parse_args()
    started = time.monotonic()
    if arguments.words:
        import known_words  # which imports this module

        known_words.run(arguments.studies, arguments.trials, arguments.families, arguments.out, arguments.first)
    else:
        for size in arguments.trials:
            _print_effects(arguments.studies, size)
    print(f"\n{time.monotonic() - started:.0f} s")


def _print_effects(studies: int, trials: int) -> None:
    for name, function in SURFACES.items():
        known = truth(function)
        print(f"{name}: true effects " + ", ".join(f"{p} {e:.2f}" for p, e in zip(NAMES, known.effects, strict=True))
              + f"; rank correlation of epoch 1 with {EPOCHS}: {known.rank_correlation:+.2f}")
    print(f"\n{studies} studies per surface, {trials} trials, {SIZES[trials]} protected:\n")
    print(table(compare(studies, ANALYSES, trials=trials, protected=SIZES[trials])))


if __name__ == "__main__":
    main()
