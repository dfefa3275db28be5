"""The sensitivity analysis: right on surfaces whose answer is known, silent or warning where it cannot know."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import known_answers
import numpy as np
import pandas as pd
import pytest
from known_answers import ANALYSES, DEFAULT, DIMENSIONS, NAMES, SURFACES
from yardstick import slowness

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.effects import NEAR_BEST, best_map, curves, main_effects
from kdstudy.analysis.sensitivity.findings import analyse
from kdstudy.analysis.sensitivity.fit import model_of
from kdstudy.analysis.sensitivity.grid import Grid
from kdstudy.analysis.sensitivity.prices import prices
from kdstudy.analysis.sensitivity.process import Member
from kdstudy.analysis.sensitivity.ranking import choices
from kdstudy.analysis.sensitivity.rungs import rung_correlations
from kdstudy.analysis.sensitivity.space import Dimension
from kdstudy.analysis.sensitivity.statements import _edges, statements
from kdstudy.analysis.study_files import ARMS, StudyFiles
from kdstudy.config.settings import StudyConfig

EPOCHS, RUNGS = 9, [3]
SPACE = {"temperature": {"log": [1, 16]}, "alpha": {"linear": [0, 1]}, "lr": {"log": [3e-4, 3e-2]},
         "optimizer": {"choice": ["adamw", "sgd"]}, "batch_size": {"choice": [64, 128, 1024]}}


# ---------------------------------------------------------------------------------------------------------------------
# Studies on disk


@dataclass
class Trial:
    """What a record says of one trial; accuracies 0 to 1 by epoch, None where it was not a number."""

    parameters: dict[str, Any]
    accuracies: dict[int, float | None]
    ending: str = "complete"  # or stop, continue (still running), failed
    protected: bool = True


def write_study(folder: Path, space: dict[str, dict], trials: dict[str, list[Trial]], epochs: int = EPOCHS,
                rungs: list[int] = RUNGS, winners: dict[str, dict] | None = None) -> StudyFiles:
    """A study with the trials of each arm; `winners` are the parameters that the done-marks name."""
    folder.mkdir()
    ranges = [f"{name} = {{{kind} = {json.dumps(values)}}}" for name, described in space.items()
              for kind, values in described.items()]
    (folder / "study.toml").write_text("\n".join(["[search]", *ranges]))
    (folder / "stages.json").write_text(json.dumps({
        "name": "made up", "data": {"validation": 5000}, "epochs": epochs, "rungs": rungs,
        "stages": {arm: arm for arm in trials}}))
    for arm, own in trials.items():
        (folder / arm).mkdir()
        lines = [json.dumps({"sequence": index, "time": 0.0, **event}) for index, event in enumerate(events(own))]
        (folder / arm / "record.jsonl").write_text("\n".join(lines) + "\n")
        if winners:
            (folder / arm / "done.json").write_text(json.dumps({"parameters": winners.get(arm, {})}))
    return StudyFiles(folder)


def events(trials: list[Trial]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"event": "session"}]
    for number, trial in enumerate(trials):
        found.append({"event": "trial", "trial": number, "parameters": trial.parameters, "seed": number, "view_seed": 0,
                      "origin": "sobol" if number else "default", "protected": trial.protected, "label": ""})
        for epoch, accuracy in trial.accuracies.items():
            over = epoch == max(trial.accuracies) and trial.ending != "failed"
            found.append({"event": "report", "trial": number, "epoch": epoch, "reason": None,
                          "decision": trial.ending if over else "continue",
                          "metrics": {"validation_accuracy": accuracy, "validation_loss": 1.0}})
        if trial.ending == "failed":
            found.append({"event": "end", "trial": number, "reason": "out of memory"})
    return found


@dataclass
class Made:
    """Trials at random points, whose accuracy falls with the distance from 0.6 of each range."""

    names: tuple[str, ...] = ("temperature", "alpha", "lr")
    count: int = 12
    until: int = EPOCHS  # the last epoch that anybody has reported
    protected: int = 12
    every: float | None = None  # all accuracies, where given
    lost: tuple[int, ...] = ()  # trials whose accuracies are None
    failed: tuple[int, ...] = ()  # trials that failed, every second one before it reported

    @property
    def space(self) -> dict[str, dict]:
        return {name: SPACE[name] for name in self.names}

    def trials(self, arm: str = "distill") -> list[Trial]:
        names = [name for name in self.names if arm == "distill" or name not in ("temperature", "alpha")]
        return [self._trial(number, names, np.random.default_rng([number, len(arm)])) for number in range(self.count)]

    def _trial(self, number: int, names: list[str], random: np.random.Generator) -> Trial:
        places, noise = random.random(len(names)), random.normal(0, 0.03, EPOCHS)
        stopped = number >= self.protected and random.random() < 0.6
        last = min(RUNGS[0] if stopped else EPOCHS, self.until)
        quality = -sum((index + 1) * (place - 0.6) ** 2 for index, place in enumerate(places))
        parameters = {name: Dimension.of(name, SPACE[name]).at([place])[0]
                      for name, place in zip(names, places, strict=True)}
        accuracies = {epoch: self._accuracy(number, epoch, quality + noise[epoch - 1]) for epoch in range(1, last + 1)}
        ending = "complete" if last == EPOCHS else "stop" if stopped else "continue"
        if number in self.failed:
            accuracies, ending = ({} if number % 2 else accuracies), "failed"
        return Trial(parameters, accuracies, ending, number < self.protected)

    def _accuracy(self, number: int, epoch: int, quality: float) -> float | None:
        if number in self.lost or self.every is not None:
            return None if number in self.lost else self.every
        logit = -1 + 1.5 * np.log(epoch) / np.log(EPOCHS) + quality
        return round(float(1 / (1 + np.exp(-logit))), 4)


def of_record(folder: Path, record, protect: bool = True) -> StudyFiles:
    """A search of `known_answers` as a study's folder."""
    trials = [Trial(trial.parameters, {report["epoch"]: report["metrics"]["validation_accuracy"]
                                       for report in trial.reports},
                    trial.reports[-1]["decision"], trial.protected and protect) for trial in record.trials.values()]
    space = {name: {dimension.kind: list(dimension.values)} for name, dimension in DIMENSIONS.items()}
    return write_study(folder, space, {"distill": trials}, known_answers.EPOCHS, known_answers.RUNGS)


def said_of(study: StudyFiles, **changed: Any) -> list[tuple[str, str]]:
    found = analyse(study)
    return statements(study, found | changed, rung_correlations(study))


def warnings_of(study: StudyFiles, **changed: Any) -> str:
    return "\n".join(text for kind, text in said_of(study, **changed) if kind == "warning")


# ---------------------------------------------------------------------------------------------------------------------
# What it says where it cannot know


def test_importing_the_report_loads_nothing_heavy():
    code = ("import sys; import kdstudy.analysis.report\n"
            "heavy = {'sklearn', 'torch', 'ray', 'optuna', 'kdstudy.study', 'kdstudy.trainables'}\n"
            "print(sorted(heavy & set(sys.modules)))")
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


BEGUN = {
    "nothing": ({}, "No baseline trial has reported yet."),
    "only the baseline has begun": ({"baseline": [Trial({"lr": 1e-3}, {}, "continue")]},
                                    "No baseline trial has reported yet."),
    "the distillation has begun": ({"baseline": Made().trials("baseline"),
                                    "distill": [Trial(DEFAULT, {}, "continue")]},
                                   "No distillation trial has reported yet."),
    "no accuracy is a number": ({"distill": Made(lost=tuple(range(12))).trials()},
                                "No distillation trial has reported yet."),
    "three trials": ({"distill": Made(count=3).trials()}, "Only 3 distillation trials have reported; at least 4"),
    "all have failed": ({"distill": Made(count=6, failed=tuple(range(6))).trials()},
                        "Only 3 distillation trials have reported; at least 4"),
    "constant": ({"distill": Made(every=0.1).trials()}, "All trials have the same accuracy at epoch 9"),
    "always right": ({"distill": Made(every=1.0).trials()}, "All trials have the same accuracy at epoch 9"),
}


@pytest.mark.parametrize("state", BEGUN)
def test_what_it_cannot_say_is_one_plain_sentence(tmp_path, state):
    trials, sentence = BEGUN[state]
    study = write_study(tmp_path / "study", Made().space, trials)
    found = analyse(study)
    assert found["missing"].startswith(sentence)
    assert "prices" not in found and json.dumps(found, allow_nan=False)
    assert said_of(study)[0] == ("note", found["missing"])
    assert choices(study, "distill")[1] is None


def test_a_search_of_nothing_says_so(tmp_path):
    study = write_study(tmp_path / "study", {}, {"distill": [Trial(DEFAULT, {1: 0.5, 9: 0.6})]})
    assert analyse(study)["missing"].startswith("The distillation searched no parameter")


ALONE, BOTH = ("distill",), ("baseline", "distill")
SHAPES = {
    "one parameter": (Made(("lr",), 20), BOTH),
    "one choice": (Made(("optimizer",), 20), ALONE),
    "two": (Made(("temperature", "alpha"), 20), BOTH),
    "five with choices": (Made(tuple(SPACE), 18), BOTH),
    "five trials": (Made(count=5), ALONE),
    "failed trials": (Made(count=16, failed=(2, 3, 4, 5)), ALONE),
    "numbers missing": (Made(("temperature", "lr"), lost=(2, 5)), ALONE),
    "all running": (Made(("alpha", "lr"), until=4), BOTH),
    "only the baseline": (Made(("alpha", "lr")), ("baseline",)),
}


@pytest.mark.parametrize("shape", [pytest.param(name, marks=pytest.mark.slow) if name == "five with choices" else name
                                   for name in SHAPES])
def test_every_shape_of_search_has_complete_results(tmp_path, shape):
    made, arms = SHAPES[shape]
    study = write_study(tmp_path / "study", made.space, {arm: made.trials(arm) for arm in arms})
    found, names = analyse(study), list(made.names) if "distill" in arms else ["lr"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {row["parameter"] for row in found["prices"]} == set(names)
    singles = [row for row in found["effects"] if row["other"] is None]
    assert [row["parameter"] for row in singles] == names
    assert len(found["effects"]) == len(names) * (len(names) + 1) // 2
    shares = sum(row["share"] for row in found["effects"])  # all of the variance, where no three parameters interact
    assert shares == pytest.approx(1, abs=1e-3) if len(names) < 3 else 0.5 < shares < 1.001
    assert all(row["low"] <= row["high"] for row in found["prices"] + found["effects"] + found["effects_near"])
    assert (found["map"] is None) == (len(names) == 1)
    for name, dimension in found["searched"].items():
        axis = [row["value"] for row in found["curves"] if row["parameter"] == name]
        (kind, values), = dimension.items()
        assert axis == values if kind == "choice" else axis[0] == values[0] and axis[-1] == values[1]
    (kind, headline), *rest = said_of(study)
    assert kind == "finding" and ("everything else" in headline) == (len(names) > 1)
    assert ("the baseline search" in headline) == (arms == ("baseline",))
    assert any("4 failed trials" in text for _, text in rest) == (shape == "failed trials")


def test_the_baseline_counts_as_the_distillation_at_alpha_0(tmp_path):
    made = Made(("temperature", "alpha", "lr"), 16)
    trials = {"baseline": made.trials("baseline"), "distill": made.trials()}
    alone, both = (analyse(write_study(tmp_path / name, made.space, {arm: trials[arm] for arm in arms}))
                   for name, arms in (("alone", ["distill"]), ("both", ["baseline", "distill"])))
    assert (alone["counts"]["baseline"], both["counts"]["baseline"]) == (0, sum(
        trial.ending == "complete" for trial in trials["baseline"]))
    assert alone["counts"]["protected"] == both["counts"]["protected"] == 12
    best = max(trial.accuracies[EPOCHS] for trial in trials["baseline"] if trial.ending == "complete")
    at_0 = [next(row for row in found["curves"] if row["parameter"] == "alpha")["best"] for found in (alone, both)]
    assert at_0[1] == pytest.approx(100 * best, abs=3)  # trials at a low alpha are far worse than the baseline here
    assert at_0[0] < at_0[1] - 5


def test_nothing_is_read_off_where_nobody_has_been(tmp_path):
    made = Made(until=4)
    trials = made.trials()
    trials[0] = Made(count=1).trials()[0]  # one that is far ahead is not enough
    baseline = Made().trials("baseline")
    study = write_study(tmp_path / "study", made.space, {"baseline": baseline, "distill": trials})
    found = analyse(study)
    assert (found["budget"], found["epochs"]) == (4, EPOCHS)
    seen = [100 * trial.accuracies[4] for trial in trials]
    assert found["best"]["accuracy"] < max(seen) + 3
    assert max(100 * trial.accuracies[EPOCHS] for trial in baseline) > max(seen) + 10
    said = said_of(study)
    assert said[0][1].startswith("At epoch 4 of 9, with everything else tuned again,")
    assert "Fewer than 4 distillation trials have reached the full 9 epochs yet" in warnings_of(study)
    assert choices(study, "distill") == ([0], None)


def test_at_the_full_budget_nothing_is_said_of_an_earlier_epoch(tmp_path):
    made = Made(("lr",), 20)
    study = write_study(tmp_path / "study", made.space, {"distill": made.trials()})
    assert "epoch" not in "".join(text for _, text in said_of(study)) + warnings_of(study)


@pytest.mark.parametrize(("arm", "name", "value", "expected"), [
    ("distill", "temperature", 15.8, "at the upper edge of [1, 16]: better values may lie beyond; raise the upper "
                                     "bound of search.temperature"),
    ("distill", "temperature", 1.05, "lower the lower bound of search.temperature"),
    ("baseline", "lr", 2.9e-2, "The baseline's winner has lr 0.029, at the upper edge of [0.0003, 0.03]"),
    ("distill", "alpha", 0.98, "alpha 0.98, next to 1, the teacher's predictions alone: there is nothing beyond"),
    ("distill", "alpha", 0.0, "alpha 0, next to 0, the labels alone: there is nothing beyond"),
    ("distill", "lr", 3e-3, None),
    ("distill", "temperature", 14.0, "at the upper edge"),
    ("distill", "temperature", 13.0, None),
])
def test_a_winner_at_an_edge_names_the_bound_to_move(tmp_path, arm, name, value, expected):
    inner = {"baseline": {"lr": 2e-3}, "distill": DEFAULT}
    winners = inner | {arm: inner[arm] | {name: value}}
    made = Made(count=2)
    study = write_study(tmp_path / "study", made.space,
                        {name: made.trials(name) for name in ("baseline", "distill")}, winners=winners)
    said = [text for _, text in said_of(study) if "winner has" in text]
    assert len(said) == (expected is not None)
    if expected:
        assert expected in said[0] and said[0].startswith(f"The {ARMS[arm]}'s winner")
        assert ("bound of search" in said[0]) == (name != "alpha")


@pytest.mark.parametrize(("low", "high", "default", "expected"), [
    (1.0, 3.0, 2e-3, "better values may lie beyond; raise the upper bound of search.lr and run again"),
    (-0.5, 3.0, 2e-3, "No cost of leaving lr at 0.002 is shown, so this may be chance; if not, better values may lie"),
    (-0.2, 0.4, 2e-3, None),  # surely no reason to search on
    (-0.2, 0.4, 2.9e-2, "better values may lie beyond the upper bound"),  # the price is of the very same edge
])
def test_advice_about_an_edge_depends_on_what_the_parameter_costs(tmp_path, low, high, default, expected):
    made = Made(("lr",), 2)
    study = write_study(tmp_path / "study", made.space, {"distill": made.trials()},
                        winners={"distill": {"lr": 2.9e-2}})
    prices = [{"parameter": "lr", "default": default, "price": max(0.0, (low + high) / 2), "low": low, "high": high}]
    said = [text for text in _edges(study, {"arm": "distill", "prices": prices}) if "winner has" in text]
    assert len(said) == (expected is not None)
    if expected:
        assert expected in said[0]


def test_a_bound_inside_what_is_possible_can_be_moved_for_alpha_too(tmp_path):
    made = Made(("alpha",), 2)
    study = write_study(tmp_path / "study", {"alpha": {"linear": [0.2, 0.8]}}, {"distill": made.trials()},
                        winners={"distill": {"alpha": 0.79}})
    assert any("raise the upper bound of search.alpha" in text for _, text in said_of(study))


def test_coverage_under_80_percent_is_not_to_be_trusted(tmp_path):
    made = Made(("lr",), 16)
    study = write_study(tmp_path / "study", made.space, {"distill": made.trials()})
    trusted, doubted = ({"coverage": {"inside": inside, "trials": 10}} for inside in (8, 7))
    assert "do not trust" not in warnings_of(study, **trusted)
    assert ("note", "Leaving out one trial at a time, 8 of 10 lie inside the 90 % interval that the others predict "
                    "for them (80 %). This checks the surface where trials are; it cannot see a region that none "
                    "has reached.") in said_of(study, **trusted)
    assert "(70 %). That is less than 80 %: do not trust the intervals here" in warnings_of(study, **doubted)


@pytest.mark.parametrize(("made", "expected"), [
    (Made(("alpha", "lr"), 16, protected=0), "From search data only: no protected trials"),
    (Made(("alpha", "lr"), 16, protected=1), "From search data only: 1 protected trial at"),
    (Made(("alpha", "lr"), 5), "Only 5 distillation trials reached epoch 9, for 2 searched parameters: with fewer "
                               "than 6 the intervals are narrower than they should be; set search.protected = 5 or "),
    (Made(("alpha", "lr"), 8), None)])
def test_too_little_design_is_said(tmp_path, made, expected):
    trials = {"baseline": Made(("lr",), 9).trials("baseline"), "distill": made.trials()}
    said = warnings_of(write_study(tmp_path / "study", made.space, trials, winners={"distill": {}}))
    assert (expected or "") in said
    unfinished = warnings_of(write_study(tmp_path / "unfinished", made.space, trials))
    assert ("the search is still running, so wait for more" in unfinished) == (expected is not None)
    assert ("search data only" in said or "narrower" in said) == (expected is not None)


def test_fewer_than_four_at_the_full_budget_rank_by_their_own_accuracies(tmp_path):
    trials = [Trial({"lr": 1e-3 * (number + 1)}, {3: 0.9 - 0.1 * number, 9: accuracy}, "complete")
              for number, accuracy in enumerate((0.5, 0.7, 0.6))]
    trials += [Trial({"lr": 1e-2}, {3: 0.2}, "stop", False)]
    study = write_study(tmp_path / "study", {"lr": SPACE["lr"]}, {"distill": trials})
    assert choices(study, "distill")[0] == [1, 2, 0]


# ---------------------------------------------------------------------------------------------------------------------
# The process


def test_leaving_a_trial_out_in_closed_form_equals_doing_it(tmp_path):
    made = Made(("alpha", "lr"), 10)
    study = write_study(tmp_path / "study", made.space, {"distill": made.trials()})
    model = model_of(study)
    closed = model.leave_trial_out().set_index("trial")
    at_budget = (model.rows["epoch"] == model.budget).to_numpy()
    assert len(closed) == at_budget.sum() == 10
    for trial in (0, 7):
        own = (model.rows["trial"] == trial).to_numpy()
        without, at = model._observed.part(~own), model._observed.x[own & at_budget]
        random = np.random.default_rng(0)
        drawn = np.concatenate([
            member.read_off(at, 20000, random, exact=True)[1][0]
            + np.sqrt(member.kernel.effect + member.kernel.noise) * random.standard_normal(20000)
            for member in (Member(values, without) for values in model.hyperparameters)])
        expected = 100 / (1 + np.exp(-(model._middle + model._spread * np.quantile(drawn, [0.05, 0.95]))))
        assert closed.loc[trial, ["low", "high"]].tolist() == pytest.approx(expected, abs=0.1)


def test_many_reports_are_thinned_but_none_at_the_budget():
    epochs = np.arange(1, 51)
    reports = pd.DataFrame({"trial": np.repeat(np.arange(80), 50), "epoch": np.tile(epochs, 80)})
    reports["lr"] = 3e-4 * 100 ** (reports["trial"] / 80)
    reports["accuracy"] = 0.3 + 0.004 * reports["epoch"] + 0.001 * reports["trial"]
    rows = BudgetModel(reports, {"lr": DIMENSIONS["lr"]}, 40).rows
    assert (rows["epoch"] == 40).sum() == 80 and rows["epoch"].max() == 40
    assert 500 < (rows["epoch"] < 40).sum() <= 600


# ---------------------------------------------------------------------------------------------------------------------
# Surfaces whose answer is known

STUDIES = 3


@cache
def simulated(surface: str, seed: int):
    """A simulated search of a surface."""
    return known_answers.simulate(SURFACES[surface], seed)


@cache
def searched(surface: str, seed: int):
    """A simulated search of a surface, its process and its grid."""
    record = simulated(surface, seed)
    model = known_answers.fitted(record)
    return record, model, Grid.of(model, DEFAULT)


def errors(surface: str, found: list[np.ndarray]) -> tuple[float, list[bool]]:
    """The mean total-variation error of the main effects, and per study whether the top one is right."""
    known = known_answers.truth(SURFACES[surface]).effects
    return (float(np.mean([abs(shares - known).sum() / 2 for shares in found])),
            [bool(shares.argmax() == known.argmax()) for shares in found])


def our_effects(surface: str) -> list[np.ndarray]:
    return [known_answers.normalised(main_effects(searched(surface, seed)[2])) for seed in range(STUDIES)]


def test_the_surfaces_are_what_they_claim():
    known = {name: known_answers.truth(surface) for name, surface in SURFACES.items()}
    assert known["aligned"].rank_correlation > 0.99
    assert known["crossing"].rank_correlation < -0.3 and known["cliff"].rank_correlation < -0.3
    assert [NAMES[known[name].effects.argmax()] for name in ("aligned", "crossing", "cliff")] == ["lr", "alpha", "lr"]


@pytest.mark.slow
@pytest.mark.parametrize(("surface", "bound"), [("aligned", 0.1), ("crossing", 0.1), ("cliff", 0.03)])
def test_main_effects_are_those_of_the_surface(surface, bound):
    error, top = errors(surface, our_effects(surface))
    assert error < bound
    assert all(top) or surface == "aligned"  # whose two largest lie close together


@pytest.mark.slow
def test_fanova_over_all_trials_is_misled_where_early_rankings_cross():
    others = [ANALYSES["fANOVA, all trials"](searched("crossing", seed)[0]) for seed in range(STUDIES)]
    error, top = errors("crossing", others)
    assert error > 2 * errors("crossing", our_effects("crossing"))[0]
    assert not all(top)


@pytest.mark.slow
def test_near_the_best_a_cliff_matters_less():
    grid = searched("cliff", 0)[2]
    shares = {near: main_effects(grid, near).set_index(["parameter", "other"])["share"]["lr"].iloc[0]
              for near in (None, NEAR_BEST)}
    assert shares[NEAR_BEST] < shares[None] - 0.2


@pytest.mark.parametrize(("surface", "bound", "studies"), [
    pytest.param("aligned", 1.5, STUDIES, marks=pytest.mark.slow), ("crossing", 1.5, 1),
    pytest.param("crossing", 1.5, STUDIES, marks=pytest.mark.slow),
    pytest.param("cliff", 4, STUDIES, marks=pytest.mark.slow)])
def test_prices_are_those_of_the_surface(surface, bound, studies):
    known, inside = known_answers.truth(SURFACES[surface]).prices, []
    for seed in range(studies):
        _, model, grid = searched(surface, seed)
        found = prices(model, grid, DEFAULT).set_index("parameter").loc[list(NAMES)]
        assert found["price"].to_numpy() == pytest.approx(known, abs=bound)
        inside += list((found["low"] - 0.15 <= known) & (known <= found["high"] + 0.15))
    assert np.mean(inside) >= 7 / 9


def test_curves_and_map_are_those_of_the_surface():
    grid = searched("crossing", 0)[2]
    places = [DIMENSIONS[name].unit(grid.axes[name])[:, 0] for name in NAMES]
    true = 100 / (1 + np.exp(-SURFACES["crossing"](*np.meshgrid(*places, indexing="ij"), 1.0)))
    table = curves(grid)
    for axis, name in enumerate(NAMES):
        own, others = table[table["parameter"] == name], tuple({0, 1, 2} - {axis})
        assert abs(own["best"].to_numpy() - true.max(others)).mean() < 1.5
        assert abs(own["dependence"].to_numpy() - true.mean(others)).mean() < 2.5
        assert (own["best_low"] <= own["best"]).all() and (own["best"] <= own["best_high"]).all()
    map_of, turned = (best_map(grid, *pair).pivot(index="temperature", columns="alpha", values="best")
                      for pair in (("temperature", "alpha"), ("alpha", "temperature")))
    assert abs(map_of.to_numpy() - true.max(2)).mean() < 1.5
    assert map_of.equals(turned)


def on_rungs(study, correlations) -> list[str]:
    """What is said of the rungs, which needs no surface."""
    said = statements(study, {"missing": "no surface"}, correlations)
    return [text for _, text in said if "predict the end" in text]


def test_early_rungs_that_mislead_are_warned_of_with_a_remedy_that_works(tmp_path):
    study = of_record(tmp_path / "study", simulated("crossing", 0))
    correlations = rung_correlations(study)
    at_3 = correlations[(correlations["rung"] == 3) & (correlations["later"] == 27)].iloc[0]
    assert at_3["protected"] and at_3["trials"] == 12 and at_3["correlation"] < 0.5
    (text,) = on_rungs(study, correlations)
    assert f"{at_3['correlation']:+.2f} over 12 protected trials" in text
    key, value = text.rsplit("(search.", 1)[1].split(")")[0].split(" = ")
    config = StudyConfig.model_validate({"name": "x", "teacher": {"model": "a"}, "student": {"model": "b"},
                                         "train": {"epochs": 27}, "search": {key: json.loads(value)}})
    assert 3 not in config.rungs


def test_rungs_that_predict_the_end_are_not_warned_of(tmp_path):
    study = of_record(tmp_path / "study", simulated("aligned", 0))
    correlations = rung_correlations(study)
    assert len(correlations) == 3 and (correlations["correlation"] > 0.8).all()
    assert on_rungs(study, correlations) == []


@pytest.mark.slow
def test_two_thousand_trials_take_seconds(tmp_path):
    made = Made(count=2000, protected=2000)
    study = write_study(tmp_path / "study", made.space, {"distill": made.trials()})
    slow, started = slowness(time.process_time), time.process_time()
    found = analyse(study)
    seconds = time.process_time() - started
    assert seconds < 40 * max(slow, slowness(time.process_time))
    assert found["counts"]["full"] == 2000 and found["coverage"]["inside"] > 1600
