"""What becomes of a trial whose workers die, and of a study whose own Ray dies, without Ray."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from synthetic import POINTS, on_study

from kdstudy.config.load import load_study
from kdstudy.errors import StudyFailedError
from kdstudy.search.manager import TrialManager
from kdstudy.search.runs import ListProposer, has_died
from kdstudy.stages.search import BaselineSearch
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.tune import own_ray
from kdstudy.tune.own_ray import RayLostError, check_own_ray, without_epitaph
from kdstudy.tune.slots import Slots
from kdstudy.tune.tuner import TRIES, Job, _JobCallback
from kdstudy.tune.watchdog import Watchdog

METRICS = {"validation_accuracy": 0.5, "validation_loss": 1.0}


class Stage:
    """A stage of three runs of two epochs, whose workers die when told to, and Tune's callback of one round."""

    def __init__(self, folder, needed, retries=1, results=None):
        record = Record(folder / "record.jsonl")
        runs = tuple(TrialState(0, {}, seed, 0, "confirm", True) for seed in range(3))
        self.trials = TrialManager(record, ListProposer(runs), epochs=2, has_results=results)
        self.job, self._retries = Job("stage", "baseline", self.trials, None, needed=needed), retries
        self.new_round()

    def new_round(self):
        self.trials.reopen()
        work = SimpleNamespace(jobs=[self.job], occupied=lambda trials, slots: None)
        self._callback = _JobCallback(work, None, Slots(1), self._retries, Watchdog())

    def dies(self, number):
        trial = SimpleNamespace(config={"stage": "stage", "number": number}, error_file=None, get_error=lambda: "gone")
        self._callback.on_trial_error(0, [], trial)

    def reports(self, number, epoch):
        self._callback.on_trial_result(0, [], SimpleNamespace(config={"stage": "stage", "number": number}), {})
        return self.trials.report(number, {"epoch": epoch, **METRICS})

    def handed_out(self):
        trial = self.trials.next()
        return trial and trial.number


def test_a_trial_of_a_search_fails_when_its_retries_are_spent_and_not_before(tmp_path):
    stage = Stage(tmp_path, needed=False)
    assert stage.handed_out() == 0
    stage.dies(0)
    assert stage.handed_out() == 0 and stage.trials.record.trials[0].state == "running"
    stage.reports(0, 1)
    stage.dies(0)  # it has got further
    assert stage.handed_out() == 0
    stage.dies(0)
    assert stage.handed_out() == 0
    stage.dies(0)
    assert stage.trials.record.trials[0].state == "failed" and stage.handed_out() == 1


def test_a_run_that_the_stage_needs_is_tried_again_when_the_others_have_ended(tmp_path):
    stage = Stage(tmp_path, needed=True, retries=0)
    assert stage.handed_out() == 0
    stage.dies(0)
    for number in (1, 2):
        assert stage.handed_out() == number
        assert [stage.reports(number, epoch) for epoch in (1, 2)] == ["continue", "complete"]
    assert stage.handed_out() is None and stage.trials.record.trials[0].state == "running"
    stage.new_round()
    assert stage.handed_out() == 0
    stage.dies(0)
    assert stage.trials.record.trials[0].state == "failed"


def test_a_run_whose_results_are_never_saved_ends_the_study_in_words(tmp_path):
    stage = Stage(tmp_path, needed=True, retries=0, results=lambda trial: True)
    for _ in range(2):
        assert stage.handed_out() == 0
        stage.reports(0, 2)
        stage.dies(0)  # the first time it has got further
    assert stage.handed_out() == 1
    stage.new_round()
    assert stage.handed_out() == 0
    with pytest.raises(StudyFailedError, match="the workers of stage trial 0 die before its results are saved: gone; "):
        stage.dies(0)


def test_where_no_worker_lives_to_report_the_study_ends(tmp_path):
    stage = Stage(tmp_path, needed=True, retries=0)
    for number in range(TRIES - 1):
        assert stage.handed_out() == number
        stage.dies(number)
    assert stage.handed_out() == TRIES - 1
    with pytest.raises(StudyFailedError, match=f"the workers of {TRIES} trials in a row died"):
        stage.dies(TRIES - 1)


def test_the_plan_of_a_finished_study_says_what_a_run_would_try_again(synthetic_study, tmp_path):
    study = Path(shutil.copytree(synthetic_study, tmp_path / "study"))
    again = "distill: `kdstudy run` tries the trials whose workers died again"
    assert again not in on_study(("plan",), study, tmp_path)[1]
    search = Study(load_study(study), Storage(study)).stages["distill"].folder
    kept = search.record_path.read_text().splitlines(keepends=True)[:-1]  # without the last report of the last trial
    search.record_path.write_text("".join(kept))
    search.record().fail(2, "the actor died")
    search.finish(json.loads((search.path / "done.json").read_text()) | {
        "complete": 2, "failed": 1, "winner": 1, "ranking": [1, 0], "parameters": POINTS[1],
        "best_validation": 0.5})
    code, planned, err = on_study(("plan",), study, tmp_path)
    assert code == 0, err
    assert again in planned.splitlines()


def test_a_search_tries_again_what_died_and_not_what_failed_by_itself(tmp_path):
    record = Record(tmp_path / "record.jsonl")
    for number in range(4):
        record.add_trial(TrialState(number, {"lr": 1e-3}, number, 0, "sobol"))
        record.report(number, 1, "continue", METRICS)
    record.fail(0, "the actor died")
    record.report(1, 2, "failed", {}, "train_loss is nan at epoch 2")
    record.report(2, 2, "stop", METRICS)
    died = BaselineSearch.failed_runs(None, Record(tmp_path / "record.jsonl"))
    assert [trial.number for trial in died] == [0]
    record.retry(0)
    assert not has_died(record.trials[0]) and record.trials[0].epoch == 1
    assert [trial.state for trial in record.trials.values()] == ["running", "failed", "stopped", "running"]


@pytest.fixture
def ray_worker(monkeypatch):
    """Ray's module with the processes that this one has started."""
    import ray._private.worker as worker

    printed, dead = [], []
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(dead_processes=lambda: dead))
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: printed.append(data["lines"]))
    return SimpleNamespace(module=worker, printed=printed, dead=dead)


def test_the_death_of_a_process_without_which_ray_does_not_work_is_noticed(ray_worker, monkeypatch):
    check_own_ray()
    ray_worker.dead.append(("log_monitor", SimpleNamespace(returncode=-9)))
    check_own_ray()
    ray_worker.dead.append(("raylet", SimpleNamespace(returncode=-9)))
    with pytest.raises(RayLostError, match=r"Ray's raylet on this machine has died \(exit code -9\)"):
        check_own_ray()
    monkeypatch.setattr(ray_worker.module, "_global_node", None)  # of a cluster that others have started
    check_own_ray()


def test_the_log_of_a_raylet_that_died_is_not_printed(ray_worker):
    earlier = ray_worker.module.print_to_stdstream
    with without_epitaph():
        for line in (f"{own_ray.EPITAPH}. Last 20 lines of its log:\n…", "out of memory"):
            ray_worker.module.print_to_stdstream({"lines": [line], "pid": "raylet"}, ignore_prefix=False)
    assert ray_worker.printed == [["out of memory"]] and ray_worker.module.print_to_stdstream is earlier
