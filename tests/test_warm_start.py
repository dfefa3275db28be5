"""Searches that go on from what is known: warm-started from another study's, or extended."""

import json
import shutil

import numpy as np
import optuna
import pytest
from running import ONE_AT_A_TIME, SMOKE_EPOCHS, kdstudy, results_of, with_set
from test_search import CHOICES, EPOCHS, METRIC, SPACE, make_manager, report_of, simulate, story

from kdstudy.config.load import load_study
from kdstudy.errors import UserError
from kdstudy.search.manager import TrialManager
from kdstudy.search.optuna_file import write_optuna_file
from kdstudy.search.proposer import OptunaProposer
from kdstudy.search.runs import winner
from kdstudy.search.warm_start import read_prior
from kdstudy.stages.order import STAGE_FILES
from kdstudy.store import check
from kdstudy.store.record import Record

BEST = {"temperature": 2.0, "alpha": 0.8, "lr": 1e-2}


def check_files(folder):
    check.check(folder, STAGE_FILES)


def prior(count=24, value=0.9):
    """Trials of another study, as a record takes them: most at random points, a few good ones around BEST."""
    rng = np.random.default_rng(1)
    found = []
    for number in range(count):
        good = number % 4 == 0
        parameters = ({"temperature": 2.0 + 0.02 * number, "alpha": 0.8 + 0.002 * number, "lr": 1e-2 + 1e-4 * number}
                      if good else {"temperature": float(rng.uniform(1, 16)), "alpha": float(rng.random()),
                                    "lr": float(10 ** rng.uniform(-4, -1))})
        found.append({"parameters": parameters, "accuracies": [[EPOCHS, value if good else 0.2]], "state": "complete"})
    return [*found, {"parameters": BEST, "accuracies": [[3, 0.99]], "state": "stopped"},
            {"parameters": BEST, "accuracies": [], "state": "failed"}]


def warm_manager(path, **kwargs):
    manager = make_manager(path, **kwargs)
    if not manager.record.prior:
        manager.record.add_prior("studies/other", prior())
    return manager


def distance(trial):
    return abs(np.log10(trial.parameters["lr"] / BEST["lr"])) + abs(trial.parameters["alpha"] - BEST["alpha"])


def test_tpe_looks_where_the_other_study_found_the_best(tmp_path):
    cold = simulate(make_manager(tmp_path / "cold.jsonl")).record.trials
    warm = simulate(warm_manager(tmp_path / "warm.jsonl")).record.trials
    assert [warm[number].parameters for number in range(5)] == [cold[number].parameters for number in range(5)]
    first = range(5, 10)
    assert np.median([distance(warm[n]) for n in first]) < 0.5 * np.median([distance(cold[n]) for n in first])


def test_prior_trials_are_no_trials_of_the_study(tmp_path):
    manager = simulate(warm_manager(tmp_path / "r.jsonl"))
    record = Record(tmp_path / "r.jsonl")
    assert list(record.trials) == list(range(20)) and len(record.prior) == 26
    assert winner(record).metric(METRIC) < 0.9  # which is what the other study had
    assert len(manager.record.reports_in_order()) == sum(len(trial.reports) for trial in record.trials.values())
    write_optuna_file(SPACE, record, tmp_path / "optuna.db", "study")
    told = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert len(told.trials) == 20 and told.best_value == winner(record).metric(METRIC)


def test_rungs_do_not_know_prior_trials(tmp_path):
    """The first to come to a rung passes, however good the other study's were there."""
    proposer = OptunaProposer(SPACE, {"temperature": 4.0, "alpha": 0.5, "lr": 1e-3}, 3, 0, 0, "distill")
    manager = warm_manager(tmp_path / "r.jsonl", proposer=proposer)
    for number in range(2):
        manager.next()
        manager.fail(number, "the worker died")
    trial = manager.next()
    assert not trial.protected
    assert [manager.report(2, report_of(trial, epoch)) for epoch in (1, 2, 3)] == ["continue"] * 3


def test_a_warm_start_that_was_cut_off_goes_on_as_if_nothing_had_been(tmp_path):
    whole = simulate(warm_manager(tmp_path / "whole.jsonl"))
    for cut in (1, 40, 77, 130, None):
        resumed = simulate(warm_manager(tmp_path / "cut.jsonl"), stop_after=cut)
    assert story(resumed.record) == story(whole.record) and resumed.record.mismatches == 0


def test_a_choice_that_the_other_study_has_run_is_left_until_all_have_been_run(tmp_path):
    record = Record(tmp_path / "r.jsonl")
    points = [{"optimizer": optimizer, "batch_size": size} for optimizer in ("adamw", "lion") for size in (32, 64, 128)]
    record.add_prior("other", [{"parameters": point, "accuracies": [[1, 0.5]], "state": "complete"}
                               for point in points])
    one = OptunaProposer(CHOICES, points[1], 4, 0, 0, "baseline")
    manager = TrialManager(record, one, epochs=1)
    while (trial := manager.next()) is not None:
        manager.report(trial.number, {"epoch": 1, METRIC: 0.5, "validation_loss": 1.0, "train_loss": 1.0})
    assert record.trials[0].parameters == points[1]  # the default, whatever is known of it
    assert {trial.parameters["batch_size"] for trial in record.trials.values()
            if trial.parameters["optimizer"] == "sgd"} == {32, 64, 128}


# ---------------------------------------------------------------------------------------------------------------------
# From a study's folder


@pytest.fixture
def other(finished, tmp_path):
    """The searches of a finished study, in a folder of their own."""
    folder, _ = finished
    target = tmp_path / "studies" / "other"
    for stage in ("baseline", "distill"):
        source = next(folder.glob(f"{stage}-*"))
        shutil.copytree(source, target / source.name)
    for name in ("study.toml", "stages.json"):
        shutil.copyfile(folder / name, target / name)
    return target


def config_of(other, *settings):
    return load_study("digits", (f"search.warm_start={other}", f"train.epochs={SMOKE_EPOCHS}", *settings), smoke=True)


def test_what_is_read_are_the_finished_trials(other, tmp_path):
    record = Record(next(other.glob("distill-*")) / "record.jsonl", write=False)
    found = read_prior(config_of(other), "distill", tmp_path / "mine", check_files)
    assert [trial["state"] for trial in found] == [trial.state for trial in record.trials.values()]
    for kept, trial in zip(found, record.trials.values(), strict=True):
        assert kept["parameters"] == trial.parameters
        assert [list(pair) for pair in kept["accuracies"]] == [
            [report["epoch"], report["metrics"][METRIC]] for report in trial.reports]


def test_trials_outside_the_ranges_are_left_out(other, tmp_path):
    low = 1e-3  # the default point's
    found = read_prior(config_of(other, f"search.lr.log=[{low}, 1e-2]"), "baseline", tmp_path / "mine", check_files)
    everything = read_prior(config_of(other), "baseline", tmp_path / "mine", check_files)
    assert found == [trial for trial in everything if trial["parameters"]["lr"] >= low]
    assert 0 < len(found) < len(everything)


def test_trials_of_another_length_count_as_far_as_both_go(other, tmp_path):
    here = load_study(str(other)).train.epochs
    longer = read_prior(config_of(other, f"train.epochs={2 * here}"), "distill", tmp_path / "mine", check_files)
    assert {trial["state"] for trial in longer} == {"stopped"}
    shorter = read_prior(config_of(other, f"train.epochs={here // 2}"), "distill", tmp_path / "mine", check_files)
    assert all(trial["accuracies"][-1][0] <= here // 2 for trial in shorter)
    assert {trial["state"] for trial in shorter} >= {"complete"}


WRONG = {  # what is named, settings of the study that starts, what it says
    "no study": ("nowhere", (), "is not a study folder"),
    "itself": ("mine", (), "is this study itself"),
    "another scale": ("other", ("search.lr={linear=[1e-4,1e-2]}",),
                      r"the baseline search of .* has lr \(log\), this study's has lr \(linear\)"),
    "other names": ("other", ("search.weight_decay={log=[1e-3,1]}",),
                    r"this study's has lr \(log\), weight_decay \(log\)"),
    "nothing in range": ("other", ("search.lr.log=[1e-9, 1e-8]", "default.lr=1e-9"),
                         "has no finished baseline trial within the ranges"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_warm_start_that_cannot_be_is_one_line_that_names_the_setting(name, other):
    place, settings, message = WRONG[name]
    with pytest.raises(UserError, match=message) as raised:
        read_prior(config_of(other.parent / place, *settings), "baseline", other.parent / "mine", check_files)
    assert str(raised.value).startswith("search.warm_start") and "\n" not in str(raised.value)


def test_a_study_that_has_not_searched_an_arm_is_no_start_for_it(other):
    shutil.rmtree(next(other.glob("distill-*")))
    with pytest.raises(UserError, match=r"has no finished distillation trial"):
        read_prior(config_of(other), "distill", other.parent / "mine", check_files)


@pytest.mark.slow
def test_a_study_starts_from_another_and_then_needs_it_no_more(other):
    home = other.parent.parent

    def command(verb, name, trials, *options):
        settings = with_set([f"name={name}", "train.epochs=6", "teacher.epochs=1", "search.warm_start=studies/other",
                             f"search.baseline_trials={trials}"])
        printed = kdstudy(verb, *ONE_AT_A_TIME, "--dir", f"studies/{name}", *options, *settings, cwd=home).stdout
        return " ".join(printed.split())

    def record_of(name):
        return Record(next((home / "studies" / name).glob("baseline-*")) / "record.jsonl", write=False)

    assert "from 6 baseline trials and 6 distillation trials of studies/other" in command("plan", "mine", 6)
    assert "started from 6 trials of studies/other" in command("run", "mine", 6, "--until", "baseline")
    first = record_of("mine")
    assert list(first.trials) == list(range(6)) and len(first.prior) == 6 and first.seconds < 600
    shutil.rmtree(other)
    assert "started from 6 trials of studies/other" in command("run", "mine", 8, "--until", "baseline")
    extended = record_of("mine")
    assert list(extended.trials) == list(range(8)) and extended.prior == first.prior
    assert all(extended.trials[number] == trial for number, trial in first.trials.items())
    assert command("run", "beside", 8, "--until", "baseline").count("taken from mine") == 2


@pytest.mark.slow
def test_a_finished_study_is_extended_and_confirmed_again(finished, tmp_path):
    folder = tmp_path / "studies" / "digits-smoke"
    shutil.copytree(finished[0], folder)
    record = next(folder.glob("distill-*")) / "record.jsonl"
    before = Record(record, write=False).trials
    kdstudy("run", *ONE_AT_A_TIME, *with_set(["search.trials=9"]), cwd=tmp_path)
    after = Record(record, write=False)
    assert list(after.trials) == list(range(9)) and all(after.trials[number] == before[number] for number in before)
    confirmed = json.loads(next(folder.glob("confirm-*/done.json")).read_text())["rows"]
    tuned = next(row for row in confirmed if row["configuration"] == "tuned")
    assert tuned["parameters"] == winner(after).parameters and None not in tuned["runs"]
    assert {row["trials"] for row in results_of(folder)["rows"] if row["configuration"] == "tuned"} == {6, 9}
