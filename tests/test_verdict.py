"""What the verdict says, and what it must not say: studies whose every prediction is written down here."""

import json

import numpy as np
import pandas as pd
import pytest
from test_report import BASELINE, DISTILL, parameters_of, write_json, write_search, write_study

from kdstudy.analysis.families import compare
from kdstudy.analysis.outcome import results
from kdstudy.analysis.page.cards import cards
from kdstudy.analysis.study_files import StudyFiles

CLASSES, IMAGES = 4, 2000  # chance is 25 %
STAGES = ("teacher", "baseline", "teacher_logits", "distill", "confirm_baseline", "confirm")


def right_for(percents: list[float], offset: int = 0, images: int = IMAGES) -> np.ndarray:
    """Which images each seed gets right, (seeds, images): as many as the percentages say, from `offset` on."""
    counts = np.round(np.array(percents) / 100 * images).astype(int)
    return np.roll(np.arange(images) < counts[:, None], offset, axis=1)


def write_predictions(path, right):
    labels = np.arange(len(right)) % CLASSES
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"label": labels, "prediction": np.where(right, labels, (labels + 1) % CLASSES),
                  "confidence": 0.5}).to_parquet(path)


def study_of(folder, rows, teacher=90.0, same=(), baseline=BASELINE, distill=DISTILL, **settings):
    """A finished study of these rows, (arm, configuration): (seeds, images) bool; rows of `same` share its runs."""
    write_study(folder, STAGES)
    stages = json.loads((folder / "stages.json").read_text())
    images = next(iter(rows.values())).shape[1]
    write_json(folder / "stages.json", stages | {"data": stages["data"] | {"test": images, "classes": list("abcd")}})
    toml = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
                                       + toml)
    write_search(folder / "teacher-0", "baseline", {0: ([90, 90, 90, 90], "complete")}, {
        "seconds": 1.0, "trial": 0, "trials": 1, "parameters": {"lr": 1e-3}, "best_validation": 0.9,
        "model_parameters": 20000, "model": "resnet18", "kind": "CNN", "family": "ResNet"})
    for arm, trials in (("baseline", baseline), ("distill", distill)):
        write_search(folder / f"{arm}-0", arm, trials, {"seconds": 1.0, "trials": len(trials), "winner": 1, "kind": "T",
                                                        "family": "T", "best_validation": 0.7})
    write_json(folder / "teacher_logits-0" / "done.json", {"seconds": 1.0})
    write_predictions(folder / "teacher_logits-0" / "test.parquet", right_for([teacher], images=images)[0])
    for stage, arm in (("confirm_baseline-0", "baseline"), ("confirm-0", "distilled")):
        done, run = [], 0
        for (owner, configuration), right in rows.items():
            if owner != arm:
                continue
            runs = list(range(run, run + len(right)))
            if configuration in same:
                runs = next(row["runs"] for row in done if row["configuration"] == "default")
            else:
                run += len(right)
                for number, one in zip(runs, right, strict=True):
                    write_predictions(folder / stage / "runs" / f"{number:03d}" / "test.parquet", one)
            trial = {"default": 0, "tuned": 1}.get(configuration)
            done.append({"arm": arm, "configuration": configuration, "parameters": parameters_of(arm, trial or 0),
                         "trial": trial, "runs": runs})
        write_json(folder / stage / "done.json", {"seconds": 1.0, "runs": run, "rows": done, "model_parameters": 5000,
                                                  "seeds": [101 + index for index in range(len(right))]})
    return StudyFiles(folder)


BASE = np.array([60.0, 61.0, 62.0])


def raised(points: list[float], base: np.ndarray = BASE) -> np.ndarray:
    """Accuracies, seed by seed, that many points above the base."""
    return base + np.array(points)


def rows_of(baseline, tuned, **others):
    """Rows with these accuracies per seed, percent. The default rows are as good as the tuned ones unless given."""
    rows = {("baseline", "default"): others.pop("baseline_default", baseline), ("baseline", "tuned"): baseline,
            ("distilled", "default"): others.pop("default", tuned), ("distilled", "tuned"): tuned}
    rows |= {("distilled", name): values for name, values in others.items()}
    return {key: right_for(values, offset=7 * index) for index, (key, values) in enumerate(rows.items())}


def test_a_winner_without_a_gain_does_not_hide_a_row_that_has_one(tmp_path):
    """EfficientNet-Lite2 to Lite0, fine-tuned on 20 classes of CIFAR-100, 3 seeds: the gains of a real study."""
    baseline = BASE
    outcome = results(study_of(tmp_path / "s", rows_of(
        baseline, raised([1.30, 2.75, 4.25]), default=raised([2.3, 3.2, 4.05]),
        **{"only lr tuned": raised([4.25, 5.0, 5.7])}, baseline_default=baseline - 3)))
    gains = {row["configuration"]: row["gain"] for row in outcome["rows"] if row["arm"] == "distilled"}
    assert gains["tuned"]["p"] > 0.05 and gains["only lr tuned"]["p"] < 0.05
    assert outcome["verdict"].startswith("No gain for the tuned configuration shown: +2.77 points (95 % interval ")
    assert "; a gain is shown for “only lr tuned”, +4.98 points (simultaneous 95 % interval +" in outcome["verdict"]


def test_only_the_comparison_chosen_beforehand_has_an_interval_of_its_own(tmp_path):
    baseline = np.array([60.0, 61.0, 62.0, 60.5])
    rows = rows_of(baseline, raised([5.0, 6.0, 5.5, 6.5], baseline),
                   **{"only lr tuned": raised([4.0, 5.0, 4.5, 5.5], baseline)},
                   default=baseline + 2.0, baseline_default=baseline - np.array([1, 2, 1, 2]))
    study = study_of(tmp_path / "s", rows)
    outcome = results(study)
    found = {(row["arm"], row["configuration"]): row["gain"] and row["gain"]["comparisons"] for row in outcome["rows"]}
    assert found == {("teacher", "default"): None, ("baseline", "default"): 3, ("baseline", "tuned"): None,
                     ("distilled", "default"): 3, ("distilled", "only lr tuned"): 3, ("distilled", "tuned"): 1}
    one, three = outcome["gain"], compare(study, ("distilled", "only lr tuned"), ("baseline", "tuned"))
    assert three["high"] - three["low"] > 1.2 * (one["high"] - one["low"])
    assert "the intervals of the other 3 comparisons with it hold together with 95 %" in outcome["scope"]
    toml = (study.folder / "study.toml").read_text()
    (study.folder / "study.toml").write_text(toml.replace("[confirm]", '[confirm]\nprimary = "default"'))
    other = results(StudyFiles(study.folder))
    assert other["gain"]["comparisons"] == 1 and other["gain"]["mean"] == pytest.approx(2.0, abs=0.05)


def test_rows_of_the_same_runs_are_one_comparison(tmp_path):
    baseline = BASE
    rows = rows_of(baseline, raised([5.0, 6.0, 5.5]), baseline_default=raised([-1, -2, -1]))
    outcome = results(study_of(tmp_path / "s", rows, same=("tuned",)))
    default, tuned = (row["gain"] for row in outcome["rows"] if row["arm"] == "distilled")
    assert default == tuned == outcome["gain"]
    assert all(row["gain"] is None for row in outcome["rows"] if row["arm"] == "baseline")


@pytest.mark.parametrize("worst", [25.0, 30.0])
def test_a_run_that_failed_to_learn_is_named_and_the_gain_is_given_without_it(tmp_path, worst):
    baseline, tuned = np.array([60.0, 61.0, 62.0, 61.0]), np.array([65.0, 66.0, worst, 66.5])
    outcome = results(study_of(tmp_path / "s", rows_of(baseline, tuned, default=baseline)))
    assert outcome["failed_runs"] == [{"arm": "distilled", "configuration": "tuned", "seed": 103,
                                       "test_accuracy": worst}]
    assert f"1 run failed to learn (distilled tuned, seed 103: {worst:.1f} %); without its pair the gain is +5.17" in (
        outcome["verdict"])
    assert outcome["gain"]["mean"] == pytest.approx(np.mean(tuned - baseline))  # and nothing is dropped from the gain


def test_a_run_that_failed_to_learn_in_another_row_is_in_the_scope_alone(tmp_path):
    baseline, tuned = np.array([60.0, 61.0, 62.0, 61.0]), np.array([65.0, 66.0, 25.0, 66.5])
    rows = rows_of(baseline, tuned, default=np.array([62.0, 63.0, 64.0, 25.0]))
    outcome = results(study_of(tmp_path / "s", rows))
    assert "1 run failed to learn (distilled tuned, seed 103: 25.0 %); without its pair" in outcome["verdict"]
    assert "distilled default" not in outcome["verdict"] and len(outcome["failed_runs"]) == 2
    assert "Outside this comparison 1 run failed to learn (distilled default, seed 104: 25.0 %), which" in (
        outcome["scope"])
    rows = rows_of(baseline, baseline + 5.0, default=np.array([62.0, 25.0, 64.0, 25.0]))
    other = results(study_of(tmp_path / "other", rows))
    assert "failed to learn" not in other["verdict"]
    assert "2 runs failed to learn (distilled default, seed 102: 25.0 %; distilled default, seed" in other["scope"]


def test_the_scope_says_what_varies_and_what_the_interval_covers(tmp_path):
    outcome = results(study_of(tmp_path / "s", rows_of(BASE, raised([4.9, 5.0, 5.2]))))
    said = outcome["scope"].split("The gain varies with the training seed (")[1].split(". The comparison")[0]
    assert "and with the test images: the interval is for the average over new seeds and new test images" in said
    narrow = outcome["gain"]["seeds_only"]
    assert said.endswith(f"from 3 and 2,000 here; for new seeds and these very images it is {narrow['low']:+.2f} to "
                         f"{narrow['high']:+.2f}")
    (card,) = [card for card in cards(outcome, None) if card.title.startswith("Gain over")]
    assert "the average over new training seeds and new test images, from 3 seeds, the same for both arms" in card.text


def test_a_run_that_is_only_worse_than_the_others_has_not_failed(tmp_path):
    baseline = BASE
    outcome = results(study_of(tmp_path / "s", rows_of(baseline, np.array([65.0, 66.0, 48.0]))))
    assert outcome["failed_runs"] == [] and "failed to learn" not in outcome["verdict"]


def test_where_nobody_learns_there_is_no_verdict(tmp_path):
    outcome = results(study_of(tmp_path / "s", rows_of([25.0, 24.0, 26.0], [25.5, 26.0, 26.5]), teacher=80.0))
    assert outcome["verdict"].startswith("No verdict: no student does better than guessing one of 4 classes.")
    assert outcome["failed_runs"] == []


def test_a_teacher_that_guesses_is_in_the_headline(tmp_path):
    baseline = BASE
    verdict = results(study_of(tmp_path / "s", rows_of(baseline, raised([5.0, 5.2, 5.4])), teacher=24.0))["verdict"]
    assert verdict.startswith("Distillation helps: +5.20 points")
    assert "Caution: the teacher (24.0 %) is no better than guessing one of 4 classes" in verdict
    assert "the teacher itself (24.00 %) is 37.00 points worse than the tuned baseline" in verdict


def test_a_loss_is_held_against_the_default_baseline_as_a_gain_is(tmp_path):
    baseline = BASE
    rows = rows_of(baseline, raised([-5.0, -5.2, -5.4]), baseline_default=raised([-6.0, -4.0, -5.0]))
    verdict = results(study_of(tmp_path / "s", rows))["verdict"]
    assert verdict.startswith("Distillation hurts: −5.20 points")
    assert "no loss is shown over the baseline at its default point: −0.20 points (simultaneous 95 %" in verdict


@pytest.mark.parametrize(("curve", "said"), [([30, 45, 55, 70], True), ([30, 60, 69.9, 70], False)])
def test_curves_that_still_rise_are_in_the_headline(tmp_path, curve, said):
    trials = {number: ([value + number for value in curve], "complete") for number in range(3)}
    flat = {number: ([60 + number, 61, 61.5, 61.5], "complete") for number in range(3)}
    study = study_of(tmp_path / "s", rows_of(BASE, raised([5.0, 5.2, 5.4])), baseline=flat, distill=trials)
    verdict = results(study)["verdict"]
    assert ("still rose" in verdict) == said
    if said:
        assert "accuracy still rose at the end (+15.00 points from epoch 6 to 8 in the distillation search)" in verdict


def test_a_trial_run_has_no_verdict(tmp_path):
    baseline = BASE
    study = study_of(tmp_path / "s", rows_of(baseline, raised([5.0, 5.2, 5.4])), smoke=True)
    outcome = results(study)
    assert outcome["verdict"] == "A trial run: the study works; its numbers say nothing."
    assert cards(outcome, None) == [] and "interval" not in outcome["scope"] and "gain" not in outcome["scope"]
    (study.folder / "confirm-0" / "done.json").unlink()
    assert results(StudyFiles(study.folder))["verdict"] == "No verdict yet: the confirmation has not been run."


def test_a_loss_does_not_hide_a_row_that_has_a_gain_nor_what_that_gain_includes(tmp_path):
    rows = rows_of(BASE, raised([-5.0, -5.2, -5.4]), **{"only lr tuned": raised([4.6, 5.0, 5.3])},
                   baseline_default=BASE - 3)
    study = study_of(tmp_path / "s", rows)
    stages = json.loads((study.folder / "stages.json").read_text())
    stages["data"] |= {"train": 1000, "student_train": 400}
    write_json(study.folder / "stages.json", stages)
    verdict = results(StudyFiles(study.folder))["verdict"]
    assert verdict.startswith("Distillation in the tuned configuration hurts: −5.20 points")
    assert "; a gain is shown for “only lr tuned”, +4.97 points (simultaneous 95 % interval +" in verdict
    assert "few-label transfer: the gain includes knowledge of 600 images that the student never saw" in verdict


def test_a_run_that_rows_share_fails_once(tmp_path):
    baseline, tuned = np.array([60.0, 61.0, 62.0, 61.0]), np.array([65.0, 66.0, 25.0, 66.5])
    rows = rows_of(baseline, tuned, baseline_default=baseline)
    outcome = results(study_of(tmp_path / "s", rows, same=("tuned",)))
    assert outcome["failed_runs"] == [{"arm": "distilled", "configuration": "tuned", "seed": 103,
                                       "test_accuracy": 25.0}]
    assert "1 run failed to learn (distilled tuned, seed 103: 25.0 %); without its pair" in outcome["verdict"]


def test_a_run_that_the_primary_comparison_shares_with_another_row_is_in_it(tmp_path):
    baseline, default = np.array([60.0, 61.0, 25.0, 61.0]), np.array([65.0, 66.0, 67.0, 66.5])
    study = study_of(tmp_path / "s", rows_of(baseline, default), same=("tuned",))
    toml = (study.folder / "study.toml").read_text()
    (study.folder / "study.toml").write_text(toml.replace("[confirm]", '[confirm]\nprimary = "default"'))
    verdict = results(StudyFiles(study.folder))["verdict"]
    assert "(baseline tuned, seed 103: 25.0 %); without its pair the gain is +5.17" in verdict


def test_where_classes_are_unequal_always_naming_the_commonest_is_chance(tmp_path):
    rows = rows_of(np.array([60.0, 61.0, 62.0]), np.array([59.0, 60.5, 60.0]))
    study = study_of(tmp_path / "s", rows, teacher=60.0)
    for path in study.folder.rglob("test.parquet"):
        table = pd.read_parquet(path)
        right = table["label"] == table["prediction"]
        label = np.where(np.arange(len(table)) < 0.6 * len(table), 0, table["label"])
        pd.DataFrame({"label": label, "prediction": np.where(right, label, (label + 1) % CLASSES),
                      "confidence": 0.5}).to_parquet(path)
    outcome = results(StudyFiles(study.folder))
    assert outcome["chance"] == pytest.approx(70.0)  # 60 % and a quarter of the rest
    assert outcome["verdict"].startswith("No verdict: no student does better than always guessing the commonest class")


def test_every_run_that_was_tested_is_counted(tmp_path):
    """The winner has changed: the runs of the earlier one are on record, but in no row."""
    baseline = BASE
    study = study_of(tmp_path / "s", rows_of(baseline, raised([5.0, 5.2, 5.4])))
    assert "last epoch, each run tested once." in results(study)["scope"]
    events = [event for run in range(9) for event in (
        {"event": "trial", "trial": run, "parameters": parameters_of("distill", run % 2), "seed": run, "view_seed": run,
         "origin": "confirm", "protected": True, "label": ""},
        {"event": "report", "trial": run, "epoch": 8, "decision": "complete", "reason": None,
         "metrics": {"validation_accuracy": 0.7, "validation_loss": 1.0}})]
    (study.folder / "confirm-0" / "record.jsonl").write_text("".join(
        json.dumps({"sequence": index, "time": 0.0, **event}) + "\n" for index, event in enumerate(events)))
    assert "last epoch, 15 runs tested, 12 in this table." in results(StudyFiles(study.folder))["scope"]


def test_a_given_teacher_may_have_seen_the_test_images(tmp_path):
    baseline = BASE
    study = study_of(tmp_path / "s", rows_of(baseline, raised([5.0, 5.2, 5.4])))
    assert "The teacher was given" not in results(study)["scope"]
    done = json.loads((study.folder / "teacher-0" / "done.json").read_text())
    write_json(study.folder / "teacher-0" / "done.json", done | {"trials": 0})
    assert "The teacher was given: this study cannot tell whether it has seen the test images." in (
        results(StudyFiles(study.folder))["scope"])


def test_a_point_that_a_search_always_tries_and_that_failed_is_in_the_scope(tmp_path):
    rows = rows_of(BASE, raised([5.0, 6.0, 5.5]))
    whole = {number: ([50, 60, 65, 70], "complete") for number in range(4)}
    scope = results(study_of(tmp_path / "a", rows, baseline=whole, distill=whole))["scope"]
    assert "failed" not in scope
    one = whole | {0: ([50], "failed")}
    scope = results(study_of(tmp_path / "b", rows, baseline=whole, distill=one))["scope"]
    assert (" The default point of the distillation search failed (<img src=x onerror=alert(1)> out of memory); the "
            "search chose among the others. ") in scope and scope.count("failed") == 1
    both = one | {2: ([], "failed"), 3: ([], "failed")}  # trial 3 is TPE's
    scope = results(study_of(tmp_path / "c", rows, baseline=whole | {1: ([], "failed")}, distill=both))["scope"]
    assert "1 of the 2 Sobol points of the baseline search failed (<img" in scope
    assert ("The default point and 1 of the 2 Sobol points of the distillation search failed (the first: <img src=x "
            "onerror=alert(1)> out of memory); the search chose among the others.") in scope


def test_a_gain_below_the_detectable_size_is_called_exaggerated(tmp_path):
    baseline = BASE
    outcome = results(study_of(tmp_path / "s", rows_of(baseline, raised([5.0, 5.2, 5.4]))))
    seeds = outcome["evidence"]["seeds"] | {"smallest": 15.6}
    known = outcome | {"evidence": outcome["evidence"] | {"seeds": seeds}}
    found = {card.title: card.text for card in cards(known, None)}
    text = found["The smallest gain it could detect"]
    assert "This study found 5.2 all the same" in text and "probably exaggerated" in text


def looked(study, **kept):
    """The study with what its confirmation keeps of the plan and of earlier looks."""
    done = json.loads((study.folder / "confirm-0" / "done.json").read_text())
    write_json(study.folder / "confirm-0" / "done.json", done | kept)
    return results(StudyFiles(study.folder))


def look_at(seeds, trial=1, **decided):
    return {"seeds": seeds, "baseline": parameters_of("baseline", 1), "distilled": parameters_of("distill", trial),
            **decided}


SPREAD = np.array([60.0, 61.0, 62.0, 60.5, 61.5])
CLEAR, UNCLEAR = SPREAD + np.array([5.0, 6.0, 5.5, 6.5, 6.0]), SPREAD + np.array([0.1, 3.0, 3.5, -1.0, 4.0])


def test_a_study_that_stops_at_a_planned_look_says_at_which_and_why(tmp_path):
    study = study_of(tmp_path / "s", rows_of(SPREAD, CLEAR))
    single = results(study)
    assert "look" not in single and "planned" not in single["scope"]
    planned = looked(study, plan=[3, 5, 10], looks=[look_at(3, goes_on=True), look_at(5)])
    assert ("Stopped at the second of three planned looks, 5 seeds, because its interval leaves out zero. "
            "All planned looks "
            "(3, 5 and 10 seeds) share 5 %: this interval is that of a single look at 1.3 %.") in planned["scope"]
    assert planned["gain"]["low"] < single["gain"]["low"] and planned["gain"]["high"] > single["gain"]["high"]
    assert planned["gain"]["p"] == pytest.approx(single["gain"]["p"] * 0.05 / planned["look"]["level"])
    assert planned["evidence"]["seeds"]["smallest"] > single["evidence"]["seeds"]["smallest"]


def test_a_look_that_decides_nothing_is_no_stop_unless_it_is_the_last_or_the_gain_is_too_small(tmp_path):
    study = study_of(tmp_path / "s", rows_of(SPREAD, UNCLEAR))
    assert "At the first of two planned looks, 5 seeds. All" in looked(study, plan=[5, 10])["scope"]
    assert "Stopped at the second of two planned looks, 5 seeds, the last. All" in looked(study, plan=[3, 5])["scope"]
    toml = (study.folder / "study.toml").read_text()
    (study.folder / "study.toml").write_text(toml.replace("[confirm]", "[confirm]\ngain = 20.0"))
    scope = looked(study, plan=[5, 10])["scope"]
    assert "5 seeds, because its interval lies below confirm.gain = 20 points. All" in scope


def test_more_seeds_that_were_not_planned_widen_the_interval_and_what_they_unsettle_is_said(tmp_path):
    """3 seeds had shown a gain; the 5 that were run then do not, at the 0.25 % that are left."""
    study = study_of(tmp_path / "s", rows_of(SPREAD, SPREAD + np.array([5.0, 5.2, 5.4, 3.0, 8.0])))
    assert results(study)["gain"]["p"] < 0.05
    later = looked(study, looks=[look_at(3)])
    assert later["look"]["level"] == 0.0025 and later["gain"]["p"] > 0.05
    assert later["verdict"].startswith("No gain from distillation shown")
    assert ("Look 2 at these test images was not planned: its interval is wider, that of a single look at 0.25 %, "
            "because the plan has used up the 5 %. An earlier look, at 3 seeds, had found +5.20 points (95 % interval "
            "+") in later["scope"]


def test_a_look_with_one_seed_spends_nothing(tmp_path):
    """The verdict then says to run more seeds; those have all of the 5 %."""
    study = study_of(tmp_path / "s", rows_of(SPREAD, CLEAR))
    single = results(study)
    again = looked(study, plan=[1], looks=[look_at(1), look_at(5)])
    assert again["gain"] == single["gain"] and again["scope"] == single["scope"]


def test_another_winner_on_the_same_images_is_another_look(tmp_path):
    study = study_of(tmp_path / "s", rows_of(SPREAD, CLEAR))
    third = looked(study, looks=[look_at(5, trial=0), look_at(5, trial=2), look_at(5)])
    assert third["look"]["number"] == 3 and third["look"]["level"] == 0.00125 and third["look"]["shown"] is None
    assert looked(study, looks=[look_at(5), look_at(5, trial=2)])["scope"] == results(study)["scope"]  # the first again
    families = {row["gain"]["comparisons"] for row in third["rows"] if row["gain"]}
    assert len(families) == 2  # the other rows share this look's level too
    one, many = (outcome["rows"][-2]["gain"] for outcome in (looked(study, looks=[]), third))
    assert many["high"] - many["low"] > 1.5 * (one["high"] - one["low"])


def test_while_a_study_goes_on_its_last_look_is_reported(tmp_path):
    """The baseline has all 5 seeds of the next look, the distillation the first 3."""
    study = study_of(tmp_path / "s", rows_of(SPREAD, UNCLEAR))
    done = json.loads((study.folder / "confirm-0" / "done.json").read_text())
    rows = [{**row, "runs": row["runs"][:3]} for row in done["rows"]]
    assert looked(study, rows=rows)["gain"] is None
    outcome = looked(study, rows=rows, plan=[3, 5], looks=[look_at(3, goes_on=True)])
    assert outcome["gain"]["seeds"] == 3 and "At the first of two planned looks, 3 seeds." in outcome["scope"]


def test_the_card_on_power_says_how_to_start_what_it_asks_for(tmp_path):
    outcome = results(study_of(tmp_path / "s", rows_of(SPREAD, UNCLEAR)))
    needed = {"0.5": None, "1": 41, "2": 20, "5": 4}
    known = outcome | {"evidence": outcome["evidence"] | {"seeds": {"seeds": 5, "smallest": 3.0, "needed": needed}}}
    text = {card.title: card.text for card in cards(known, None)}["The smallest gain it could detect"]
    assert ("2 points would need 20 seeds (--set confirm.seeds=20 adds them to this study; unless they were planned "
            "before its first look, its interval is then wider. --set seed=1 --set 'confirm.seeds=[5,10,20]' plans "
            "them in a new one") in text
