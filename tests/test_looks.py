"""Looks at the test images: when a study goes on to more seeds, when it stops, and what it keeps of either."""

import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from running import KDSTUDY, kdstudy, results_of, wait_until, with_set
from synthetic import write_finished
from test_verdict import write_predictions

from kdstudy.analysis.looks import present_look
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.load import load_study
from kdstudy.search.runs import run_key
from kdstudy.stages.looks import STAGES
from kdstudy.store.files import read_json, write_json
from kdstudy.store.record import Record
from kdstudy.store.storage import Storage
from kdstudy.study import Study


def study_in(folder, *settings):
    """The study of a folder, with other settings than before."""
    config = load_study(str(folder), settings)
    (folder / "study.toml").write_text(config.to_toml())
    return Study(config, Storage(folder))


def confirm(study, gain=0.0):
    """Run what the confirmation asks for, in no time: distilled students are right on `gain` points more images."""
    for name in STAGES:
        stage = study.stages[name]
        folder = stage.folder
        record = folder.record()
        known = {run_key(trial) for trial in record.trials.values()}
        for run in stage.runs():
            if run_key(run) in known:
                continue
            trial = replace(run, number=len(record.trials))
            record.add_trial(trial)
            record.report(trial.number, stage.epochs, "complete", {"validation_accuracy": 0.5, "validation_loss": 1.0})
            images, rng = len(study.context.splits.test), np.random.default_rng(trial.seed)
            right = rng.permutation(images) < images * (50 + rng.uniform(-2, 2) + gain * (name == "confirm")) / 100
            write_predictions(folder.path / "runs" / f"{trial.number:03d}" / "test.parquet", right)
        stage.close(folder)


def looks_of(folder):
    done = read_json(next(folder.glob("confirm-*")) / "done.json")
    looks = done.get("looks")
    return done.get("plan"), len(done["seeds"]), looks and [(look["seeds"], look.get("goes_on")) for look in looks]


@pytest.fixture
def searched(tmp_path):
    """A study that is done but for its confirmation."""
    folder = write_finished(tmp_path / "s")
    for name in STAGES:
        stage = next(folder.glob(f"{name}-*"))
        (stage / "record.jsonl").unlink()
        (stage / "done.json").unlink()
    return folder


def test_a_look_that_leaves_the_question_open_is_followed_by_the_next(searched):
    study = study_in(searched, "confirm.seeds=[2,3,5]")
    stage = study.stages["confirm"]
    assert stage.settle() == () and len(stage.runs()) == 2 * 2
    confirm(study)
    assert all(study.stages[name].is_finished for name in STAGES)
    assert study.stages["confirm_baseline"].settle() == STAGES
    assert looks_of(searched) == ([2, 3, 5], 2, [(2, True)])
    assert not any(study.stages[name].is_finished for name in STAGES) and len(stage.runs()) == 2 * 3
    assert study_in(searched).stages["confirm"].settle() == ()  # another driver finds them unfinished
    confirm(study)
    assert stage.settle() == STAGES
    confirm(study)
    assert stage.settle() == () and stage.is_finished
    assert looks_of(searched) == ([2, 3, 5], 5, [(2, True), (3, True), (5, False)])
    assert len(stage.folder.read_record().trials) == 2 * 5  # each run once
    look = present_look(StudyFiles(searched))
    assert (look.number, look.planned, look.plan) == (3, True, (2, 3, 5))


def test_a_study_stops_where_its_interval_leaves_out_zero(searched):
    study = study_in(searched, "confirm.seeds=[4,8]")
    confirm(study, gain=30.0)
    assert study.stages["confirm"].settle() == () and study.stages["confirm"].is_finished
    assert looks_of(searched) == ([4, 8], 4, [(4, False)])


def test_a_study_stops_where_the_gain_is_too_small_and_goes_on_when_that_is_taken_back(searched):
    study = study_in(searched, "confirm.seeds=[4,8]", "confirm.gain=40")
    confirm(study)
    assert study.stages["confirm"].settle() == () and looks_of(searched) == ([4, 8], 4, [(4, False)])
    study = study_in(searched, "confirm.gain=0.001")
    assert study.stages["confirm"].settle() == STAGES and looks_of(searched) == ([4, 8], 4, [(4, True)])


def test_a_study_with_a_number_of_seeds_keeps_nothing_until_it_gets_more(searched):
    study = study_in(searched, "confirm.seeds=3")
    confirm(study)
    before = (study.stages["confirm"].folder.path / "done.json").read_bytes()
    assert study.stages["confirm"].settle() == () and looks_of(searched) == (None, 3, None)
    assert (study.stages["confirm"].folder.path / "done.json").read_bytes() == before
    study = study_in(searched, "confirm.seeds=5")
    confirm(study)
    assert study.stages["confirm"].settle() == ()
    assert looks_of(searched) == (None, 5, [(3, None), (5, False)])
    look = present_look(StudyFiles(searched))
    assert (look.number, look.planned, look.level, look.earlier) == (2, False, 0.0025, ((3, 0.05),))


def test_a_plan_that_comes_too_late_goes_on_from_what_there_is(searched):
    confirm(study_in(searched, "confirm.seeds=3"))
    study = study_in(searched, "confirm.seeds=[2,3,5]")
    stage = study.stages["confirm"]
    assert stage.is_finished and stage.settle() == STAGES  # it was at 3 seeds, not at 2
    confirm(study)
    assert stage.settle() == () and looks_of(searched) == (None, 5, [(3, True), (5, False)])
    assert present_look(StudyFiles(searched)).level == 0.0025


def test_another_plan_does_not_undo_that_of_the_first_look(searched):
    confirm(study_in(searched, "confirm.seeds=[3,5]"))
    study = study_in(searched, "confirm.seeds=3")
    assert study.stages["confirm"].is_finished and study.stages["confirm"].settle() == ()
    assert present_look(StudyFiles(searched)).level < 0.03


def test_another_winner_is_another_look_even_where_both_arms_have_one(searched):
    study = study_in(searched, "confirm.seeds=3")
    confirm(study)
    for arm, parameters in (("baseline", {"lr": 2e-3}), ("distill", {"temperature": 2.0, "alpha": 0.9, "lr": 2e-3})):
        done = study.stages[arm].folder.path / "done.json"
        write_json(done, read_json(done) | {"winner": 1, "parameters": parameters})
    study = study_in(searched)
    assert not any(study.stages[name].is_finished for name in STAGES)
    confirm(study)
    study.stages["confirm"].settle()
    assert looks_of(searched)[2] == [(3, None), (3, False)]
    assert present_look(StudyFiles(searched)).level == 0.0025


TINY = ["digits", "--smoke", *with_set(["resources.concurrent=1", "search.trials=2", "search.baseline_trials=2",
                                        "search.protected=1", "search.baseline_protected=1", "train.epochs=4",
                                        "teacher.epochs=2"])]


@pytest.mark.slow
def test_a_study_goes_on_to_its_next_look_by_itself_and_after_an_interruption(tmp_path):
    """It stops at the first look because the gain is shown to be small, goes on once more is asked, and is killed."""
    folder, planned = tmp_path / "s", ["--set", "confirm.seeds=[3,4,5]", "--dir", tmp_path / "s"]
    printed = kdstudy("run", *TINY, *planned, "--set", "confirm.gain=99", cwd=tmp_path).stdout
    assert "runs on 3 fresh paired seeds of up to 5" in printed and "on 4 fresh" not in printed
    assert looks_of(folder) == ([3, 4, 5], 3, [(3, False)])
    again = kdstudy("run", *TINY, *planned, "--set", "confirm.gain=99", cwd=tmp_path).stdout
    assert "Nothing to do" in again

    record = next(folder.glob("confirm-*")) / "record.jsonl"
    tested = len(Record(record, write=False).trials)
    process = subprocess.Popen([*KDSTUDY, "run", *TINY, *map(str, planned)], cwd=tmp_path, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    wait_until(process, lambda: len(Record(record, write=False).trials) > tested)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    assert looks_of(folder)[2][0] == (3, True)

    printed = kdstudy("run", *TINY, *planned, cwd=tmp_path).stdout
    assert "on 5 fresh paired seeds" in printed
    assert looks_of(folder) == ([3, 4, 5], 5, [(3, True), (4, True), (5, False)])
    for stage in STAGES:
        trials = Record(next(folder.glob(f"{stage}-*")) / "record.jsonl", write=False).trials.values()
        assert len({run_key(trial) for trial in trials}) == len(trials)
        assert all(len(row["runs"]) == 5 for row in read_json(next(folder.glob(f"{stage}-*")) / "done.json")["rows"])
        assert {trial.state for trial in trials} == {"complete"}
    outcome = results_of(folder)
    assert outcome["gain"]["seeds"] == 5 and outcome["look"]["number"] == 3 and outcome["look"]["planned"]
    assert "each run tested once" in outcome["scope"]
