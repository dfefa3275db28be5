"""Searched settings of the recipe in the analysis: choices of numbers and words, decays just below one, their names."""

import json

import numpy as np
import pytest
from test_sensitivity import Trial, write_study

from kdstudy.analysis.figures.effect_curves import effect_curves
from kdstudy.analysis.figures.effects import effects, price_of_not_tuning
from kdstudy.analysis.figures.parallel import parallel_coordinates
from kdstudy.analysis.figures.style import parameter_axis
from kdstudy.analysis.page.trials_table import trials_section
from kdstudy.analysis.sensitivity.findings import analyse
from kdstudy.analysis.sensitivity.rungs import rung_correlations
from kdstudy.analysis.sensitivity.statements import statements
from kdstudy.analysis.tables import show_others

SPACE = {"lr": {"log": [3e-4, 3e-2]}, "freeze": {"choice": [0, 2, "all"]}, "ema": {"choice": [0, 0.999, 0.9999]},
         "layer_decay": {"linear": [0.6, 1]}}
GOOD = {0: 0.0, 2: 0.6, "all": -1.5}


def trials():
    random = np.random.default_rng(0)
    points = [{"lr": 3e-3, "freeze": 0, "ema": 0, "layer_decay": 1.0}]
    for number in range(29):
        points.append({"lr": float(10 ** random.uniform(-3.5, -1.5)), "freeze": [0, 2, "all"][number % 3],
                       "ema": [0, 0.999, 0.9999][number // 3 % 3], "layer_decay": float(random.uniform(0.6, 1))})
    made = []
    for point in points:
        logit = GOOD[point["freeze"]] + 0.5 * (point["ema"] == 0.9999) + 2 * point["layer_decay"] - 2
        made.append(Trial(point, {epoch: round(float(1 / (1 + np.exp(1 - epoch / 9 - logit))), 4)
                                  for epoch in range(1, 10)}))
    return made


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "study"
    return write_study(folder, SPACE, {"distill": trials()}, winners={"distill": {
        "lr": 3e-3, "freeze": 2, "ema": 0.9999, "layer_decay": 0.995}})


@pytest.fixture(scope="module")
def found(study):
    return analyse(study)


def test_prices_and_best_points_know_choices_of_numbers_and_words(found):
    prices = {row["parameter"]: row for row in found["prices"]}
    assert [prices[name]["default"] for name in SPACE] == [3e-3, 0, 0, 1.0]
    assert prices["freeze"]["low"] > 5 and prices["ema"]["low"] > 2  # 0.6 and 0.5 logits, near 60 %
    assert found["best"]["parameters"]["freeze"] == 2 and found["best"]["parameters"]["ema"] == 0.9999
    assert json.dumps(found, allow_nan=False)


def test_they_are_named_and_a_decay_is_told_from_one(study, found):
    said = "\n".join(text for _, text in statements(study, found, rung_correlations(study)))
    assert "leaving freeze at 0 costs" in said and "leaving ema at 0 costs" in said
    assert "The distillation's winner has layer_decay 0.995, next to 1: there is nothing beyond that bound." in said
    assert parameter_axis(SPACE["ema"])["ticktext"] == ["0", "0.999", "0.9999"]
    assert parameter_axis(SPACE["freeze"])["ticktext"] == ["0", "2", "all"]
    shown = [figure.to_json() for figure in (price_of_not_tuning(found), effects(found), effect_curves(study, found),
                                             parallel_coordinates(study))]
    assert "frozen epochs" in shown[0] and "left at 0" in shown[0]
    assert "EMA decay" in shown[2] and "0.9999" in shown[2] and "frozen epochs" in shown[3]
    section = trials_section(study)
    assert section.count('data-value="0.9999">0.9999<') == 9 and ">all</td>" in section
    assert show_others(trials()[0].parameters | {"ema": 0.9999}) == "layer_decay 1, freeze 0, ema 0.9999"
