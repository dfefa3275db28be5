"""Several teachers: the interval over them, what the page says, and which stages more of them add."""

import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
from known_nulls import NULLS, false_taught
from running import KDSTUDY, ONE_AT_A_TIME, SECOND_TEACHER, kdstudy, results_of, wait_until, with_set
from scipy import stats
from synthetic import here
from test_report import write_json
from test_verdict import BASE, raised, right_for, rows_of, study_of, write_predictions

from kdstudy.analysis.outcome import results
from kdstudy.analysis.report import build
from kdstudy.analysis.significance import crossed_interval, paired_t_interval
from kdstudy.analysis.stage_names import AUDIT_STAGES, FURTHER_STAGES, MOST_TEACHERS
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.analysis.three_way import three_way_interval
from kdstudy.config import sections
from kdstudy.config.load import load_study
from kdstudy.config.smoke import smoke_study
from kdstudy.errors import UserError
from kdstudy.stages.teacher_replicates import STAGES as KINDS
from kdstudy.store.storage import Storage
from kdstudy.study import Study

# -- the interval -----------------------------------------------------------------------------------------------------


def test_the_interval_of_pure_main_effects_is_that_of_a_hand_calculation():
    teachers, seeds, images = np.array([0.0, 3.0, 6.0]), np.array([-1.0, 1.0]), np.array([0.0, 2.0, 4.0, 6.0])
    differences = teachers[:, None, None] + seeds[:, None] + images
    found = three_way_interval(differences, unit=100.0)
    terms = np.array([9 / 3, 2 / 2, (20 / 3) / 4])  # variances of the means over their numbers; no interaction is left
    variance, freedom = terms.sum(), terms.sum()**2 / (terms**2 / [2, 1, 3]).sum()
    assert found.mean == 6.0 and found.standard_error == pytest.approx(np.sqrt(variance))
    assert found.degrees_of_freedom == pytest.approx(freedom)
    bounds = [paired_t_interval(differences.mean((1, 2))), crossed_interval(differences.mean(0), unit=100.0)]
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert found.high == pytest.approx(max(6.0 + half, *(bound.high for bound in bounds)))
    assert found.p >= max(bound.p for bound in bounds)


def test_the_variance_of_the_mean_is_estimated_without_bias():
    rng, spreads = np.random.default_rng(0), (1.0, 0.7, 0.5)
    estimates, means = [], []
    for _ in range(1500):
        draws = rng.normal(size=(4, 3, 5)) + sum(
            spread * rng.normal(size=shape) for spread, shape in zip(spreads, ((4, 1, 1), (1, 3, 1), (1, 1, 5)),
                                                                    strict=True))
        estimates.append(three_way_interval(draws).standard_error**2)
        means.append(draws.mean())
    truth = 1 / 4 + 0.49 / 3 + 0.25 / 5 + 1 / 60
    assert np.var(means) == pytest.approx(truth, rel=0.15)
    assert np.mean(estimates) == pytest.approx(truth, rel=0.1)


def test_one_teacher_is_no_sample():
    with pytest.raises(ValueError, match="at least two teachers, seeds and images, not 1, 3 and 9"):
        three_way_interval(np.zeros((1, 3, 9)))


def test_where_teachers_differ_the_interval_over_them_holds_and_that_of_one_does_not():
    rates = false_taught(NULLS["seeds alone"], 3, 3, 2000, 2.0, 300, np.random.default_rng(1))
    assert rates["over teachers"] <= 0.08 and rates["first teacher alone"] > 0.12


# -- settings and stages ----------------------------------------------------------------------------------------------

def test_a_study_of_one_teacher_has_the_stages_and_folders_that_it_had(tmp_path):
    one, three = (Study(load_study("digits", settings), Storage(tmp_path / "s"))
                  for settings in ((), ("teacher.replicates=3",)))
    assert set(three.stages) - set(one.stages) == set(FURTHER_STAGES[:6])
    assert not any(name in FURTHER_STAGES for name in one.stages)
    assert [kind.name for kind in KINDS] == list(FURTHER_STAGES) and sections.MOST_TEACHERS == MOST_TEACHERS
    for name in ("teacher", "baseline"):
        assert three.stages[name].folder.path == one.stages[name].folder.path
    assert smoke_study(load_study("digits", ("teacher.replicates=5",))).teacher.replicates == 2


def test_a_given_teacher_cannot_be_trained_again():
    with pytest.raises(UserError) as error:
        load_study("digits", ("teacher.model=", "teacher.logits=x.safetensors", "teacher.replicates=2"))
    assert "replicates = 2 needs a teacher that the study trains" in str(error.value) and "\n" not in str(error.value)


# -- what is said -----------------------------------------------------------------------------------------------------

def add_teacher(folder, number, right, accuracy, **changes):
    """A further teacher whose students have run on the confirmation's seeds; right: (seeds, N) bool."""
    write_json(folder / f"teacher_{number}-0" / "done.json", {"seconds": 1.0, "best_validation": 0.9})
    write_predictions(folder / f"teacher_{number}_logits-0" / "test.parquet", right_for([accuracy])[0])
    stage = f"confirm_teacher_{number}"
    for run, one in enumerate(right):
        write_predictions(folder / f"{stage}-0" / "runs" / f"{run:03d}" / "test.parquet", one)
    parameters = StudyFiles(folder).confirmed_row("distilled")["parameters"]
    row = {"arm": "distilled", "configuration": "tuned", "parameters": parameters, "runs": list(range(len(right)))}
    write_json(folder / f"{stage}-0" / "done.json", {
        "seconds": 1.0, "runs": len(right), "seeds": [101 + index for index in range(len(right))],
        "rows": [row | changes]})
    description = json.loads((folder / "stages.json").read_text())
    own = {name: f"{name}-0" for name in (f"teacher_{number}", f"teacher_{number}_logits", stage)}
    write_json(folder / "stages.json", description | {"stages": description["stages"] | own})


@pytest.fixture
def taught(tmp_path):
    """A study whose settings ask for three teachers, of which the first has taught."""
    folder = study_of(tmp_path / "s", rows_of(BASE, raised([6.0, 6.5, 6.2]), baseline_default=BASE - 3)).folder
    settings = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(settings.replace("[teacher]", "[teacher]\nreplicates = 3", 1))
    assert StudyFiles(folder).config["teacher"]["replicates"] == 3
    return folder


def test_the_answer_is_over_all_teachers_and_says_so(taught):
    before = results(StudyFiles(taught))
    add_teacher(taught, 2, right_for(raised([8.0, 8.5, 8.2]), 9), 92)
    assert results(StudyFiles(taught))["gain"] == before["gain"] and "teachers" not in before  # the third is to come
    add_teacher(taught, 3, right_for(raised([7.0, 7.5, 7.2]), 11), 88)
    build(taught)
    outcome, page = results_of(taught), (taught / "results" / "report.html").read_text()
    assert [row["teacher_accuracy"] for row in outcome["teachers"]] == [90.0, 92.0, 88.0]
    assert outcome["gain"]["mean"] == pytest.approx(np.mean([row["gain"]["mean"] for row in outcome["teachers"]]))
    assert outcome["gain"]["high"] - outcome["gain"]["low"] > before["gain"]["high"] - before["gain"]["low"]
    assert "on 3 paired seeds, each with 3 teachers" in outcome["verdict"]
    assert outcome["scope"].startswith("Scope: three teachers that differ in their seed alone, this split")
    assert "each run tested once" in outcome["scope"]
    rows = {(row["arm"], row["configuration"]): row for row in outcome["rows"]}
    earlier = {(row["arm"], row["configuration"]): row for row in before["rows"]}
    assert rows.pop(("distilled", "tuned"))["teachers"] == 3
    assert all(row == earlier[key] for key, row in rows.items())  # the other rows are the first teacher's
    assert "id=s-teachers" in page and "<h3>Teachers</h3>" in page
    assert "| 3 × 3 teachers |" in (taught / "results" / "results.md").read_text()


@pytest.mark.parametrize("stale", [{"parameters": {"lr": 0.5}}, {"configuration": "default"}])
def test_students_of_an_earlier_winner_do_not_count(taught, stale):
    add_teacher(taught, 2, right_for(raised([8.0, 8.5, 8.2]), 9), 92)
    add_teacher(taught, 3, right_for(raised([7.0, 7.5, 7.2]), 11), 88, **stale)
    assert "teachers" not in results(StudyFiles(taught))


# -- a whole study ----------------------------------------------------------------------------------------------------

NEW = {"teacher_2", "teacher_2_logits", "confirm_teacher_2"}


def records(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/record.jsonl")}


@pytest.mark.slow
def test_a_second_teacher_added_later_runs_only_what_is_new(extended, finished):
    before, after = records(finished[0]), records(extended)
    assert {name: after[name] for name in before} == before
    assert {name.rsplit("-", 1)[0] for name in set(after) - set(before)} == {*NEW, *AUDIT_STAGES}
    study, outcome = StudyFiles(extended), results_of(extended)
    assert study.done("teacher_2")["weights"] != study.done("teacher")["weights"]
    assert study.done("teacher_2")["parameters"] == study.done("teacher")["parameters"]
    assert [row["teacher"] for row in outcome["teachers"]] == [1, 2] and outcome["gain"]["teachers"] == 2
    trials = study.trials[study.trials["stage"] == "confirm_teacher_2"]
    assert list(trials["seed"]) == study.done("confirm")["seeds"]
    assert not (study.correct(0, "confirm_teacher_2") == study.confirmed["distilled", "tuned"][0]).all()


@pytest.mark.slow
def test_a_packed_study_keeps_its_teachers(extended, tmp_path):
    assert here("pack", str(extended), str(tmp_path / "small"))[0] == 0
    assert results_of(tmp_path / "small")["teachers"] == results_of(extended)["teachers"]
    assert "nothing" in here("plan", str(tmp_path / "small"))[1].split("left to do")[1][:12]


@pytest.mark.slow
def test_killed_among_its_further_teachers_it_goes_on(extended, finished, tmp_path):
    shutil.copytree(finished[0].parent, tmp_path / "studies")
    folder = tmp_path / "studies" / "digits-smoke"
    command = ["run", *ONE_AT_A_TIME, *with_set(SECOND_TEACHER)]
    for stage in ("teacher_2", "teacher_2_logits", "confirm_teacher_2"):
        driver = subprocess.Popen([*KDSTUDY, *command], cwd=tmp_path, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        wait_until(driver, lambda name=stage: any('"event": "trial"' in path.read_text()
                                                  for path in folder.glob(f"{name}-*/record.jsonl")))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    kdstudy(*command, cwd=tmp_path)
    mine, undisturbed = results_of(folder), results_of(extended)
    assert (mine["teachers"], mine["gain"]) == (undisturbed["teachers"], undisturbed["gain"])
    assert not any("mismatch" in path.read_text() for path in folder.glob("*/record.jsonl"))
