"""The process behind the sensitivity analysis, its failure part, and what it says where no trial is."""

import json
from pathlib import Path

import known_words
import numpy as np
import pandas as pd
import pytest
from known_answers import CHANCE, DEFAULT, DIMENSIONS, EPOCHS, IMAGES, NAMES, SIZES, reports, simulate, truth
from surfaces import FAMILIES
from test_sensitivity import Made, Trial, said_of, write_study

from kdstudy.analysis.exhibits.effects import best_map as map_exhibit
from kdstudy.analysis.figures.effect_curves import effect_curves
from kdstudy.analysis.figures.effect_map import best_map as map_figure
from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.failures import Failures, failed_trials
from kdstudy.analysis.sensitivity.findings import analyse
from kdstudy.analysis.sensitivity.fit import model_of, without_failures
from kdstudy.analysis.sensitivity.grid import Grid
from kdstudy.analysis.sensitivity.latest import LATEST
from kdstudy.analysis.sensitivity.process import Member, Prior, Rows, drawn, log_posterior
from kdstudy.analysis.sensitivity.ranking import choices
from kdstudy.analysis.study_analysis import StudyAnalysis

# ---------------------------------------------------------------------------------------------------------------------
# The process


def rows_of(surface, count: int = 40, noise: float = 0.05) -> Rows:
    """Standardised values of a surface of three inputs, two reports a trial, with the log epoch as the fourth."""
    random = np.random.default_rng(0)
    places = np.repeat(random.random((count, 3)), 2, axis=0)
    x = np.column_stack([places, np.tile([0.0, 1.0], count)])
    y = surface(*x.T) + noise * random.standard_normal(2 * count)
    return Rows(x, np.repeat(np.arange(count), 2), (y - y.mean()) / y.std(), (0, 1, 2))


def test_the_slope_of_the_posterior_is_its_difference():
    rows = rows_of(lambda t, a, l, s: t - a * l + 2 * s)  # noqa: E741
    prior = Prior.of(rows)
    values = prior.mean + 0.3 * np.random.default_rng(1).standard_normal(len(prior.mean))
    _, slope = log_posterior(values, rows, prior)
    steps = 1e-5 * np.eye(len(values))
    differences = [(log_posterior(values + step, rows, prior)[0] - log_posterior(values - step, rows, prior)[0]) / 2e-5
                   for step in steps]
    assert slope == pytest.approx(differences, rel=1e-4, abs=1e-3)


def test_the_same_rows_draw_the_same_hyperparameters_and_they_differ_among_themselves():
    rows = rows_of(lambda t, a, l, s: t - a * l + 2 * s, count=12)  # noqa: E741
    first, second = (drawn(rows, 6) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.std(0).min() > 0.05


def test_a_ridge_is_followed():
    """Along the ridge the surface is known where no trial is: far from all in every single parameter."""
    rows = rows_of(lambda t, a, l, s: -4 * (t + a - 1) ** 2, count=14)  # noqa: E741
    bends = drawn(rows, 8)[:, -3:]
    assert (abs(bends[:, 0] - bends[:, 1]) < 0.35 * abs(bends[:, 0] + bends[:, 1])).mean() > 0.7


def test_draws_at_many_points_have_the_mean_and_spread_of_the_exact_ones():
    rows = rows_of(lambda t, a, l, s: t - a * l + 2 * s, count=8)  # noqa: E741
    member = Member(Prior.of(rows).mean, rows)
    points = np.column_stack([np.random.default_rng(2).random((30, 3)), np.ones(30)])
    random = np.random.default_rng(3)
    # Each call has features of its own, whose errors are pooled, as over the members of an ensemble.
    close, exact = (np.hstack([member.read_off(points, 250, random, exact)[1] for _ in range(16)])
                    for exact in (False, True))
    spread = exact.std(1)
    assert abs(close.mean(1) - exact.mean(1)) == pytest.approx(0, abs=0.1 * spread.max())
    assert close.std(1) == pytest.approx(spread, rel=0.15, abs=0.03)
    assert np.corrcoef(close)[0, 1:] == pytest.approx(np.corrcoef(exact)[0, 1:], abs=0.15)


# ---------------------------------------------------------------------------------------------------------------------
# Failures


def test_a_trial_at_chance_has_failed_but_not_one_that_was_stopped_while_all_were():
    rows = [(0, 1, 0.1), (0, 9, 0.8), (1, 1, 0.1), (1, 9, 0.7), (2, 1, 0.1), (2, 9, 0.101), (3, 1, 0.1),
            (4, 1, 0.1), (4, 3, 0.5), (5, 1, 0.1), (5, 9, 0.13), (6, 1, 0.3), (6, 3, 0.1)]
    table = pd.DataFrame(rows, columns=["trial", "epoch", "accuracy"])
    assert failed_trials(table, 5000, 0.1) == {2, 5, 6}  # 3 was stopped at epoch 1, where the median is at chance
    assert failed_trials(table, 5000, None) == set()
    assert failed_trials(table.assign(diverged=table["trial"] == 1), 5000, None) == {1}


def test_beyond_the_last_that_learned_nothing_is_named_and_beyond_half_of_the_way_it_fails():
    random = np.random.default_rng(0)
    places = random.random((20, 3))
    bad = places[:, 2] > 0.7
    failures = Failures(places[~bad], places[bad], 0.1)
    last, first = places[~bad, 2].max(), places[bad, 2].min()
    line = np.column_stack([np.full((101, 2), 0.5), np.linspace(0, 1, 101)])
    assert not failures.learns(line)[line[:, 2] > last].any()
    assert (failures.fails(line) == (line[:, 2] > (last + first) / 2)).all()
    assert failures.learns(places[~bad]).all() and failures.fails(places[bad]).all()


def test_failures_that_no_parameter_explains_make_no_region_fail():
    """Half of all trials fail wherever they are: neither the default nor the best point may lie in a failing region."""
    random = np.random.default_rng(0)
    learned, failed = random.random((12, 3)), random.random((20, 3))
    found = Failures(learned, failed, 0.1)
    assert not found.fails(learned).any() and found.learns(learned).all() and found.fails(failed).all()
    assert not found.fails(random.random((200, 3))).any()


def test_a_slow_start_is_no_failure():
    """1 % is chance; at epoch 1 the median has 3.5 %, and a trial that is stopped there had 1.6 %."""
    reports = pd.DataFrame([
        {"trial": trial, "epoch": epoch, "accuracy": share}
        for trial in range(6) for epoch, share in ((1, 0.035), (9, 0.3))] + [
        {"trial": 6, "epoch": 1, "accuracy": 0.016}, {"trial": 7, "epoch": 1, "accuracy": 0.035},
        {"trial": 7, "epoch": 9, "accuracy": 0.012}])
    assert failed_trials(reports, 1000, 0.01) == {7}


def test_failures_at_both_ends_of_a_range_leave_the_middle():
    places = np.column_stack([np.random.default_rng(1).random(40), np.linspace(0, 1, 40)])
    bad = abs(places[:, 1] - 0.5) > 0.3
    failures = Failures(places[~bad], places[bad], 0.1)
    assert failures.fails(places[bad]).all() and not failures.fails(places[~bad]).any()
    assert failures.learns(np.array([[0.5, 0.5]])).all() and not failures.learns(np.array([[0.5, 0.02]])).any()


def with_failures(folder: Path, diverged: bool, default_fails: bool = False):
    """A study whose trials with a high lr are at chance or diverged; the default point may be one of them."""
    trials = Made(count=20, protected=20).trials()
    trials[0].parameters["lr"] = 2e-2 if default_fails else 3e-3
    for trial in trials:
        if trial.parameters["lr"] > 8e-3:
            trial.accuracies = {} if diverged else {epoch: 0.1 for epoch in trial.accuracies}
            trial.ending = "failed" if diverged else "complete"
    study = write_study(folder, Made().space, {"distill": trials})
    text = (folder / "stages.json").read_text().replace('"validation": 5000', '"validation": 5000, "classes": '
                                                        + str(list("0123456789")).replace("'", '"'))
    (folder / "stages.json").write_text(text)
    record = folder / "distill" / "record.jsonl"
    record.write_text(record.read_text().replace("out of memory", "train_loss is nan at epoch 1"))
    return type(study)(folder), [trial for trial in trials if trial.parameters["lr"] > 8e-3]


@pytest.mark.parametrize("diverged", [False, True])
def test_failed_trials_are_counted_in_a_sentence_and_nothing_good_is_said_of_where_they_lie(tmp_path, diverged):
    study, failed = with_failures(tmp_path / "study", diverged)
    found = analyse(study)
    assert (found["counts"]["unlearned"], found["counts"]["failed"]) == (len(failed), 0) and len(failed) >= 3
    assert any(text.startswith(f"{len(failed)} of 20 trials failed to learn") for _, text in said_of(study))
    assert found["best"]["parameters"]["lr"] <= 8e-3
    beyond = [row for row in found["curves"] if row["parameter"] == "lr" and row["value"] > 1.2e-2]
    assert beyond and all(row["best"] is None and row["dependence"] is None for row in beyond)
    assert found["coverage"]["trials"] == 20 - len(failed)
    ranked, shared = choices(study, "distill")
    assert shared["lr"] <= 8e-3
    if not diverged:
        numbers = {number for number, row in study.trials.set_index("trial").iterrows() if row["lr"] > 8e-3}
        assert set(ranked[-len(numbers):]) == numbers


def test_a_default_at_which_training_fails_is_said_and_priced_against_chance(tmp_path):
    study, _ = with_failures(tmp_path / "study", diverged=False, default_fails=True)
    found = analyse(study)
    price = next(row for row in found["prices"] if row["parameter"] == "lr")
    assert price["fails"] and price["price"] == pytest.approx(found["best"]["accuracy"] - 10, abs=2)
    assert "with lr at 0.02 training fails" in said_of(study)[0][1].lower()
    assert not any(row["fails"] for row in found["prices"] if row["parameter"] != "lr")


def test_chance_is_the_commonest_class_as_in_the_verdict(tmp_path):
    """Three in ten of the test images are of one class, so a trial at 30 % has not learned, of ten classes or not."""
    study, _ = with_failures(tmp_path / "study", diverged=False)
    assert study.chance == model_of(study).failures.chance == pytest.approx(0.1)
    stages = json.loads((study.folder / "stages.json").read_text())
    stages["stages"]["teacher_logits"] = "t"
    (study.folder / "stages.json").write_text(json.dumps(stages))
    (study.folder / "t").mkdir()
    labels = np.where(np.arange(1000) < 300, 0, np.arange(1000) % 9 + 1)
    pd.DataFrame({"label": labels, "prediction": labels}).to_parquet(study.folder / "t" / "test.parquet")
    study = type(study)(study.folder)
    assert study.chance == model_of(study).failures.chance == pytest.approx(0.3)
    (study.folder / "t" / "test.parquet").write_bytes(b"damaged")
    assert type(study)(study.folder).chance == pytest.approx(0.1)


def test_where_nothing_learned_it_is_one_plain_sentence(tmp_path):
    trials = [Trial({"lr": 1e-3 * (number + 1)}, {}, "failed") for number in range(6)]
    study = write_study(tmp_path / "study", {"lr": {"log": [3e-4, 3e-2]}}, {"distill": trials})
    record = tmp_path / "study" / "distill" / "record.jsonl"
    record.write_text(record.read_text().replace("out of memory", "train_loss is nan at epoch 1"))
    assert analyse(study)["missing"].startswith("6 trials failed to learn, and no distillation trial has learned; at")


# ---------------------------------------------------------------------------------------------------------------------
# Where no trial is


def cornered() -> BudgetModel:
    """Trials in one half of the temperatures only, on a surface that changes quickly there."""
    random = np.random.default_rng(0)
    places = random.random((24, 2)) * [0.45, 1.0]
    accuracy = 1 / (1 + np.exp(-1.5 * np.sin(9 * places[:, 0]) - places[:, 1] - random.normal(0, 0.02, 24)))
    space = {name: DIMENSIONS[name] for name in ("temperature", "alpha")}
    table = pd.DataFrame({"trial": np.arange(24), "epoch": 9, "accuracy": accuracy} | {
        name: dimension.at(column) for (name, dimension), column in zip(space.items(), places.T, strict=True)})
    return BudgetModel(table, space, 9, 5000)


def test_nothing_is_named_where_no_trial_is():
    model = cornered()
    grid = Grid.of(model, {})
    far = model.space["temperature"].unit(grid.axes["temperature"])[:, 0] > 0.85
    assert not grid.supported[far].any() and grid.supported[~far].mean() > 0.3
    assert model.space["temperature"].unit([grid.point(grid.argmax())["temperature"]])[0, 0] < 0.6
    assert grid.argmax(temperature=len(far) - 1) is None


def test_figures_leave_out_what_no_trial_supports(tmp_path):
    study, _ = with_failures(tmp_path / "study", diverged=False)
    found = analyse(study)
    cells = np.array(map_figure(study, found).data[0].z, dtype=object)
    assert sum(value is None for value in cells.ravel()) == sum(row["best"] is None for row in found["map"])
    figure = effect_curves(study, found)
    lines = [trace for trace in figure.data if trace.name and "at their best" in trace.name]
    assert any(value is None for trace in lines for value in trace.y)
    assert not any("nan" in str(trace.y).lower() for trace in figure.data)
    text = map_exhibit("map", StudyAnalysis(study)).caption
    assert "Where trials are, the surface is best at" in text and "grey is where no trial" in text


def test_the_winner_has_a_prediction_of_its_own(tmp_path):
    made = Made(("alpha", "lr"), 16)
    trials = made.trials()
    winner = trials[5].parameters
    study = write_study(tmp_path / "study", made.space, {"distill": trials}, winners={"distill": winner})
    found = analyse(study)
    assert found["winner"]["parameters"] == pytest.approx(winner, rel=1e-4)
    assert found["winner"]["low"] <= found["winner"]["accuracy"] <= found["winner"]["high"]
    assert found["winner"]["accuracy"] <= found["best"]["accuracy"] + 0.3
    assert analyse(write_study(tmp_path / "running", made.space, {"distill": trials}))["winner"] is None


def test_a_surface_that_changes_quickly_is_warned_of_and_what_leaving_out_cannot_see_is_said(tmp_path):
    study = write_study(tmp_path / "study", Made().space, {"distill": Made().trials()})
    said = said_of(study, supported_share=0.4, regions=2)
    assert any(kind == "warning" and "trials are near only 40 % of the space" in text for kind, text in said)
    assert any(kind == "warning" and "2 separate regions may hold the best point" in text for kind, text in said)
    assert any("cannot see a region that none has reached" in text for _, text in said_of(study))


# ---------------------------------------------------------------------------------------------------------------------
# Words on surfaces whose answer is known


@pytest.mark.parametrize("family", [pytest.param("ridge", marks=pytest.mark.slow),
                                    pytest.param("step", marks=pytest.mark.slow), "flat"])
def test_prices_and_best_points_hold_at_20_trials(family):
    rows = [row for seed in range(3) for row in known_words.scored(
        family, 20, seed, reports(simulate(FAMILIES[family], seed, 20, SIZES[20])))]
    table = known_words.by_family(pd.DataFrame(rows)).loc["mean"]
    assert table["price"] >= 8 / 9 * 100 - 1 and table["best"] > 60 and table["false"] == 0
    assert table["regret"] < 2 and table["seconds"] < 10


def test_the_best_point_of_a_step_lies_where_training_learns():
    for seed in range(3):
        record = simulate(FAMILIES["step"], seed, 20, SIZES[20])
        learned, failures = without_failures(reports(record), DIMENSIONS, IMAGES, CHANCE)
        model = BudgetModel(learned, DIMENSIONS, EPOCHS, IMAGES, failures)
        grid = Grid.of(model, DEFAULT)
        assert DIMENSIONS["lr"].unit([grid.point(grid.argmax())["lr"]])[0, 0] <= 0.7


@pytest.mark.slow
def test_words_are_calibrated_over_all_families():
    rows = [row for family in FAMILIES for seed in range(20, 23) for row in known_words.scored(
        family, 20, seed, reports(simulate(FAMILIES[family], seed, 20, SIZES[20])))]
    table = known_words.by_family(pd.DataFrame(rows))
    assert table.loc["mean", "price"] >= 88 and table.loc["mean", "best"] >= 82
    assert table.loc["mean", "top"] >= 85 and table.loc[["flat", "ridge"], "false"].max() == 0


def test_the_truth_of_a_flat_surface_is_that_nothing_costs():
    assert truth(FAMILIES["flat"]).prices == pytest.approx([0, 0, 0]) and len(NAMES) == 3


def test_two_models_of_one_study_say_the_same(tmp_path):
    study = write_study(tmp_path / "study", Made().space, {"distill": Made().trials()})
    found = analyse(study)
    LATEST.clear()  # else the second would be told what the first found
    assert found == analyse(type(study)(study.folder))
    assert isinstance(model_of(study), BudgetModel)
