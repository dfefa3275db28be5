"""The loss as a searched choice: what a study file may say of it, and a search whose trials have unlike parameters."""

from collections import Counter

import numpy as np
import optuna
import pytest

from kdstudy.config.load import functions_in, load_study
from kdstudy.config.permission import Named, functions_allowed
from kdstudy.config.sections import SEARCHABLE, Range
from kdstudy.config.settings import own_functions, settings_table
from kdstudy.errors import UserError
from kdstudy.search.manager import TrialManager
from kdstudy.search.optuna_file import write_optuna_file
from kdstudy.search.proposer import OptunaProposer, sobol_points, subspaces
from kdstudy.store.record import METRIC, Record
from kdstudy.store.schema import Parameters
from kdstudy.trainables.losses import LOSSES, PARAMETERS, active, parameters_of

SPACE = {"loss": Range(choice=("hinton", "dkd", "mse")), "temperature": Range(log=(1, 16)),
         "alpha": Range(linear=(0, 1)), "dkd_beta": Range(log=(0.5, 16)), "lr": Range(log=(1e-4, 1e-1))}
DEFAULT = {"loss": "hinton", "temperature": 4.0, "alpha": 0.5, "dkd_beta": 8.0, "lr": 1e-3}
OF = {"hinton": {"loss", "temperature", "alpha", "lr"}, "mse": {"loss", "alpha", "lr"},
      "dkd": {"loss", "temperature", "alpha", "dkd_beta", "lr"}}


# ---------------------------------------------------------------------------------------------------------------------
# The study file


def test_every_parameter_of_a_loss_is_a_setting_that_can_be_searched_and_recorded():
    table = settings_table()
    for name in PARAMETERS:
        assert name in SEARCHABLE and name in Parameters.model_fields
        assert name in {row[0] for row in table["default"]} and name in {row[0] for row in table["search"]}
    assert set(parameters_of("dkd")) == {"temperature", "dkd_beta"} and parameters_of("mse") == ()


def test_a_study_whose_only_loss_is_the_usual_one_has_the_parameters_that_it_always_had():
    config = load_study("digits")
    assert config.losses == ("hinton",)
    assert list(config.default_parameters("distill")) == ["temperature", "alpha", "lr"]
    assert config.default_values("distill") == config.default_parameters("distill")
    assert list(config.space("distill")) == ["temperature", "alpha", "lr"]


@pytest.mark.parametrize(("loss", "names"), [("mse", ["loss", "alpha", "lr"]),
                                             ("dist", ["loss", "temperature", "alpha", "dist_gamma", "lr"])])
def test_the_default_point_has_the_parameters_of_its_loss(tmp_path, loss, names):
    config = of_file(tmp_path, f"default = {{loss = '{loss}'}}\nsearch = {{lr = {{log = [1e-4, 1e-2]}}}}")
    assert list(config.default_parameters("distill")) == names and config.default_parameters("baseline") == {"lr": 3e-4}


def of_file(folder, text):
    (folder / "mine.toml").write_text(f"{text}\nteacher = {{model = 'resnet18'}}\nstudent = {{model = 'resnet18'}}\n")
    return load_study(str(folder / "mine.toml"))


def test_values_that_the_default_loss_does_not_have_need_not_lie_in_their_range():
    config = load_study("digits", ("search.loss={choice=['hinton','dkd']}", "search.dkd_beta={log=[0.5,4]}"))
    assert "dkd_beta" not in config.default_parameters("distill")
    assert list(config.space("distill")) == ["loss", "temperature", "alpha", "dkd_beta", "lr"]


def test_what_is_not_searched_has_its_default_in_the_trials_whose_loss_has_it():
    config = load_study("digits", ("search.loss={choice=['hinton','dkd']}", "default.dkd_beta=2", "search.protected=4"))
    assert config.default_values("distill")["dkd_beta"] == 2
    proposer, trials = OptunaProposer.of(config, "distill", 4), []
    for number in range(5):
        trials.append(proposer(number, None).parameters)
    assert {trial.get("dkd_beta") for trial in trials if trial["loss"] == "dkd"} == {2}
    assert all("dkd_beta" not in trial for trial in trials if trial["loss"] == "hinton")


OWN = "default.loss=mine:loss"


def test_a_strangers_study_may_not_name_a_loss_of_its_own():
    stranger = load_study("digits", (OWN, "search.loss={choice=['mine:loss','mine:other','hinton']}"))
    assert own_functions(stranger) == {"default.loss": "mine:loss", "search.loss[1]": "mine:other"}
    with pytest.raises(UserError, match=r"default.loss = 'mine:loss' is a function that s.toml names, not you"):
        functions_allowed(stranger, Named(), "s.toml", trust=False, remedy="add --trust")
    named = Named()
    named.add({"default": {"loss": "mine:loss"}})
    with pytest.raises(UserError, match=r"search.loss\[1\] = 'mine:other' is a function that s.toml names, not you"):
        functions_allowed(stranger, named, "s.toml", trust=False, remedy="add --trust")
    assert functions_allowed(stranger, Named(), "s.toml", trust=True, remedy="") == {"mine:loss", "mine:other"}
    evil = load_study("digits", ("default.loss=torch.hub:load",))
    with pytest.raises(UserError, match=r"default.loss = 'torch.hub:load': functions of 'torch' are refused"):
        functions_allowed(evil, Named(), "s.toml", trust=True, remedy="")
    # An export builds the student alone.
    assert functions_allowed(stranger, Named(), "s.toml", trust=False, remedy="", sections=("student",)) == set()


def test_who_names_a_loss_in_a_file_or_with_set_has_named_it():
    values = {"default": {"loss": "mine:loss"}, "search": {"loss": {"choice": ["mine:other", "hinton"]}}}
    assert functions_in(values) == {"mine:loss", "mine:other"}
    assert functions_in({"default": {"loss": 3}, "search": {"loss": "mine:loss"}}) == set()


# ---------------------------------------------------------------------------------------------------------------------
# The search


def proposer(trials=36, protected=12, space=SPACE, default=DEFAULT, seed=0):
    return OptunaProposer(space, default, trials, protected, seed, "distill")


def accuracy(parameters):
    """dkd is best, with beta near 4; each loss with alpha near 0.6."""
    value = {"hinton": 0.5, "mse": 0.45, "dkd": 0.6}[parameters["loss"]] - 0.3 * (parameters["alpha"] - 0.6) ** 2
    return value - 0.05 * abs(np.log2(parameters.get("dkd_beta", 4) / 4))


def searched(path, stop_after=None, **given):
    manager = TrialManager(Record(path), proposer(**given), epochs=1)
    while len(manager.record.trials) != stop_after and (trial := manager.next()) is not None:
        manager.report(trial.number, {"epoch": 1, METRIC: accuracy(trial.parameters), "validation_loss": 1.0,
                                      "train_loss": 1.0})
    return manager.record


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("search") / "r.jsonl")


def test_each_trial_has_the_parameters_of_its_loss_alone(record):
    for trial in record.trials.values():
        assert set(trial.parameters) == OF[trial.parameters["loss"]]
    assert list(record.trials[0].parameters) == ["loss", "temperature", "alpha", "lr"]


@pytest.mark.parametrize("protected", [1, 4, 7, 8, 12, 16])
def test_the_protected_points_are_spread_evenly_over_the_losses(protected):
    counts = Counter(point["loss"] for point in sobol_points(SPACE, protected, seed=3))
    assert max(counts.values()) - min(counts.get(loss, 0) for loss in OF) <= 1


def test_a_loss_that_is_better_gets_more_trials(record):
    later = Counter(trial.parameters["loss"] for trial in record.trials.values() if trial.origin == "tpe")
    assert later["dkd"] > 2 * max(later["hinton"], later["mse"])
    best = max(record.trials.values(), key=lambda trial: trial.metric(METRIC))
    assert best.origin == "tpe" and best.metric(METRIC) > 0.585


@pytest.mark.parametrize("cut", [2, 13, 20])
def test_a_search_that_was_cut_off_goes_on_as_if_nothing_had_been(tmp_path, record, cut):
    searched(tmp_path / "r.jsonl", stop_after=cut)
    again = searched(tmp_path / "r.jsonl", stop_after=24)
    assert [trial.parameters for trial in again.trials.values()] == [
        trial.parameters for trial in record.trials.values()][:24]


def test_the_optuna_file_holds_each_trials_own_parameters(record, tmp_path):
    write_optuna_file(SPACE, record, tmp_path / "optuna.db", "study")
    told = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert [trial.params for trial in told.trials] == [trial.parameters for trial in record.trials.values()]


def test_prior_trials_of_all_losses_steer_the_search(record, tmp_path):
    prior = [{"parameters": trial.parameters, "accuracies": [[1, trial.metric(METRIC)]], "state": "complete"}
             for trial in record.trials.values()]
    started = Record(tmp_path / "r.jsonl")
    started.add_prior("other", prior)
    losses = [searched(tmp_path / "r.jsonl", trials=6, protected=0).trials[number].parameters["loss"]
              for number in range(1, 6)]
    assert losses.count("dkd") >= 3


def test_among_choices_each_point_of_each_loss_is_tried_once_before_any_is_repeated(tmp_path):
    """Seven points: three temperatures of two losses, and one of a loss without a temperature."""
    space = {"loss": Range(choice=("hinton", "dist", "mse")), "temperature": Range(choice=(1.0, 4.0, 8.0))}
    default = {"loss": "mse", "temperature": 4.0, "alpha": 0.5, "dist_gamma": 1.0, "lr": 1e-3}
    manager = TrialManager(Record(tmp_path / "r.jsonl"), proposer(9, 0, space, default), epochs=1)
    while (trial := manager.next()) is not None:
        manager.report(trial.number, {"epoch": 1, METRIC: 0.5, "validation_loss": 1.0, "train_loss": 1.0})
    points = [(trial.parameters["loss"], trial.parameters.get("temperature"))
              for trial in manager.record.trials.values()]
    assert len(set(points[:7])) == 7 and len(points) == 9


def test_a_loss_that_is_not_searched_has_its_own_parameters_searched():
    space = {name: SPACE[name] for name in ("temperature", "dkd_beta")}
    one = proposer(space=space, default=DEFAULT | {"loss": "dkd"})
    points = [one(number, None).parameters for number in range(1, 13)]
    assert len({point["dkd_beta"] for point in points}) == 12 and {point["loss"] for point in points} == {"dkd"}


def test_losses_with_the_same_parameters_are_an_ordinary_choice():
    space = {"loss": Range(choice=("hinton", "ttm", "logit-std")), "temperature": Range(log=(1, 16))}
    assert {tuple(own) for own in subspaces(space).values()} == {("temperature",)}
    assert {loss: set(own) | {"loss"} for loss, own in subspaces(SPACE).items()} == OF
    assert subspaces({"lr": SPACE["lr"]}) == {None: {"lr": SPACE["lr"]}}


def test_parameters_without_a_loss_are_those_of_the_usual_one():
    everything = {name: 1.0 for name in PARAMETERS} | {"lr": 1e-3, "alpha": 0.5}
    assert set(active(everything)) == {"temperature", "lr", "alpha"}
    for loss in LOSSES:
        assert set(active({"loss": loss, **everything})) == {"loss", "lr", "alpha", *parameters_of(loss)}
