"""What the report says of a search that chose among losses: the surface of each where their parameters differ, and all
of them side by side."""

import json

import numpy as np
import pytest
from test_sensitivity import EPOCHS, Trial, write_study

from kdstudy.analysis.exhibits.catalogue import exhibit, exhibits
from kdstudy.analysis.page.document import sections_of
from kdstudy.analysis.page.trials_table import trials_section
from kdstudy.analysis.sensitivity.findings import analyse
from kdstudy.analysis.sensitivity.losses import leading_loss
from kdstudy.analysis.sensitivity.ranking import choices
from kdstudy.analysis.sensitivity.space import Dimension
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.tables import show_hyperparameters

RANGES = {"temperature": {"log": [1, 16]}, "alpha": {"linear": [0, 1]}, "dkd_beta": {"log": [0.5, 16]},
          "lr": {"log": [3e-4, 3e-2]}}
OF = {"hinton": ("temperature", "alpha", "lr"), "dkd": ("temperature", "alpha", "dkd_beta", "lr"),
      "mse": ("alpha", "lr"), "ttm": ("temperature", "alpha", "lr"), "baseline": ("lr",)}
WORTH = {"hinton": 0.6, "dkd": 1.4, "mse": 0.9, "ttm": 1.1, "baseline": 0}  # logits, at alpha = 0.6 and all else best
BASELINE = -0.6  # logits, with the best learning rate


def trial_of(loss, number):
    """A trial at a random point. Each parameter is best at 0.6 of its range; at alpha = 0 the loss does not matter."""
    random = np.random.default_rng([number, len(loss)])
    places = dict(zip(OF[loss], random.random(len(OF[loss])), strict=True))
    values = {name: Dimension.of(name, RANGES[name]).at([place])[0] for name, place in places.items()}
    alpha, lr = places.pop("alpha", 0), places.pop("lr")
    logit = BASELINE + WORTH[loss] * (1 - (1 - alpha / 0.6) ** 2) - 1.5 * (lr - 0.6) ** 2 + random.normal(0, 0.02)
    logit -= 1.5 * alpha * sum((place - 0.6) ** 2 for place in places.values())
    values = values if loss == "baseline" else {"loss": loss, **values}
    return Trial(values, {3: float(1 / (1 + np.exp(0.5 - logit))), EPOCHS: float(1 / (1 + np.exp(-logit)))})


def study_of(folder, counts, winner=None, names=None):
    """counts: the trials of each loss, in turn."""
    left, trials = dict(counts), []
    while any(left.values()):
        for loss in [loss for loss in left if left[loss]]:
            trials.append(trial_of(loss, len(trials)))
            left[loss] -= 1
    names = names or dict.fromkeys(name for loss in counts for name in OF[loss])
    space = {"loss": {"choice": list(counts)}} | {name: RANGES[name] for name in names}
    arms = {"distill": trials, "baseline": [trial_of("baseline", 100 + number) for number in range(5)]}
    study = write_study(folder / "study", space, arms)
    if winner:
        done = {"parameters": winner, "seconds": 1.0, "trials": len(trials)}
        (study.folder / "distill" / "done.json").write_text(json.dumps(done))
    return study


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("unlike"), {"hinton": 10, "dkd": 11, "mse": 2},
                    winner={"loss": "dkd", "temperature": 4.0, "alpha": 0.6, "dkd_beta": 4.0, "lr": 5e-3})


@pytest.fixture(scope="module")
def analysis(unlike):
    return StudyAnalysis(unlike)


@pytest.fixture(scope="module")
def found(analysis):
    return analysis.sensitivity


def test_the_winners_loss_has_a_surface_over_its_own_parameters(found):
    assert found["loss"] == "dkd" and list(found["searched"]) == ["temperature", "alpha", "lr", "dkd_beta"]
    assert {row["parameter"] for row in found["effects"] if row["other"] is None} == set(OF["dkd"])
    # Its own trials, and the baseline's, which are those of any loss at alpha = 0.
    assert (found["counts"]["full"], found["counts"]["baseline"]) == (16, 5)
    assert set(found["winner"]["parameters"]) == set(OF["dkd"])


def test_losses_are_compared_with_their_trials_the_best_seen_and_the_best_of_the_surface(found, unlike):
    rows = {row["loss"]: row for row in found["losses"]}
    assert list(rows) == ["hinton", "dkd", "mse"] and json.dumps(found, allow_nan=False)
    assert [(row["trials"], row["full"]) for row in rows.values()] == [(10, 10), (11, 11), (2, 2)]
    for loss in ("hinton", "dkd"):
        truth, best = 100 / (1 + np.exp(-BASELINE - WORTH[loss])), rows[loss]["best"]
        assert best["low"] <= truth <= best["high"] and abs(best["accuracy"] - truth) < 4
        assert set(best["parameters"]) == set(OF[loss])
    seen = unlike.trials[unlike.trials["loss"] == "mse"]["last_validation_accuracy"].max()
    assert rows["mse"]["best_seen"] == pytest.approx(100 * seen, rel=1e-4) and "best" not in rows["mse"]
    assert rows["mse"]["missing"].startswith("Only 2 distillation trials with the loss mse have reported; at least 4")


def test_its_words_say_which_loss_they_are_about(analysis):
    price = exhibit("price", analysis)
    assert any(kind == "finding" and "with the loss dkd" in text.lower() for kind, text in price.notes)
    assert any("the trials with the loss dkd alone" in text for _, text in price.notes)
    which = exhibit("losses", analysis)
    assert which.table[2][:3] == ("dkd", "11", "11") and "luckiest" in which.caption
    assert next(text for _, text in which.notes).startswith("mse (2 trials) has no surface: Only 2 ")
    page = "".join(sections_of([which]))
    assert "<td>dkd</td>" in page and "s-losses" in page


def test_all_figures_can_be_drawn_where_trials_lack_parameters(unlike, analysis):
    drawn = {one.name: one.figure for one in exhibits(analysis) if one.figure}
    assert {"losses", "price", "effect-curves", "map", "effects", "parallel", "slices", "history"} <= set(drawn)
    for figure in drawn.values():
        assert "NaN" not in figure.to_json()
    lines = [trace for trace in drawn["parallel"].data if None in trace.y]
    assert lines and all(trace.connectgaps for trace in lines)  # such lines go on beside what their loss does not have
    curves = [trace for trace in drawn["effect-curves"].data if trace.name and "distillation trial" in trace.name]
    assert {len(trace.x) for trace in curves} == {11}
    assert "dkd_beta" not in (table := trials_section(unlike)) and "dkd beta" in table


def test_before_there_is_a_winner_the_best_trials_loss_leads(tmp_path):
    study = study_of(tmp_path, {"hinton": 5, "dkd": 5})
    best = study.trials.sort_values("last_validation_accuracy").iloc[-1]["loss"]
    assert leading_loss(study) == best == "dkd"


def test_losses_with_the_same_parameters_share_one_surface(tmp_path):
    study = study_of(tmp_path, {"hinton": 9, "ttm": 9})
    found = analyse(study)
    assert "loss" not in found and list(found["searched"]) == ["loss", "temperature", "alpha", "lr"]
    assert {"loss"} <= {row["parameter"] for row in found["prices"]}
    best = {row["loss"]: row["best"] for row in found["losses"]}
    assert best["ttm"]["accuracy"] > best["hinton"]["accuracy"] and "loss" not in best["ttm"]["parameters"]
    assert choices(study, "distill")[1].keys() == {"lr"}


def test_a_study_that_searches_no_loss_is_not_asked_which(tmp_path):
    study = write_study(tmp_path / "study", {"lr": RANGES["lr"]}, {
        "distill": [Trial({"temperature": 4.0, "alpha": 0.5, "lr": 1e-3 * (1 + n)}, {EPOCHS: 0.5 + n / 50})
                    for n in range(6)]})
    assert "losses" not in analyse(study)
    assert "losses" not in {one.name for one in exhibits(StudyAnalysis(study))}


def test_trials_of_all_losses_are_ranked_by_their_own_surfaces(unlike):
    ranking, shared = choices(unlike, "distill")
    assert sorted(ranking) == list(range(23))
    losses = unlike.trials[unlike.trials["stage"] == "distill"].set_index("trial")["loss"]
    assert list(losses[ranking[:3]]) == ["dkd"] * 3
    # Trials of a loss without a surface have their own accuracies, on the same scale.
    seen = unlike.trials[unlike.trials["loss"] == "mse"].set_index("trial")["last_validation_accuracy"]
    assert [number for number in ranking if number in seen] == list(seen.sort_values(ascending=False).index)
    # What both arms share, with the default point's loss and that loss's parameters at their defaults.
    assert losses[0] == "hinton" and shared.keys() == {"lr"}


def test_a_rows_hyperparameters_begin_with_its_loss_and_end_with_that_ones_own():
    row = {"temperature": 4.0, "alpha": 0.5, "lr": 3e-4}
    assert show_hyperparameters(row) == "T 4, α 0.5, lr 3e-4"
    assert show_hyperparameters({"loss": "dkd", **row, "dkd_beta": 8.0, "of_loss": ["dkd_beta"]}) == (
        "dkd, T 4, α 0.5, lr 3e-4, dkd_beta 8")
    assert show_hyperparameters({"loss": "mse", "alpha": 0.5, "lr": 3e-4, "of_loss": []}) == "mse, α 0.5, lr 3e-4"
