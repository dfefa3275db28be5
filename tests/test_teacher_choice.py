"""The teacher as a searched choice: what a study file may say of it, which stages it adds, how trials are proposed, and
what the report says of the teachers."""

import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from running import KDSTUDY, ONE_AT_A_TIME, kdstudy, results_of, wait_until, with_set
from safetensors.numpy import load_file
from test_sensitivity import EPOCHS, Trial, write_study

from kdstudy.analysis.exhibits.catalogue import exhibit
from kdstudy.analysis.exhibits.teacher_choice import finding
from kdstudy.analysis.outcome import _teacher_section
from kdstudy.analysis.sensitivity.findings import analyse
from kdstudy.analysis.sensitivity.space import Dimension
from kdstudy.analysis.sensitivity.teachers import compared
from kdstudy.analysis.stage_names import MAIN_TEACHER, kind_of
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.load import functions_in, load_study, load_values
from kdstudy.config.permission import Named, functions_allowed
from kdstudy.config.sections import TeacherSettings
from kdstudy.config.series import series_of
from kdstudy.config.settings import own_functions
from kdstudy.config.smoke import smoke_study
from kdstudy.config.teachers import MAIN, TeacherChanges, with_changes
from kdstudy.errors import UserError
from kdstudy.search.proposer import OptunaProposer
from kdstudy.stages.order import names, priority, up_to
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables.distill import with_own_teacher
from kdstudy.trainables.task import Task, Teacher

SMALL = "teachers.small.epochs=1"
TWO = (SMALL, "search.teacher={choice=['main','small']}")


# -- the study file ---------------------------------------------------------------------------------------------------

def test_a_section_takes_from_teacher_what_it_does_not_state():
    found = load_study("digits", (*TWO, "teachers.small.lr=[1e-3,1e-2]")).used_teachers
    assert list(found) == ["teacher", "teachers.small"] and found["teachers.small"].epochs == 1
    assert found["teachers.small"].learning_rates == (1e-3, 1e-2)
    changed = found["teacher"].model_copy(update={"epochs": 1, "lr": (1e-3, 1e-2)})
    assert found["teachers.small"] == changed and MAIN == MAIN_TEACHER


@pytest.mark.parametrize("origin", ["model='resnet10t'", "trained='weights'", "logits='l.safetensors'"])
def test_a_section_that_names_another_model_takes_none_of_the_arguments_of_the_first(origin):
    other = load_study("digits", (f"teachers.small.{origin}", TWO[1], "teacher.pretrained=w.pth")).used_teachers
    assert other["teacher"].args and not other["teachers.small"].args and not other["teachers.small"].pretrained
    assert other["teachers.small"].image_size == 32


def test_its_settings_are_written_as_they_were_read(tmp_path):
    config = load_study("digits", TWO)
    assert config.to_values()["teachers"] == {"small": {"epochs": 1}}
    (tmp_path / "again.toml").write_text(config.to_toml())
    assert load_study(str(tmp_path / "again.toml")) == config
    assert "teachers" not in load_study("digits").to_toml().split()


WRONG = {
    ("teachers.small.epoch=1",): "teachers.small.epoch is not a setting of [teachers.small]; did you mean "
                                 "teachers.small.epochs?",
    ("teachers.small.epochs='a'",): "teachers.small.epochs = 'a': must be a whole number",
    ("teachers.s!.epochs=1",): "teachers.s! = 's!': must consist of letters, digits, '_' and '-'",
    ("teachers.main.epochs=1",): "[teachers.main] has the name of the teacher of [teacher]",
    ("teachers.a.epochs=1", "teachers.A.epochs=1"): "differ in upper and lower case alone",
    ("teachers.small.mean=0.5",): "[teachers.small] mean needs std beside it",
    ("teachers.small.replicates=2",): "teachers.small.replicates is not a setting",
    (TWO[1],): "search.teacher names 'small', but the teachers are 'main'; add [teachers.small]",
    (SMALL, "search.teacher={linear=[0,1]}"): "search.teacher takes choice = [...] only",
    (SMALL, "teachers.x.epochs=2", "search.teacher={choice=['small','x']}"): "must include 'main'",
    (SMALL, "default.teacher=small"): "default.teacher = 'small' needs search.teacher",
    (*TWO, "default.teacher=large"): "default.teacher names 'large'",
    (*TWO, "teacher.replicates=3"): "teacher.replicates = 3 repeats one teacher",
    (*TWO, "audit.seeds=3"): "[audit] repeats a study of one teacher",
    (*TWO, "teachers.small.min_lr=1"): "teachers.small.min_lr = 1 is above teachers.small.lr = 0.003",
    (*TWO, "teachers.small.logits=x", "controls.kinds=['equal_compute']"): "set teachers.small.trained in place of",
}


@pytest.mark.parametrize("settings", WRONG)
def test_what_cannot_be_is_one_line_that_names_the_section(settings):
    with pytest.raises(UserError) as error:
        load_study("digits", settings)
    assert WRONG[settings] in str(error.value) and "\n" not in str(error.value)


def test_a_series_over_the_main_teachers_epochs_cannot_choose_another():
    values = load_study("digits", TWO).to_values()
    values["teacher"]["epochs"] = [5, 10]
    with pytest.raises(UserError, match=r"= \[5, 10\] varies \[teacher\], but search.teacher may choose another"):
        series_of(values)


def test_a_strangers_teacher_may_not_call_a_function():
    stranger = load_study("digits", ("teachers.small.model=mine:build", TWO[1]))
    assert own_functions(stranger) == {"teachers.small.model": "mine:build"}
    with pytest.raises(UserError, match=r"teachers.small.model = 'mine:build' is a function that s.toml names, not"):
        functions_allowed(stranger, Named(), "s.toml", trust=False, remedy="add --trust")
    assert functions_in({"teachers": {"small": {"model": "mine:build"}}}) == {"mine:build"}
    # An export of the student builds no teacher.
    assert functions_allowed(stranger, Named(), "s.toml", trust=False, remedy="", sections=("student",)) == set()


def test_a_trial_run_keeps_the_teachers_apart():
    small = smoke_study(load_study("digits", (*TWO, "teachers.tiny.epochs=2")))
    assert set(small.teachers) == {"small"} and small.teacher_choice == ("main", "small")
    assert small.used_teachers["teachers.small"].args == small.teacher.args


# -- the stages -------------------------------------------------------------------------------------------------------

def study_with(folder, *settings):
    return Study(load_study("digits", settings), Storage(folder))


def test_each_teacher_has_the_stages_that_it_would_have_alone(tmp_path):
    alone, two = study_with(tmp_path / "a", "teacher.epochs=1"), study_with(tmp_path / "b", *TWO)
    assert names(two.config)[:5] == ("teacher", "teacher.small", "baseline", "teacher_logits", "teacher_logits.small")
    assert two.stages["teacher.small"].inputs() == alone.stages["teacher"].inputs()
    assert two.stages["teacher.small"].runs() == alone.stages["teacher"].runs()
    assert two.stages["distill"].waits_for == ("teacher_logits", "teacher_logits.small")
    assert two.stages["teacher_logits.small"].waits_for == ("teacher.small",)
    assert sorted(["distill", "teacher.small", "teacher", "baseline"], key=priority)[:2] == ["teacher", "teacher.small"]
    # The logits of all are in memory together.
    assert two.stages["teacher_logits"]._budget == alone.stages["teacher_logits"]._budget / 2
    assert up_to(two.config, "teacher.small") == {"teacher", "teacher.small"}
    with pytest.raises(UserError, match=r"--until teacher.small: the study has no such stage"):
        up_to(alone.config, "teacher.small")


def test_a_teacher_that_is_not_chosen_from_changes_nothing_and_is_noted(tmp_path):
    plain, unused = study_with(tmp_path / "a"), study_with(tmp_path / "a", SMALL)
    assert list(plain.stages) == list(unused.stages)
    for name in ("teacher", "baseline"):
        assert plain.stages[name].folder.path == unused.stages[name].folder.path
    assert [note for note in unused.notes if "teachers" in note] == [
        "[teachers.small] is not used; to compare it, set search.teacher = {choice = ['main', 'small']}"]
    assert study_with(tmp_path / "a", *TWO).stages["baseline"].folder.path == plain.stages["baseline"].folder.path


def test_a_given_teacher_that_does_not_fit_is_named_by_its_section(tmp_path):
    study = study_with(tmp_path / "s", f"teachers.small.logits={tmp_path / 'none.safetensors'}", TWO[1])
    with pytest.raises(UserError, match=r"teachers.small.logits = .*none.safetensors': the file does not exist"):
        study.check_models()
    study = study_with(tmp_path / "s", f"teachers.small.trained={tmp_path / 'none'}", TWO[1])
    with pytest.raises(UserError, match=r"teachers.small.trained: .*none"):
        study.check_models()


# -- the search -------------------------------------------------------------------------------------------------------

def test_the_default_point_has_its_teacher_and_the_protected_points_have_each_equally_often():
    config = load_study("digits", (*TWO, "default.teacher=small"))
    assert list(config.default_parameters("distill")) == ["teacher", "temperature", "alpha", "lr"]
    assert list(config.default_parameters("baseline")) == ["lr"] and "teacher" not in config.space("baseline")
    proposer = OptunaProposer.of(config, "distill", 4)
    trials = [proposer(number, None).parameters for number in range(9)]
    assert trials[0]["teacher"] == "small"
    assert Counter(trial["teacher"] for trial in trials[1:]) == {"main": 4, "small": 4}


def test_without_the_choice_points_are_proposed_as_they_always_were():
    proposer = OptunaProposer.of(load_study("digits", (SMALL,)), "distill", 4)
    known = OptunaProposer.of(load_study("digits"), "distill", 4)
    assert [proposer(number, None) for number in range(9)] == [known(number, None) for number in range(9)]
    assert list(proposer(3, None).parameters) == ["temperature", "alpha", "lr"]


def test_a_run_learns_from_the_teacher_that_its_parameters_name():
    main, small = Teacher(validation_predictions=np.zeros(1)), Teacher(validation_predictions=np.ones(1))
    task = Task(*[None] * 8, teacher=main, other_teachers={"small": small})
    assert with_own_teacher(task, {}) is task and with_own_teacher(task, {"teacher": "main"}).teacher is main
    assert with_own_teacher(task, {"teacher": "small"}).teacher is small
    with pytest.raises(ValueError, match="teacher = 'large' is not a teacher of this study's settings"):
        with_own_teacher(task, {"teacher": "large"})


# -- the report -------------------------------------------------------------------------------------------------------

RANGES = {"teacher": {"choice": ["main", "small"]}, "temperature": {"log": [1, 16]}, "alpha": {"linear": [0, 1]},
          "lr": {"log": [3e-4, 3e-2]}}
WARMEST = {"main": 0.7, "small": 0.3}  # where in its range each teacher's temperature is best


def trial_of(number, teacher, worth, noise=0.02):
    """A trial at a random point. worth: of each teacher, in logits, with everything else at its best."""
    random = np.random.default_rng(number)
    t, a, rate = random.random(3)
    values = {name: Dimension.of(name, RANGES[name]).at([place])[0]
              for name, place in (("temperature", t), ("alpha", a), ("lr", rate))}
    logit = worth[teacher] * (1 - (1 - a / 0.7) ** 2) - a * (t - WARMEST[teacher]) ** 2 - (rate - 0.6) ** 2
    logit += random.normal(0, noise)
    return Trial({"teacher": teacher, **values},
                 {3: float(1 / (1 + np.exp(0.5 - logit))), EPOCHS: float(1 / (1 + np.exp(-logit)))})


def searched(folder, worth, count=24, noise=0.02, seed=0):
    trials = [trial_of(1000 * seed + number, ("main", "small")[number % 2], worth, noise) for number in range(count)]
    return write_study(folder / "study", RANGES, {"distill": trials})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("searched"), {"main": 0.6, "small": 1.2})


@pytest.fixture(scope="module")
def found(study):
    return analyse(study)


def test_teachers_are_compared_each_with_its_own_best_point(study, found):
    main, small = found["teachers"]
    assert [(row["teacher"], row["trials"], row["full"]) for row in (main, small)] == [("main", 12, 12),
                                                                                      ("small", 12, 12)]
    for row, worth in ((main, 0.6), (small, 1.2)):
        assert row["best"]["low"] <= 100 / (1 + np.exp(-worth)) <= row["best"]["high"]
        assert set(row["best"]["parameters"]) == {"temperature", "alpha", "lr"}
    assert small["best"]["parameters"]["temperature"] < main["best"]["parameters"]["temperature"]
    truth = 100 / (1 + np.exp(-1.2)) - 100 / (1 + np.exp(-0.6))
    assert small["behind"] is None and main["behind"]["low"] <= truth <= main["behind"]["high"]
    assert main["behind"]["low"] > 0 and json.dumps(found, allow_nan=False)
    assert "teacher" in {row["parameter"] for row in found["effects"]}


def test_the_report_says_which_teacher_is_shown_to_be_better(study, found):
    assert finding(found["teachers"]).startswith("The search shows that small teaches better than main, by ")
    which = exhibit("which-teacher", StudyAnalysis(study))
    assert which.applies and which.figure is not None and "exploratory" in which.caption
    assert which.table[2][0] == "small" and which.notes[0][1] == finding(found["teachers"])


def test_alike_teachers_are_not_told_apart(tmp_path):
    rows = analyse(searched(tmp_path, {"main": 1.0, "small": 1.0}, noise=0.1))["teachers"]
    assert finding(rows).startswith("No difference is shown between ") and "which leads" in finding(rows)


def test_a_study_of_one_teacher_has_no_such_figure(tmp_path):
    ranges = {name: RANGES[name] for name in ("alpha", "lr")}
    one = write_study(tmp_path / "s", ranges, {"distill": [Trial({"alpha": 0.5, "lr": 1e-3}, {EPOCHS: 0.5})]})
    assert "teachers" not in analyse(one) and not exhibit("which-teacher", StudyAnalysis(one)).applies


# -- a whole study ----------------------------------------------------------------------------------------------------

CHOICE = with_set(("teachers.brief.epochs=10", "search.teacher={choice=['main','brief']}", "controls.kinds=['self']"))
NEW = {"teacher.brief", "teacher_logits.brief", "distill", "confirm", "self_teacher", "self_logits", "control_self"}


def records(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/record.jsonl")}


@pytest.fixture(scope="module")
def two(finished, tmp_path_factory):
    """The finished study, run again with a choice of two teachers."""
    home = tmp_path_factory.mktemp("choice")
    shutil.copytree(finished[0].parent, home / "studies")
    kdstudy("run", *ONE_AT_A_TIME, *CHOICE, cwd=home)
    return home / "studies" / "digits-smoke"


@pytest.mark.slow
def test_a_second_teacher_runs_only_what_depends_on_it(two, finished):
    before, after = records(finished[0]), records(two)
    assert {name: after[name] for name in before} == before
    assert {name.rsplit("-", 1)[0] for name in set(after) - set(before)} == NEW
    study, outcome = StudyFiles(two), results_of(two)
    trials = study.trials[study.trials["stage"] == "distill"]
    assert set(trials["teacher"]) == {"main", "brief"}
    tuned = study.confirmed_row("distilled")["parameters"]
    assert outcome["teacher"] == study.teacher == tuned["teacher"]
    assert (outcome["rows"][0]["arm"], outcome["rows"][0]["teacher"]) == ("teacher", study.teacher)
    assert f"the teacher “{study.teacher}”, which the search chose among two" in outcome["scope"]
    assert "teacher" not in study.done("control_self")["rows"][0]["parameters"]
    assert "Which teacher?" in (two / "results" / "report.html").read_text()
    assert {kind_of(name) for name in outcome["seconds"]} >= {"teacher", "teacher_logits"}


@pytest.mark.slow
def test_the_teacher_is_in_the_plan_the_status_the_pack_and_the_export(two, tmp_path):
    shown = kdstudy("plan", two, cwd=tmp_path).stdout
    assert "teacher.brief" in shown and "teacher logits.brief" in shown and "left to do: nothing" in shown
    assert "teacher.brief" in kdstudy("status", two, cwd=tmp_path).stdout
    kdstudy("pack", two, tmp_path / "small", cwd=tmp_path)
    assert results_of(tmp_path / "small")["verdict"] == results_of(two)["verdict"]
    assert "nothing" in kdstudy("plan", tmp_path / "small", cwd=tmp_path).stdout.split("left to do")[1][:12]
    kdstudy("export", tmp_path / "small", tmp_path / "out", "--model", "teacher", "--teacher", "brief", cwd=tmp_path)
    assert json.loads((tmp_path / "out" / "kdstudy.json").read_text())["teacher"].startswith("teacher.brief-")
    for name in ("main", "brief"):
        kdstudy("logits", two, tmp_path / f"{name}.safetensors", "--teacher", name, cwd=tmp_path)
        test = load_file(tmp_path / f"{name}.safetensors")["test"]
        assert np.array_equal(test, StudyFiles(two).teacher_logits(name)) and test.any()
    assert (tmp_path / "main.safetensors").read_bytes() != (tmp_path / "brief.safetensors").read_bytes()
    wrong = kdstudy("logits", two, tmp_path / "x.safetensors", "--teacher", "x", cwd=tmp_path, check=False)
    assert wrong.returncode == 2 and "its teachers are 'main', 'brief'" in wrong.stderr
    wrong = kdstudy("export", two, tmp_path / "no", "--model", "teacher", "--teacher", "x", cwd=tmp_path, check=False)
    assert wrong.returncode == 2 and "its teachers are 'main', 'brief'" in wrong.stderr


@pytest.mark.slow
def test_killed_in_the_second_teacher_and_in_the_search_it_goes_on(two, finished, tmp_path):
    shutil.copytree(finished[0].parent, tmp_path / "studies")
    folder = tmp_path / "studies" / "digits-smoke"
    command = ["run", *ONE_AT_A_TIME, *CHOICE]
    for stage, reports in (("teacher.brief", 1), ("teacher_logits.brief", 1), ("distill", 3)):
        earlier = {path.parent for path in folder.glob(f"{stage}-*/record.jsonl")} if stage == "distill" else set()
        driver = subprocess.Popen([*KDSTUDY, *command], cwd=tmp_path, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        wait_until(driver, lambda name=stage, least=reports, old=earlier: any(
            path.read_text().count('"event": "report"') >= least
            for path in folder.glob(f"{name}-*/record.jsonl") if path.parent not in old))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    kdstudy(*command, cwd=tmp_path)
    mine, undisturbed = results_of(folder), results_of(two)
    assert [mine[name] for name in ("rows", "gain", "controls", "verdict")] == [
        undisturbed[name] for name in ("rows", "gain", "controls", "verdict")]
    assert StudyFiles(folder).trials.equals(StudyFiles(two).trials)
    assert not any("mismatch" in path.read_text() for path in folder.glob("*/record.jsonl"))


def test_a_change_of_one_setting_of_a_teacher_keeps_the_others():
    study = {"name": "two", "data": {"source": "digits"}, "teacher": {"model": "resnet18"},
             "student": {"model": "vit_tiny_patch16_224"}, "default": {"temperature": 4, "alpha": 0.5, "lr": 1e-3},
             "teachers": {"small": {"model": "resnet10t", "epochs": 3}},
             "search": {"lr": {"log": [1e-4, 1e-2]}, "teacher": {"choice": ["main", "small"]}}}
    changed = load_values(study, {"teachers": {"small": {"epochs": 5}}, "teacher": {"epochs": 7}})
    small = changed.all_teachers["small"]
    assert (small.model, small.epochs, changed.teacher.model, changed.teacher.epochs) == ("resnet10t", 5, "resnet18", 7)


def test_trials_of_before_there_was_a_choice_are_no_trials_of_a_teacher():
    """As where the driver was killed after it had written new settings, and before anything else."""
    trials = pd.DataFrame({"stage": ["distill"], "trial": [0], "ended": ["complete"], "lr": [1e-3],
                           "last_validation_accuracy": [0.5], "best_validation_accuracy": [0.5]})
    study = SimpleNamespace(trials=trials, teacher_choice=["main", "small"], teacher_done=lambda name: None)
    rows = compared(study, "there is no surface yet.")
    assert [row["teacher"] for row in rows] == ["main", "small"]
    assert all(row["missing"] == "there is no surface yet." for row in rows)


@pytest.mark.parametrize("main, own, expected", [
    ({"model": "a", "pretrained": "w.safetensors"}, {"model": "b"}, {"model": "b"}),
    ({"model": "a", "pretrained": True}, {"model": "b"}, {"model": "b", "pretrained": True}),
    ({"trained": ["x"], "epochs": 3}, {"model": "b", "pretrained": True},
     {"model": "b", "pretrained": True, "epochs": 3}),
    ({"model": "a", "pretrained": "w.safetensors"}, {"epochs": 1},
     {"model": "a", "pretrained": "w.safetensors", "epochs": 1}),
])
def test_the_results_say_of_a_teacher_what_the_settings_make_of_it(main, own, expected):
    study = SimpleNamespace(config={"teacher": main, "teachers": {"small": own}}, teacher="small")
    assert _teacher_section(study) == expected
    changes = TeacherChanges.model_validate(own)
    whole = with_changes(TeacherSettings.model_validate(main), "small", changes)
    assert all(getattr(whole, name) == (tuple(value) if isinstance(value, list) else value)
               for name, value in expected.items())
    assert whole.trained is None or "trained" in expected
