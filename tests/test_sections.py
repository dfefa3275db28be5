"""The page's figures and sentences for searches of every shape."""

import json

import numpy as np
import pandas as pd
import pytest
from running import results_of
from test_report import built, complete, drawn  # noqa: F401, complete is a fixture
from test_sensitivity import SPACE, Made, write_study

from kdstudy.analysis import report
from kdstudy.analysis.exhibits.predictions import agreement_caption
from kdstudy.analysis.figures import predictions
from kdstudy.analysis.outcome import results
from kdstudy.analysis.sensitivity.findings import analyse
from kdstudy.analysis.sensitivity.reports import reports_of
from kdstudy.analysis.sensitivity.space import space_of
from kdstudy.analysis.study_files import StudyFiles

CHOICE = {"choice": [0.25, 0.5, 0.75]}
SHAPES = {
    "temperature, alpha and lr": ("temperature", "alpha", "lr"), "lr alone": ("lr",), "alpha alone": ("alpha",),
    "an optimizer too": ("temperature", "alpha", "lr", "optimizer"), "an optimizer and lr": ("optimizer", "lr"),
}


def shown(study):
    return {exhibit.name: exhibit for exhibit in report.exhibits(study.folder)}


@pytest.mark.parametrize("names", SHAPES.values(), ids=SHAPES.keys())
def test_every_search_has_its_figures(tmp_path, names):
    made = Made(names)
    study = write_study(tmp_path / "study", made.space, {"baseline": made.trials("baseline") if names != ("alpha",)
                                                         else [], "distill": made.trials()})
    figures = drawn(built(study.folder, "report.html"))
    assert {*figures} >= {"price", "effect-curves", "effects", "curves-distill", "parallel", "history", "slices"}
    assert ("map" in figures) == (len(names) > 1) and figures["effect-curves"]


@pytest.mark.parametrize("choices", [
    pytest.param(("alpha",), marks=pytest.mark.slow), pytest.param(("temperature",), marks=pytest.mark.slow),
    ("temperature", "alpha")])
def test_temperature_and_alpha_may_be_choices(tmp_path, choices):
    made = Made(count=24, protected=24)
    trials = made.trials()
    for index, trial in enumerate(trials):
        trial.parameters |= {name: CHOICE["choice"][index % 3] for name in choices}
    space = made.space | {name: CHOICE for name in choices}
    study = write_study(tmp_path / "study", space, {"baseline": Made(("lr",)).trials("baseline"), "distill": trials})
    figures = drawn(built(study.folder, "report.html"))
    assert figures["map"][0]["type"] == "heatmap"
    baseline = [trace for trace in figures["effect-curves"] if trace.get("legendgroup") == "baseline"]
    assert bool(baseline) == ("alpha" not in choices)  # at alpha = 0 only where that is a place in its range
    counts = analyse(study)["counts"]
    assert counts["trials"] == 24 + (12 if "alpha" not in choices else 0)


def test_reports_of_failed_trials_count_up_to_the_failure(tmp_path):
    made = Made()
    trials = made.trials()
    study = write_study(tmp_path / "study", made.space, {"distill": trials})
    lines = (study.folder / "distill" / "record.jsonl").read_text().splitlines()
    last = max(index for index, line in enumerate(lines) if '"trial": 3' in line and '"report"' in line)
    event = json.loads(lines[last]) | {"decision": "failed", "reason": "train_loss is inf"}
    event["metrics"]["validation_accuracy"] = 0.01
    lines[last] = json.dumps(event)
    (study.folder / "distill" / "record.jsonl").write_text("\n".join(lines) + "\n")
    reports = reports_of(type(study)(study.folder), "distill", space_of(study, "distill"))
    assert reports.loc[reports["trial"] == 3, "accuracy"].min() > 0.01
    assert (reports["trial"] == 3).sum() == len(trials[3].accuracies) - 1


def test_a_search_that_runs_says_how_far_it_is_read_off(tmp_path):
    study = write_study(tmp_path / "study", Made().space, {"distill": Made(until=4).trials()})
    exhibits = shown(study)
    assert "at epoch 4" in exhibits["price"].caption and "full budget" not in exhibits["price"].caption
    names = {trace.name for trace in exhibits["effect-curves"].figure.data}
    assert "distillation trial at epoch 4" in names


def test_a_teacher_without_mistakes_has_none_to_imitate():
    shares = pd.DataFrame([
        {"arm": arm, "teacher": teacher, "images": images, "agreement": share, "agreement_sd": 1.0, "accuracy": share,
         "accuracy_sd": 1.0}
        for arm, share in (("baseline", 70.0), ("distilled", 80.0))
        for teacher, images, share in (("right", 100, share), ("wrong", 0, np.nan))])
    assert agreement_caption(shares).startswith("The teacher made no mistake")
    few, many = (shares.assign(images=[100, wrong] * 2, agreement=[70.0, 20.0, 80.0, 40.0]) for wrong in (3, 60))
    assert "wrong on only 3 of the test images" in agreement_caption(few)
    assert "in 40 % of the cases, 20 points more than the baseline" in agreement_caption(many)
    figure = predictions.agreement(shares)
    assert "nan" not in figure.to_json().lower() and [list(trace.y) for trace in figure.data] == [[70], [80]]


def test_the_page_of_a_study_with_finalists_has_one_winner(complete):  # noqa: F811
    folder, _ = complete
    toml = folder / "study.toml"
    toml.write_text(toml.read_text() + "\n[finalists]\nconfigurations = 2\n")
    stages = json.loads((folder / "stages.json").read_text())
    for name, winner in (("finalists_baseline", 1), ("finalists", 2)):
        stages["stages"][name] = f"{name}-0"
        (folder / f"{name}-0").mkdir()
        (folder / f"{name}-0" / "done.json").write_text(json.dumps({"seconds": 1.0, "winner": winner}))
    (folder / "stages.json").write_text(json.dumps(stages))
    assert "No verdict yet" in results(StudyFiles(folder))["verdict"]  # another trial was confirmed
    page = built(folder, "report.html")
    assert "winner: trial 2" in {trace["name"] for trace in drawn(page)["curves-distill"]}
    (folder / "finalists-0" / "done.json").write_text(json.dumps({"seconds": 1.0, "winner": 1}))
    page = built(folder, "report.html")
    assert "Distillation helps" in results_of(folder)["verdict"]
    assert "winner: trial 1" in {trace["name"] for trace in drawn(page)["curves-distill"]}


def test_space_of_these_tests_has_choices_and_ranges():
    assert {kind for described in SPACE.values() for kind in described} == {"log", "linear", "choice"}
