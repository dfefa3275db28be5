"""The recipe in the study file: what is refused and searched, where rungs lie, and what a trial run makes of it."""

import tomllib

import pytest

from kdstudy.analysis.number_text import show_number
from kdstudy.config.load import load_study
from kdstudy.config.messages import validate
from kdstudy.config.models import check_models
from kdstudy.config.smoke import smoke_study
from kdstudy.errors import UserError
from kdstudy.stages.students import copies_in_checkpoint, passes
from kdstudy.store.fingerprints import changed
from kdstudy.store.schema import Parameters
from kdstudy.trainables.settings import TrainSettings
from kdstudy.watch.progress import show_parameters

PROBLEMS = {
    ("train.freeze=-1",): "train.freeze = -1: must be at least 0 or 'all'",
    ("train.freeze=most",): "train.freeze = 'most': must be a whole number or 'all'",
    ("train.freeze=300",): 'train: freeze = 300 must be smaller than epochs = 300; "all" trains the head alone',
    ("teacher.freeze=50",): "teacher: freeze = 50 must be smaller than epochs = 20",
    ("search.freeze={linear=[0,3]}",): "search.freeze takes choice = [...] only",
    ("search.freeze={choice=[2,'all']}",): "search.freeze must include train.freeze = 0",
    ("search.freeze={choice=[0,300]}",): "search.freeze reaches 300: freeze = 300 must be smaller than epochs = 300",
    ("search.accumulate={log=[1,4]}",): "search.accumulate takes choice = [...] only",
    ("train.warmup_epochs=300",): "train: warmup_epochs = 300 must be smaller than epochs = 300",
    ("train.warmup=0.2", "train.warmup_epochs=3"): "train: warmup = 0.2 and warmup_epochs = 3 say the same: leave "
                                                   "warmup at 0.1, or remove warmup_epochs",
    ("train.warmup_epochs=3", "search.warmup={linear=[0.05,0.2]}"): "search.warmup reaches 0.05: warmup = 0.05 and "
                                                                    "warmup_epochs = 3 say the same",
    ("search.warmup_epochs={linear=[0,9]}",): "search.warmup_epochs needs train.warmup_epochs, a value within the "
                                              "range, for the default point",
    ("search.drop_path={linear=[0,0.3]}",): "search.drop_path needs train.drop_path, a value within the range, for "
                                           "the default point",
    ("search.ema={choice=[0,0.99,1]}",): "search.ema reaches 1: must be less than 1",
    ("train.min_lr=0.1",): "train.min_lr or search.min_lr reaches 0.1, above the learning rate 0.0003, which "
                           "default.lr or search.lr reaches",
    ("teacher.min_lr=1",): "teacher.min_lr = 1 is above teacher.lr = 0.003",
}


@pytest.mark.parametrize("overrides", PROBLEMS)
def test_a_wrong_setting_is_named_with_its_remedy(overrides):
    with pytest.raises(UserError) as error:
        load_study("digits", overrides)
    assert PROBLEMS[overrides] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("overrides", "said"), [
    (("train.drop_path=0.1", "student.args.drop_path_rate=0.1"), "student.args holds drop_path_rate, which "
                                                                 "train.drop_path sets too; remove one of the two"),
    (("teacher.model=vgg11", "teacher.args={}", "teacher.drop_path=0.1"), "teacher.model = 'vgg11' takes no "
     "drop_path_rate, which teacher.drop_path sets; remove teacher.drop_path"),
    (("student.model=vgg11", "student.args={}", "student.image_size=32", "train.drop_path=0.1",
      "search.drop_path={linear=[0,0.2]}"), "student.model = 'vgg11' takes no drop_path_rate"),
])
def test_a_model_that_cannot_follow_is_found_before_anything_starts(overrides, said):
    with pytest.raises(UserError) as error:
        check_models(load_study("digits", overrides), classes=10, channels=1, image_size=32)
    assert said in str(error.value) and "\n" not in str(error.value)


SEARCHED = ("train.drop_path=0.1", "train.dropout=0.0", "train.warmup_epochs=10", "train.min_lr=1e-6",
            "search.drop_path={linear=[0,0.3]}", "search.dropout={choice=[0.0,0.2]}",
            "search.warmup_epochs={choice=[10,20]}", "search.min_lr={log=[1e-7,1e-5]}",
            "search.accumulate={choice=[1,4]}", "search.layer_decay={linear=[0.6,1]}", "search.head_lr={log=[1,10]}",
            "search.freeze={choice=[0,60,'all']}", "search.clip_grad={choice=[0,1,5]}",
            "search.ema={choice=[0,0.99,0.9999]}", "search.label_smoothing={linear=[0,0.2]}")


def test_all_of_it_is_searched_with_the_same_ranges_in_both_arms():
    config = load_study("digits", SEARCHED)
    names = {override.split("=")[0].removeprefix("search.") for override in SEARCHED if override.startswith("search.")}
    assert set(config.space("baseline")) == {"lr", *names} and len(names) == 11
    assert set(config.space("distill")) == {"temperature", "alpha", "lr", *names}
    default = config.default_parameters("baseline")
    assert default == {"lr": 1e-3, "drop_path": 0.1, "dropout": 0.0, "warmup_epochs": 10.0, "min_lr": 1e-6,
                       "accumulate": 1, "layer_decay": 1.0, "head_lr": 1.0, "freeze": 0, "clip_grad": 0.0, "ema": 0.0,
                       "label_smoothing": 0.0}
    Parameters.model_validate(default | {"freeze": "all", "accumulate": 4})  # as records hold them
    check_models(config, classes=10, channels=1, image_size=8)
    assert validate(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(("overrides", "rungs"), [
    (("train.warmup_epochs=10",), [40, 120]),
    (("train.warmup_epochs=60",), [70, 210]),
    (("train.warmup_epochs=0", "search.warmup_epochs={linear=[0,60]}"), [70, 210]),
    (("train.freeze=60",), [70, 210]),
    (("train.freeze='all'",), [40, 120]),
    (("search.freeze={choice=[0,60,'all']}",), [70, 210]),
    (("train.freeze=60", "search.grace_period=10"), [10, 30, 90]),
    (("train.ema=0.999",), [40, 120]),
])
def test_rungs_lie_after_the_warm_up_and_after_the_frozen_epochs(overrides, rungs):
    assert load_study("digits", overrides).rungs == rungs


def test_a_trial_run_keeps_the_recipe_within_its_few_epochs():
    smoke = smoke_study(load_study("digits", (*SEARCHED, "teacher.freeze=10", "teacher.warmup_epochs=12")))
    assert smoke.train.epochs == 30 and smoke.search.freeze.choice == (0, 29, "all")
    assert smoke.search.warmup_epochs.choice == (10, 20) and smoke.train.warmup_epochs == 10
    assert (smoke.teacher.epochs, smoke.teacher.freeze, smoke.teacher.warmup_epochs) == (5, 4, 4)
    shorter = smoke_study(load_study("digits", (*SEARCHED, "train.epochs=70")))
    assert shorter.train.epochs == 7 and shorter.search.warmup_epochs is None and shorter.train.warmup_epochs == 6
    assert shorter.search.freeze.choice == (0, 6, "all")


def test_settings_at_their_defaults_are_no_part_of_a_fingerprint():
    assert changed(TrainSettings()) == {}
    off = dict.fromkeys(("ema", "freeze", "clip_grad", "label_smoothing", "min_lr"), 0)
    assert changed(TrainSettings(**off, accumulate=1, layer_decay=1, head_lr=1)) == {}
    assert changed(TrainSettings(freeze="all", drop_path=0)) == {"freeze": "all", "drop_path": 0}


def test_the_plan_counts_the_average_and_the_frozen_epochs():
    assert copies_in_checkpoint(load_study("digits")) == 3
    assert copies_in_checkpoint(load_study("digits", ("train.ema=0.9",))) == 4
    assert copies_in_checkpoint(load_study("digits", ("search.ema={choice=[0,0.9]}",))) == 4
    assert passes(TrainSettings()) == 3 and passes(TrainSettings(freeze="all")) == 1
    assert passes(TrainSettings(epochs=10, freeze=5)) == 2


def test_a_decay_just_below_one_is_not_shown_as_one():
    assert show_parameters({"lr": 1e-3, "ema": 0.9999, "freeze": "all"}) == "lr=0.001, ema=0.9999, freeze=all"
    assert [show_number(value) for value in (0.9999, 0.999, 1.0, 0.9876)] == ["0.9999", "0.999", "1", "0.988"]
