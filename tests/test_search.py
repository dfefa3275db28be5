"""The search in simulated time: no Ray cluster, no training, the real proposer, rungs and record."""

import itertools
import random

import numpy as np
import optuna
import pytest

from kdstudy.config.sections import Range
from kdstudy.search.manager import METRIC, TrialManager
from kdstudy.search.optuna_file import write_optuna_file
from kdstudy.search.proposer import OptunaProposer, distributions, frozen_trials, sobol_points
from kdstudy.search.rungs import Rungs
from kdstudy.search.runs import ListProposer, winner
from kdstudy.store.record import Record, TrialState
from kdstudy.trainables.seeds import small_seed

SPACE = {"temperature": Range(log=(1, 16)), "alpha": Range(linear=(0, 1)), "lr": Range(log=(1e-4, 1e-1))}
DEFAULT = {"temperature": 4.0, "alpha": 0.5, "lr": 1e-3}
EPOCHS, RUNGS = 27, [3, 9]


def proposer(trials=20, concurrent=1, seed=0):
    return OptunaProposer(SPACE, DEFAULT, trials, 4, seed, "distill", concurrent)


def accuracy(parameters, epoch):
    """A surface with its best at lr = 1e-2, alpha = 0.8, T = 2, which improves with the epochs."""
    miss = (np.log10(parameters["lr"]) + 2) ** 2 + (parameters["alpha"] - 0.8) ** 2 + np.log2(
        parameters["temperature"] / 2) ** 2 / 8
    return float(0.9 * np.exp(-miss / 2) * (1 - np.exp(-epoch / 8)))


def report_of(trial, epoch, **more):
    value = accuracy(trial.parameters, epoch)
    return {"epoch": epoch, METRIC: value, "validation_loss": 1 - value, "train_loss": 1.0, **more}


def make_manager(path, **kwargs):
    return TrialManager(Record(path), kwargs.pop("proposer", proposer()), epochs=EPOCHS, rungs=RUNGS, **kwargs)


def simulate(manager, slots=1, stop_after=None):
    """Run trials in `slots` at a time, an epoch each in turn, from their checkpoint on; cut off after some reports."""
    live, reports = [], itertools.count(1)
    while True:
        while len(live) < slots and (trial := manager.next()) is not None:
            live.append([trial, (trial.checkpoint or {"epoch": 0})["epoch"]])
        if not live:
            return manager
        for slot in list(live):
            slot[1] += 1
            decision = manager.report(slot[0].number, report_of(*slot))
            if slot[1] % 4 == 0:
                manager.checkpoint(slot[0].number, slot[1], "somewhere")
            if decision != "continue":
                live.remove(slot)
            if next(reports) == stop_after:
                return manager


def story(record):
    """All that matters of a record: parameters, reports and endings of every trial."""
    return {number: (trial.parameters, trial.seed, trial.state,
                     [(report["epoch"], report["decision"], report["metrics"]) for report in trial.reports])
            for number, trial in record.trials.items()}


def test_the_search_finds_the_best_region_and_stops_bad_trials(tmp_path):
    manager = simulate(make_manager(tmp_path / "r.jsonl", proposer=proposer(40)))
    best = winner(manager.record)
    states = [trial.state for trial in manager.record.trials.values()]
    assert len(states) == 40 and manager.complete and manager.next() is None
    assert best.metric(METRIC) > 0.8 > accuracy(DEFAULT, EPOCHS)
    assert states.count("stopped") > 10 and best.state == "complete"


def test_the_default_comes_first_and_protected_trials_run_to_the_end(tmp_path):
    trials = simulate(make_manager(tmp_path / "r.jsonl")).record.trials
    assert trials[0].parameters == DEFAULT
    assert [trials[number].origin for number in range(6)] == ["default"] + ["sobol"] * 4 + ["tpe"]
    assert all(trials[number].state == "complete" and trials[number].epoch == EPOCHS for number in range(5))
    assert {trial.epoch for trial in trials.values() if trial.state == "stopped"} <= set(RUNGS)
    assert len({trial.seed for trial in trials.values()}) == len(trials)


@pytest.mark.parametrize("seed", range(3))
def test_a_search_cut_off_anywhere_goes_on_as_if_nothing_had_been(tmp_path, seed):
    whole = simulate(make_manager(tmp_path / "whole.jsonl"))
    rng, path = random.Random(seed), tmp_path / "cut.jsonl"
    for _ in range(12):
        simulate(make_manager(path), stop_after=rng.randint(1, 60))
        if rng.random() < 0.5:  # the crash tore the last line
            path.write_bytes(path.read_bytes()[: -rng.randint(2, 40)])
    resumed = simulate(make_manager(path))
    assert resumed.record.mismatches == 0
    assert story(resumed.record) == story(whole.record)
    assert story(Record(path)) == story(whole.record)


def test_with_several_at_a_time_no_finished_trial_is_lost_or_run_twice(tmp_path):
    path, finished = tmp_path / "r.jsonl", {}
    for cut in (30, 41, 77, 53, None):
        record = simulate(make_manager(path, proposer=proposer(concurrent=3)), slots=3, stop_after=cut).record
        now = {n: s for n, s in story(Record(path)).items() if s[2] != "running"}
        assert all(now[number] == earlier for number, earlier in finished.items())
        finished = now
    assert len(finished) == 20 == len(record.trials)
    for trial in record.trials.values():
        assert [report["epoch"] for report in trial.reports] == list(range(1, trial.epoch + 1))


def test_an_epoch_that_comes_out_differently_the_second_time_is_noted_and_counts_once(tmp_path):
    path = tmp_path / "r.jsonl"
    simulate(make_manager(path), stop_after=3)
    manager = make_manager(path)
    trial = manager.next()
    assert manager.report(trial.number, report_of(trial, 1) | {METRIC: 0.5}) == "continue"
    assert manager.record.mismatches == 1 and len(manager.record.trials[0].reports) == 3
    assert Record(path).mismatch_note() == "1 repeated report came out differently, first trial 0, epoch 1"


@pytest.mark.parametrize("failure", ["train_loss is nan at epoch 2", "OutOfMemoryError: CUDA out of memory"])
def test_a_failed_trial_is_never_best_and_ends_at_once(tmp_path, failure):
    manager = make_manager(tmp_path / "r.jsonl")
    trial = manager.next()
    assert manager.report(0, report_of(trial, 1)) == "continue"
    bad = {"epoch": 2, METRIC: 1.0, "validation_loss": float("nan"), "train_loss": float("inf"), "failure": failure}
    assert manager.report(0, bad) == "failed"
    simulate(manager)
    trials = Record(tmp_path / "r.jsonl").trials
    assert (trials[0].state, trials[0].reason) == ("failed", failure)
    assert winner(manager.record).number != 0
    told = frozen_trials(SPACE, manager.record.trials.values())[0]
    assert told.state == optuna.trial.TrialState.FAIL and told.value is None


def test_a_trial_that_fails_before_its_first_report_is_told_as_failed(tmp_path):
    manager = make_manager(tmp_path / "r.jsonl")
    manager.next()
    manager.fail(0, "the worker died")
    assert simulate(manager).complete
    assert frozen_trials(SPACE, Record(tmp_path / "r.jsonl").trials.values())[0].state == optuna.trial.TrialState.FAIL


def test_optuna_is_told_the_truth(tmp_path):
    record = simulate(make_manager(tmp_path / "r.jsonl")).record
    write_optuna_file(SPACE, record, tmp_path / "optuna.db", "study")
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert len(study.trials) == len(record.trials)
    for told, trial in zip(study.trials, record.trials.values(), strict=True):
        state = {"complete": "COMPLETE", "stopped": "PRUNED"}[trial.state]
        assert told.state.name == state and told.params == pytest.approx(trial.parameters)
        assert told.intermediate_values == {r["epoch"]: r["metrics"][METRIC] for r in trial.reports}
        assert told.value == trial.metric(METRIC)
    assert study.best_value == winner(record).metric(METRIC)
    assert not any(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials)


def test_rungs_keep_the_best_third_and_remember_by_number():
    rungs = Rungs([3, 9], 3)
    assert rungs.passes(0, 3, 0.5)  # the first arrival always passes
    assert not rungs.passes(1, 3, 0.4)
    assert rungs.passes(2, 3, 0.6)
    # Cut-off is the 2/3 quantile of {0.4, 0.5, 0.6}: 0.5333.
    assert not rungs.passes(3, 3, 0.53)
    assert rungs.passes(2, 4, 0.0)  # between rungs nothing is decided
    assert rungs.passes(2, 9, 0.1)
    assert not rungs.passes(0, 10, 0.05)


def test_the_last_of_many_rungs_is_not_lost_to_rounding():
    rungs = Rungs([3, 9, 27, 81, 243], 3)
    assert rungs.passes(0, 243, 0.9) and not rungs.passes(1, 243, 0.1)


def test_sobol_points_cover_the_space_on_its_own_scale():
    points = sobol_points(SPACE, 16, seed=1)
    lr = np.log10([point["lr"] for point in points])
    alpha = np.array([point["alpha"] for point in points])
    for values, low, high in ((lr, -4, -1), (alpha, 0, 1)):
        assert np.all((values >= low) & (values <= high))
        assert len(np.unique(np.floor((values - low) / (high - low) * 16))) == 16  # one in every sixteenth
    assert sobol_points(SPACE, 16, seed=1) == points != sobol_points(SPACE, 16, seed=2)


def test_choices_are_searched_too(tmp_path):
    space = {"lr": SPACE["lr"], "optimizer": Range(choice=("adamw", "lion"))}
    one = OptunaProposer(space, {"lr": 1e-3, "optimizer": "adamw"}, 16, 4, 0, "baseline")
    manager = TrialManager(Record(tmp_path / "r.jsonl"), one, epochs=1)
    while (trial := manager.next()) is not None:
        bonus = 0.2 * (trial.parameters["optimizer"] == "lion")
        manager.report(trial.number, {"epoch": 1, METRIC: 0.5 + bonus, "validation_loss": 1.0, "train_loss": 1.0})
    later = [trial.parameters["optimizer"] for trial in manager.record.trials.values() if trial.number >= 8]
    assert winner(manager.record).parameters["optimizer"] == "lion" and later.count("lion") > later.count("adamw")


def by_optuna(number, trials, startup):
    """What Optuna proposes for these trials, by its own means."""
    sampler = optuna.samplers.TPESampler(seed=small_seed(0, "distill", "tpe", number), multivariate=True,
                                         constant_liar=True, n_startup_trials=startup)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    states = {"complete": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    for trial in trials:
        ended = trial.state in ("complete", "stopped")
        study.add_trial(optuna.trial.create_trial(
            state=optuna.trial.TrialState[states[trial.state]], value=trial.metric(METRIC) if ended else None,
            params=trial.parameters, distributions=distributions(SPACE),
            intermediate_values={report["epoch"]: report["metrics"][METRIC] for report in trial.reports
                                 if report["decision"] != "failed"}))
    return study.ask(distributions(SPACE)).params


def test_proposals_are_those_of_optuna(tmp_path):
    path = tmp_path / "r.jsonl"
    simulate(make_manager(path, proposer=proposer(concurrent=3)), slots=3, stop_after=230)
    manager = make_manager(path, proposer=proposer(concurrent=3))
    manager.fail(max(number for number, trial in manager.record.trials.items() if trial.state == "running"), "it died")
    number, trials = len(manager.record.trials), list(manager.record.trials.values())
    assert {trial.state for trial in trials} == {"complete", "stopped", "failed", "running"}
    assert manager.proposer(number, manager.record).parameters == by_optuna(number, trials, startup=3)


CHOICES = {"optimizer": Range(choice=("adamw", "lion", "sgd")), "batch_size": Range(choice=(32, 64, 128))}


def run_choices(path, trials, stop_after=None, protected=0):
    """A search among nine configurations, one of them much better, from where it is."""
    one = OptunaProposer(CHOICES, {"optimizer": "adamw", "batch_size": 64}, trials, protected, 0, "baseline")
    manager = TrialManager(Record(path), one, epochs=1)
    while len(manager.record.trials) != stop_after and (trial := manager.next()) is not None:
        value = 0.5 + 0.3 * (trial.parameters == {"optimizer": "lion", "batch_size": 32})
        manager.report(trial.number, {"epoch": 1, METRIC: value, "validation_loss": 1.0, "train_loss": 1.0})
    return manager.record.trials


def test_no_choice_is_run_twice_before_all_have_been(tmp_path):
    trials = run_choices(tmp_path / "r.jsonl", 14)
    points = [tuple(trial.parameters.values()) for trial in trials.values()]
    assert len(set(points[:9])) == 9 and len(points) == 14
    assert len({trial.seed for trial in trials.values()}) == 14  # the others are replicates, not the same run again


def test_a_search_among_choices_that_was_cut_off_goes_on_as_if_nothing_had_been(tmp_path):
    whole = run_choices(tmp_path / "whole.jsonl", 12)
    for cut in (3, 7, None):
        resumed = run_choices(tmp_path / "cut.jsonl", 12, stop_after=cut)
    assert [trial.parameters for trial in resumed.values()] == [trial.parameters for trial in whole.values()]


def test_an_extended_search_keeps_its_first_trials_and_goes_on_with_the_next_numbers(tmp_path):
    path = tmp_path / "r.jsonl"
    first = story(simulate(make_manager(path, proposer=proposer(12))).record)
    assert make_manager(path, proposer=proposer(12)).complete
    extended = story(simulate(make_manager(path, proposer=proposer(20))).record)
    assert list(extended) == list(range(20)) and all(extended[number] == trial for number, trial in first.items())
    assert extended == story(simulate(make_manager(tmp_path / "at_once.jsonl", proposer=proposer(20))).record)


def test_ties_go_to_the_smaller_loss_then_to_the_earlier_trial(tmp_path):
    record = Record(tmp_path / "r.jsonl")
    for number, loss in enumerate((0.5, 0.4, 0.4)):
        record.add_trial(TrialState(number, {"lr": 1.0}, number, 0, "fixed"))
        record.report(number, 1, "complete", {METRIC: 0.9, "validation_loss": loss})
    assert winner(record).number == 1


def test_listed_runs_are_recognised_by_what_they_run(tmp_path):
    wanted = tuple(TrialState(0, {"lr": lr}, seed, seed, "confirm") for seed in (1, 2) for lr in (0.1, 0.2, 0.1))
    manager = TrialManager(Record(tmp_path / "r.jsonl"), ListProposer(wanted), epochs=1)
    while (trial := manager.next()) is not None:
        manager.report(trial.number, {"epoch": 1, METRIC: 0.5, "validation_loss": 1.0})
    assert len(manager.record.trials) == 4  # tuned = default is run once
    more = (*wanted, TrialState(0, {"lr": 0.3}, 1, 1, "confirm"))
    again = TrialManager(Record(tmp_path / "r.jsonl"), ListProposer(more), epochs=1)
    assert again.next().parameters == {"lr": 0.3} and again.next() is None


def test_a_failed_run_that_is_needed_can_be_tried_again(tmp_path):
    path, wanted = tmp_path / "r.jsonl", ListProposer((TrialState(0, {"lr": 0.1}, 1, 1, "confirm"),))
    manager = TrialManager(Record(path), wanted, epochs=2)
    manager.next()
    ok = {METRIC: 0.5, "validation_loss": 1.0}
    manager.report(0, {"epoch": 1, **ok})
    manager.report(0, {"epoch": 2, **ok, "failure": "OSError: disk full"})
    assert manager.complete and winner(manager.record) is None
    manager.record.retry(0)
    again = TrialManager(Record(path), wanted, epochs=2)
    assert again.next().number == 0
    assert [again.report(0, {"epoch": epoch, **ok}) for epoch in (1, 2)] == ["continue", "complete"]
    assert [report["epoch"] for report in Record(path).trials[0].reports] == [1, 2]
    assert winner(Record(path)).number == 0


def test_a_run_whose_last_weights_were_not_saved_is_run_again(tmp_path):
    path, wanted = tmp_path / "r.jsonl", ListProposer((TrialState(0, {"lr": 0.1}, 1, 1, "confirm"),))
    files: set[int] = {0}
    has_results = {"has_results": lambda trial: trial.number in files}
    manager = TrialManager(Record(path), wanted, epochs=2, **has_results)
    manager.next()
    for epoch in (1, 2):
        decision = manager.report(0, {"epoch": epoch, METRIC: 0.5, "validation_loss": 1.0})
    assert decision == "complete" and not manager.complete
    again = TrialManager(Record(path), wanted, epochs=2, **has_results)
    assert again.next().number == 0
    assert [again.report(0, {"epoch": e, METRIC: 0.5, "validation_loss": 1.0}) for e in (1, 2)] == [
        "continue", "complete"]
    again.checkpoint(0, 2, "somewhere")
    assert again.complete and len(again.record.trials[0].reports) == 2
    files.clear()  # somebody deleted them
    again.reopen()
    assert not again.complete and again.next().number == 0


def test_a_trial_whose_workers_died_goes_on_where_it_got_further(tmp_path):
    wanted = ListProposer((TrialState(0, {"lr": 0.1}, 1, 1, "confirm"),))
    manager = TrialManager(Record(tmp_path / "r.jsonl"), wanted, epochs=3)
    manager.next()
    assert not manager.take_back(0)
    manager.report(0, {"epoch": 1, METRIC: 0.5})
    assert manager.take_back(0) and manager.next().number == 0
    assert not manager.take_back(0)  # it is where it was when it was handed out
    assert manager.take_back(0, without_progress=True) and manager.next().number == 0  # while retries are left
    manager.fail(0, "the worker died")
    assert manager.complete and manager.record.trials[0].reason == "the worker died"


def test_a_worker_that_dies_after_the_last_report_has_not_saved_the_result(tmp_path):
    wanted = ListProposer((TrialState(0, {"lr": 0.1}, 1, 1, "confirm"),))
    manager = TrialManager(Record(tmp_path / "r.jsonl"), wanted, epochs=1, has_results=lambda trial: True)
    manager.next()
    assert manager.report(0, {"epoch": 1, METRIC: 0.5}) == "complete" and not manager.complete
    assert manager.take_back(0) and manager.next().number == 0


def test_runs_that_rows_share_are_one_run(tmp_path):
    run = TrialState(0, {"lr": 0.1}, 1, 1, "confirm")
    other = TrialState(0, {"lr": 0.2}, 1, 1, "confirm")
    wanted = ListProposer((run, other, run))
    manager = TrialManager(Record(tmp_path / "r.jsonl"), wanted, epochs=1)
    assert (manager.total, manager.protected) == (2, 2)
    assert [manager.next().parameters["lr"] for _ in range(2)] == [0.1, 0.2] and manager.next() is None


@pytest.mark.parametrize("accuracy", [{}, {METRIC: float("nan")}])
def test_a_report_without_an_accuracy_ends_the_trial(tmp_path, accuracy):
    wanted = ListProposer((TrialState(0, {"lr": 0.1}, 1, 1, "confirm"),))
    manager = TrialManager(Record(tmp_path / "r.jsonl"), wanted, epochs=3)
    manager.next()
    assert manager.report(0, {"epoch": 1, **accuracy}) == "failed"
    assert METRIC in Record(tmp_path / "r.jsonl").trials[0].reason
